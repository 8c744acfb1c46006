"""Sums: what is asked, what is held out, and what a planted toy does with it."""

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import nn

import mechsink as ms
from mechsink.experiments.formation.recorder import formation
from mechsink.models.toy import ToyModel
from mechsink.report.texts import default_rows
from mechsink.sites import Site
from toy_tasks import (
    PRESETS,
    SourceText,
    Sums,
    ToyConfig,
    ToyTransformer,
    TrainRun,
    accuracy,
    load_run,
    train,
)
from toy_tasks.task import TASKS, Task, task_from_json
from toy_tasks.training import update

TASK = Sums(n_values=10)


@pytest.fixture
def planted(planted_sums: TrainRun) -> TrainRun:
    """The small planted toy."""
    return planted_sums


@pytest.fixture
def quick():
    """Trains in a second; saves often."""
    return replace(
        PRESETS["sums-planted-small"],
        name="quick",
        model=ToyConfig(
            n_layers=2,
            d_model=16,
            d_head=8,
            d_mlp=32,
            n_ctx=7,
            carriers=("self", "peek"),
        ),
        steps=30,
        warmup=5,
        batch=16,
        checkpoints=4,
        save_every=7,
    )


def test_prompts_and_tokens_by_hand():
    task = Sums(n_values=3, n_terms=2)
    assert task.vocab == ["0", "1", "2", "3", "4", "+", "=", "<s>"]
    assert (task.d_vocab, task.bos, task.n_pos, task.slots) == (8, 7, 5, [1, 3])
    tokens, answers = task.all_prompts()
    assert tokens[:4].tolist() == [
        [7, 0, 5, 0, 6], [7, 0, 5, 1, 6], [7, 0, 5, 2, 6], [7, 1, 5, 0, 6]
    ]  # fmt: skip
    assert answers.tolist() == [0, 1, 2, 1, 2, 3, 2, 3, 4]
    assert task.encode("1+2=") == task.encode(" 1 + 2 = ") == [1, 5, 2, 6]
    assert task.decode(tokens[5]) == "<s> 1 + 2 ="
    assert Sums().encode("19+7+12=") == [19, 58, 7, 58, 12, 59]
    assert task.encode(task.decode(tokens[7])) == tokens[7].tolist()
    for text, piece in (("5+1=", "'5'"), ("1-1=", "'-'"), ("01+1=", "'01'")):
        with pytest.raises(ValueError, match=rf"{piece} in .* 0 to 4"):
            task.encode(text)


@pytest.mark.parametrize(
    "task", [TASK, Sums(), Sums(6, 2, 0.5, 3), Sums(5, 1), Sums(4, 4, 0.3)], ids=str
)
def test_no_order_of_a_held_out_prompt_is_trained_on(task):
    bags = []
    for tokens, answers in (task.training_prompts(), task.held_out_prompts()):
        operands = [tuple(row) for row in tokens[:, task.slots].tolist()]
        assert answers.tolist() == [sum(row) for row in operands]
        bags.append({tuple(sorted(row)) for row in operands})
        both = [
            tuple(row) for row in product(range(task.n_values), repeat=task.n_terms)
        ]
        assert sorted(operands) == [r for r in both if tuple(sorted(r)) in bags[-1]]
    trained, held = bags
    assert not trained & held
    n = task.n_values + task.n_terms - 1
    n_bags = 1  # n over n_terms
    for k in range(task.n_terms):
        n_bags = n_bags * (n - k) // (k + 1)
    assert len(trained | held) == n_bags
    assert {sum(bag) for bag in trained} == set(range(task.n_numbers))
    for total in range(task.n_numbers):  # the share of each sum, rounded down
        n_held, n_trained = (
            sum(sum(b) == total for b in part) for part in (held, trained)
        )
        assert n_held <= task.held_out * (n_held + n_trained) < n_held + 1


def test_the_split_and_the_draws_are_the_same_for_ever():
    """Run folders rely on them: as first drawn, on any machine."""
    held, _ = Sums(4, 2, 0.5).held_out_prompts()
    assert held[:, [1, 3]].tolist() == [[0, 2], [0, 3], [1, 3], [2, 0], [3, 0], [3, 1]]
    held, _ = Sums(4, 2, 0.5, seed=1).held_out_prompts()
    assert held[:, [1, 3]].tolist() == [[0, 2], [0, 3], [2, 0], [2, 2], [3, 0]]
    tokens, _ = TASK.sample(3, (5, 6))
    assert tokens[:, TASK.slots].tolist() == [[9, 4, 4], [0, 9, 3], [5, 1, 0]]


def test_draws_are_training_prompts_with_rare_sums_favoured():
    task = Sums(4, 2, 0.5)  # 16 prompts, 10 of them trained on
    tokens, answers = task.sample(20_000, 0)
    rows, counts = tokens.unique(dim=0, return_counts=True)
    assert rows.tolist() == task.training_prompts()[0].tolist()
    sums = rows[:, [1, 3]].sum(1)
    # Ten prompts ask for sums 0 to 6 (1, 2, 1, 2, 1, 2, 1 of them): a lone one is
    # drawn 1 time in 4 + 3 sqrt(2), each of two 1 / sqrt(2) times as often.
    assert sums.bincount().tolist() == [1, 2, 1, 2, 1, 2, 1]
    lone = 20_000 / (4 + 3 * 2**0.5)
    want = torch.where(sums % 2 == 0, lone, lone / 2**0.5)
    assert ((counts - want) / want.sqrt()).abs().max() < 4  # standard deviations
    assert torch.equal(answers, tokens[:, [1, 3]].sum(1))
    sequences = task.sequences(20_000, 5, 0)
    assert torch.equal(sequences[:, :-1], tokens)
    assert torch.equal(sequences[:, -1], answers)


def test_bad_sizes_are_explained(quick, tmp_path):
    for bad, message in (
        ({"n_values": 1}, "at least 2 values"),
        ({"n_values": 101}, "Take fewer"),
        ({"held_out": 1.0}, "below 1"),
        ({"seed": -1}, "0 and more"),
    ):
        with pytest.raises(ValueError, match=message):
            Sums(**bad)
    with pytest.raises(ValueError, match=r"Give 3 a prompt, each from 0 to 9"):
        TASK.prompts(torch.tensor([[1, 2, 10]]))
    with pytest.raises(ValueError, match="at least 1"):
        TASK.sample(0, 0)
    short = replace(quick, model=replace(quick.model, n_ctx=6))
    with pytest.raises(ValueError, match="Set n_ctx=7"):
        train(TASK, short, tmp_path)
    none = Sums(10, held_out=0.0)
    with pytest.raises(ValueError, match=r"pass all_prompts\(\)"):
        accuracy(nn.Identity(), *none.held_out_prompts())
    assert len(none.training_prompts()[0]) == len(none.all_prompts()[0]) == 1000


class Told(nn.Module):
    """Says what it is told, whatever the tokens."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, tokens):
        return self.logits[: len(tokens)]


def test_only_the_answer_is_learnt():
    """Equal logits: ln V at the answer, and no gradient at any other position."""
    tokens = TASK.sequences(6, 7, 0)
    model = ToyTransformer(ToyConfig(TASK.d_vocab, n_ctx=7))
    nn.init.zeros_(model.W_unembed)
    after: list[torch.Tensor] = []
    model.ln_final.hook_normalized.register_forward_hook(
        lambda module, args, out: after.append(out) or out.retain_grad()
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    assert TASK.n_targets == 1
    loss = update(model, optimizer, tokens, n_targets=TASK.n_targets)
    assert loss.item() == pytest.approx(math.log(TASK.d_vocab))
    for n_targets, touched in ((1, [False] * 6 + [True]), (None, [True] * 7)):
        update(model, optimizer, tokens, n_targets=n_targets)
        assert (after[-1].grad != 0).any(-1).all(0).tolist() == touched


def test_accuracy_by_hand():
    task = Sums(2, 2)  # answers 0, 1, 1, 2
    logits = torch.zeros(4, 5, task.d_vocab)
    logits[:, -1, 1] = 1.0
    assert accuracy(Told(logits), *task.all_prompts()) == 0.5


def test_a_run_on_sums_resumes_bit_for_bit_and_loads_back(quick, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def kill(step, model, task):
        assert isinstance(task, Sums)
        raise Killed

    rates = []

    def noted(model, optimizer, *rest):
        rates.append(optimizer.param_groups[0]["lr"])
        return update(model, optimizer, *rest)

    monkeypatch.setattr("toy_tasks.training.update", noted)
    whole = train(TASK, quick, tmp_path / "whole")
    assert rates == [quick.rate(step) for step in range(quick.steps)]
    assert max(rates) == rates[5] == quick.lr  # after a warm-up of five steps
    with pytest.raises(Killed):
        train(TASK, quick, tmp_path / "a", callbacks=[kill], callback_steps=[17])
    again = train(TASK, quick, tmp_path / "a")
    for step in whole.steps:
        ours, theirs = again.model(step), whole.model(step)
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(a, b)
    run = load_run(tmp_path / "a")
    assert run.task == TASK and run.preset == quick
    assert run.config.carriers == ("self", "peek")
    with pytest.raises(ValueError, match=r"another .*task\.n_values"):
        train(Sums(9), quick, tmp_path / "a")


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.matrix
def test_every_task_is_one_and_survives_json(name, abc):
    source = SourceText.from_library(20, random_at=(3, 5))
    task = {"bigram_backcopy": abc, "sums": TASK, "source_text": source}[name]
    assert isinstance(task, Task)
    back = task_from_json(task.to_json())
    assert type(back) is type(task) and back.to_json() == task.to_json()
    with pytest.raises(ValueError, match="'bigram_backcopy', 'sums', 'source_text'"):
        task_from_json({**task.to_json(), "task": "products"})
    with pytest.raises(ValueError, match="what to_json wrote"):
        task_from_json({**task.to_json(), "extra": 1})


@pytest.mark.matrix
def test_a_folder_is_a_mechsink_model_that_reads_numbers(planted):
    model = ms.load_model(f"toy:{planted.folder}")
    tokens = model.to_tokens(["3+4+9=", "0 + 9 + 8 ="])
    assert tokens.tolist() == [[30, 3, 28, 4, 28, 9, 29], [30, 0, 28, 9, 28, 8, 29]]
    assert model.to_strings(tokens[0]) == ["<s>", "3", "+", "4", "+", "9", "="]
    assert model.run(tokens).logits[:, -1].argmax(-1).tolist() == [16, 17]
    with pytest.raises(ValueError, match=r"\[7, 5\] tokens, <s> included"):
        model.to_tokens(["12+1+1=", "12+1="])
    rows, _ = default_rows(model, 4, 64)
    assert [row.shape[1] for row in rows] == [7] * 4
    assert torch.equal(torch.cat(rows), TASK.sample(4, 0)[0])


@pytest.mark.matrix
def test_a_sink_recorder_sums_asks_for_tokens(planted):
    with pytest.raises(ValueError, match="Pass tokens="):
        formation(planted)
    timeline = formation({1: planted.model(1)}, TASK.held_out_prompts()[0][:8])
    assert timeline.steps == [1]


@pytest.mark.matrix
def test_the_small_planted_toy_adds_what_it_never_saw(planted):
    assert accuracy(planted.model(), *TASK.held_out_prompts()) >= 0.99
    assert accuracy(planted.model(0), *TASK.held_out_prompts()) < 0.2


@pytest.mark.matrix
def test_operands_reach_the_last_token_in_the_peeking_layer_alone(planted):
    """Waiting depth 2: until layer 2 an operand's residual is a function of itself."""
    model = ToyModel(planted.model(), TASK)
    tokens, answers = TASK.held_out_prompts()
    other = tokens.clone()
    other[:, [3, 5]] = other[:, [3, 5]].flip(0)  # the first operand stays
    pre, last = Site("resid_pre", 2), Site("resid_pre", 3)
    there = model.run(other, read=[pre, last])
    here = model.run(tokens, read=[pre, last])

    def put(x, pos, value):
        return torch.cat([x[:, :pos], value[:, pos : pos + 1], x[:, pos + 1 :]], dim=1)

    def answered(site, pos, value):
        edit = {site: lambda x: put(x, pos, value)}
        return model.run(tokens, edit=edit).logits[:, -1]

    # Another prompt's residual of the same operand: nothing changes.
    same = answered(pre, 1, there.cache[pre])
    torch.testing.assert_close(same, here.logits[:, -1], rtol=1e-5, atol=1e-5)
    # Of another operand: the sum with that one, in nearly every prompt.
    swapped = answered(pre, 3, there.cache[pre]).argmax(-1)
    assert (swapped == answers - tokens[:, 3] + other[:, 3]).double().mean() >= 0.95
    # After the peeking layer operands are no longer read, only the last token is.
    noise = torch.randn(len(tokens), 7, model.shape.d_model)
    for pos in range(1, 6):
        assert torch.equal(answered(last, pos, noise), here.logits[:, -1]), pos
    moved = answered(last, 6, there.cache[last])
    torch.testing.assert_close(moved, there.logits[:, -1], rtol=1e-4, atol=1e-4)
    assert (moved.argmax(-1) != answers).double().mean() > 0.5
