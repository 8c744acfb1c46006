"""All for One on hand-built circuits whose peeks are known, and on trained toys."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

import mechsink as ms
from mechsink.experiments.all_for_one.experiment import (
    all_for_one,
    waiting_baselines,
    wilson,
)
from mechsink.experiments.all_for_one.search import (
    AllForOneSearch,
    search_all_for_one,
    transfer,
)
from mechsink.interventions.context_mean import context_means, means_at
from mechsink.models.toy import ToyModel
from mechsink.sites import Site
from mechsink.slots.prompts import SlotPrompts
from tests.models.backends import load
from toy_tasks import PRESETS, Sums, ToyConfig, ToyTransformer, train
from toy_tasks.runs import TrainRun

N_VALUES = 6
OPERANDS = (1, 3, 5)  # <s> A + B + C =
LAST = 6
NUMBERS = 3 * (N_VALUES - 1) + 1
PLUS, EQUALS, BOS, AND = range(NUMBERS, NUMBERS + 4)


def planted(reads: dict[int, dict[int, int]], n_layers: int = 5) -> ToyModel:
    """A toy in which, at layer l, position q adds what position reads[l][q] holds.

    The residual holds a one-hot position, 1, the token's number and a running sum.
    Everyone else looks at <s>, whose number is 0. The answer is the number nearest
    to the last token's sum.
    """
    one, number, total = 7, 8, 9
    config = ToyConfig(
        d_vocab=NUMBERS + 4,
        n_layers=n_layers,
        d_model=10,
        d_head=8,
        n_ctx=7,
        norm="none",
        mlp_layers=(),
    )
    toy = ToyTransformer(config)
    numbers = torch.arange(NUMBERS, dtype=torch.float)
    with torch.no_grad():
        for parameter in toy.parameters():
            parameter.zero_()
        toy.W_E[:NUMBERS, number] = numbers
        toy.W_pos[:, :7] = torch.eye(7)
        toy.W_pos[:, one] = 1
        for layer in range(n_layers):
            attention = toy.get_submodule(f"blocks.{layer}.attn")
            for query in range(7):
                key = reads.get(layer, {}).get(query, 0)
                attention.W_Q[0, query, key] = 300
            attention.W_K[0, :7, :7] = torch.eye(7)
            attention.W_V[0, [number, total], 7] = 1
            attention.W_O[0, 7, total] = 1
        # 2 s v - v^2 is largest for the v nearest to s
        toy.W_unembed[total, :NUMBERS] = 2 * numbers
        toy.W_unembed[one, :NUMBERS] = -(numbers**2)
        toy.W_unembed[one, NUMBERS:] = -1e4
    return ToyModel(toy.eval())


def sums(sign: int = PLUS) -> SlotPrompts:
    rows, answers = [], []
    for operands in itertools.product(range(N_VALUES), repeat=3):
        a, b, c = operands
        rows.append([BOS, a, sign, b, sign, c, EQUALS])
        answers.append(a + b + c)
    return SlotPrompts.from_tokens(
        torch.tensor(rows), OPERANDS, answers=torch.tensor(answers)
    )


def test_the_hand_built_model_adds() -> None:
    spread = planted({1: {LAST: 1}, 2: {LAST: 3}, 3: {LAST: 5}})
    assert sums().answered(spread).all()
    # as a running sum: B takes A, C takes A + B, the last token reads C
    relay = planted({0: {3: 1}, 1: {5: 3}, 3: {LAST: 5}})
    assert sums().answered(relay).all()


@pytest.mark.parametrize(
    ("reads", "wait", "peek"),
    [
        ({2: {LAST: 5}, 3: {LAST: 3}, 4: {LAST: 1}}, 2, [2, 3, 4]),
        ({1: {LAST: 1}, 3: {LAST: 3}, 4: {LAST: 5}}, 1, [1, 3, 4]),
    ],
)
@pytest.mark.matrix
def test_three_peeks_are_found_by_dropping(reads, wait, peek) -> None:
    found = search_all_for_one(planted(reads), sums(), exhaustive=1, target=0.99)
    assert (found.found, found.wait, found.peek) == (True, wait, peek)
    assert found.kept == 1 and found.kept_interval[1] == pytest.approx(1)
    tried = found.peeks[found.peeks["n_peek"] == 1]
    assert len(tried) == 5 - wait and (tried["train_kept"] < 0.5).all()


def two_terms(prompts: SlotPrompts) -> SlotPrompts:
    """Those with C = 0: what a model that reads A and B alone gets right."""
    own = prompts.tokens(load("toy"))
    return prompts.subset(own.tokens[:, 5] == 0)


def test_two_peeks_among_all_pairs() -> None:
    model = planted({1: {LAST: 1}, 3: {LAST: 3}})
    prompts = two_terms(sums())
    found = search_all_for_one(model, prompts, unseen="prompts")
    assert (found.wait, found.peek, found.kept) == (1, [1, 3], 1.0)
    pairs = found.peeks[found.peeks["n_peek"] == 2]
    assert len(pairs) == 6  # layers 1 to 4
    undone = found.necessity.set_index("undone")["kept"]
    assert list(undone.index) == ["0", "1", "2", "3", "4", "1 3"]
    assert undone[["0", "2", "4"]].tolist() == [1, 1, 1]
    assert (undone[["1", "3", "1 3"]] < 0.5).all()
    curve = found.table.set_index("wait")["kept"]
    assert curve.loc[:1].tolist() == [1, 1] and (curve.loc[2:] < 0.5).all()
    assert list(found.table["n_peek"]) == [5, 4, 3, 2, 1]


def test_a_sum_made_on_the_way_is_no_all_for_one() -> None:
    relay = planted({0: {3: 1}, 1: {5: 3}, 3: {LAST: 5}})
    found = search_all_for_one(relay, sums(), target=0.5)
    assert not found.found and found.wait is None and found.peek is None
    assert "No All-for-One subgraph keeps 50%" in found.message
    assert np.isnan(found.kept) and len(found.peeks) == 0
    assert (found.table["kept"] < 0.5).all()
    assert list(found.necessity["undone"]) == list("01234")
    with pytest.raises(ValueError, match="found no subgraph to transfer"):
        transfer(found, relay, sums())


def test_what_waiting_is_compared_with() -> None:
    model = planted({2: {LAST: 5}, 3: {LAST: 3}, 4: {LAST: 1}})
    kept = {
        name: all_for_one(model, sums(), wait=2, peek=[2, 3, 4], means=means).kept
        for name, means in waiting_baselines(model, sums(), wait=2).items()
    }
    # below layer 2 this model does nothing, so these ways to wait cost nothing
    assert kept["context mean"] == kept["no attention"] == kept["self attention"] == 1
    # a mean without context forgets the operands; zero forgets even the question
    most = 27 / N_VALUES**3  # the commonest sum's share
    assert kept["mean"] == pytest.approx(most)
    assert kept["resample"] < 0.25 and kept["zero"] <= most


def test_the_subgraph_is_the_edits_by_hand() -> None:
    model = load("llama")
    prompts = SlotPrompts.from_tokens(
        sums().tokens(model).tokens[::17], OPERANDS, answers=torch.arange(13)
    )
    tokens = prompts.tokens(model).tokens
    values = [torch.unique(tokens[:, p]).tolist() for p in OPERANDS]
    every = torch.tensor(
        [[BOS, a, PLUS, b, PLUS, c, EQUALS] for a, b, c in itertools.product(*values)]
    )
    site = Site("resid_pre", 1)
    resid = model.run(every, read=[site]).cache[site]
    means = torch.stack(
        [
            torch.stack([resid[every[:, p] == row[p], p].mean(0) for p in range(7)])
            for row in tokens
        ]
    )

    def only(allowed):
        def edit(pattern):
            new = torch.zeros_like(pattern)
            for query in range(7):
                keys = sorted(allowed(query))
                row = pattern[:, :, query, keys]
                new[:, :, query, keys] = row / row.sum(-1, keepdim=True)
            return new

        return edit

    def peeking(query):
        return range(7) if query == 6 else {0, query}

    edit = {
        site: lambda x: means,
        Site("pattern", 1): only(lambda query: {0, query}),
        Site("pattern", 2): only(peeking),
    }
    want = model.run(tokens, edit=edit).logits[:, -1]
    own = torch.arange(13)
    result = all_for_one(model, prompts, wait=1, peek=[2], batch_size=5)
    table = result.table
    assert table["af1_logit"].tolist() == pytest.approx(
        want[own, own].tolist(), abs=2e-4
    )
    assert table["af1_logprob"].tolist() == pytest.approx(
        want.log_softmax(-1)[own, own].tolist(), abs=2e-4
    )
    assert table["af1"].tolist() == want.argmax(-1).tolist()
    full = model.run(tokens).logits[:, -1]
    assert table["full_logit"].tolist() == pytest.approx(
        full[own, own].tolist(), abs=2e-4
    )
    given = all_for_one(
        model, prompts, wait=1, peek=[2], means=context_means(model, prompts, 1)
    )
    assert given.table["af1_logit"].tolist() == pytest.approx(
        want[own, own].tolist(), abs=2e-4
    )


def test_shares_count_the_full_models_right_answers() -> None:
    model = planted({1: {LAST: 1}, 3: {LAST: 3}})  # reads A and B: right where C = 0
    result = all_for_one(model, sums(), wait=1, peek=[1, 3])
    assert result.full_accuracy == pytest.approx(1 / N_VALUES)
    assert result.faithfulness == pytest.approx(1) and result.kept == 1
    half = all_for_one(model, sums(), wait=1, peek=[1])  # A alone: right where B is 0
    assert half.kept == pytest.approx(1 / N_VALUES)
    low, high = half.kept_interval  # 6 of 36, tabulated Wilson ends
    assert (low, high) == (pytest.approx(0.0787, abs=1e-3), pytest.approx(0.319, 1e-2))
    assert half.accuracy > half.kept * half.full_accuracy  # right by luck elsewhere
    assert all(np.isnan(end) for end in wilson(0, 0))


def test_a_search_on_unseen_operands_saves_and_draws(tmp_path: Path) -> None:
    model = planted({2: {LAST: 5}, 3: {LAST: 3}, 4: {LAST: 1}})
    found = search_all_for_one(model, sums(), train_share=0.4, seed=3)
    tokens = sums().tokens(model).tokens
    chosen = found.meta["settings"]["train_prompts"]
    rest = sorted(set(range(len(tokens))) - set(chosen))
    for position in OPERANDS:
        seen = set(tokens[chosen, position].tolist())
        assert len(seen) == round(0.4 ** (1 / 3) * N_VALUES)
    held = [set(tokens[chosen, p].tolist()) for p in OPERANDS]
    assert all(
        any(
            int(tokens[i, p]) not in seen
            for p, seen in zip(OPERANDS, held, strict=True)
        )
        for i in rest
    )
    late = found.table.set_index("wait").loc[3]
    for part, column in ((rest, "kept"), (chosen, "train_kept")):
        alone = all_for_one(model, sums().subset(part), wait=3, peek=[3, 4])
        assert late[column] == pytest.approx(alone.kept)
    assert late["kept"] != pytest.approx(late["train_kept"])
    again = AllForOneSearch.load(found.save(tmp_path / "search"))
    assert (again.wait, again.peek, again.kept) == (found.wait, found.peek, found.kept)
    assert again.message == found.message and again.peeks.equals(found.peeks)
    ax = found.plot()
    assert ax.get_xlabel() == "layers waited"
    assert [len(line.get_xdata()) for line in ax.lines] == [5, 1, 2]

    other = transfer(found, model, sums(AND))
    assert other.kept == 1 and other.wait == found.wait and other.peek == found.peek


def test_bad_input_says_what_is_allowed() -> None:
    model = load("llama")
    prompts = sums()
    with pytest.raises(ValueError, match=r"Allowed: 0 .* to 2"):
        all_for_one(model, prompts, wait=3, peek=[])
    with pytest.raises(ValueError, match=r"layers \[0\], where nobody can peek"):
        all_for_one(model, prompts, wait=1, peek=[0])
    with pytest.raises(ValueError, match="no answers"):
        plain = SlotPrompts.from_tokens(prompts.tokens(model).tokens, OPERANDS)
        all_for_one(model, plain, wait=1, peek=[2])
    with pytest.raises(ValueError, match="slot '0' stands at position 0"):
        tokens = torch.tensor([[1, 5], [2, 5]])
        first = SlotPrompts.from_tokens(tokens, [0], answers=torch.tensor([1, 2]))
        all_for_one(model, first, wait=1, peek=[2])
    with pytest.raises(ValueError, match=r"those of L1\.resid_pre, but wait=2"):
        all_for_one(
            model, prompts, wait=2, peek=[2], means=context_means(model, prompts, 1)
        )
    adder = planted({2: {LAST: 5}, 3: {LAST: 3}, 4: {LAST: 1}})
    with pytest.raises(ValueError, match="gets 2 of 2 prompts right"):
        search_all_for_one(adder, prompts.subset([0, 7]))
    with pytest.raises(ValueError, match=r"train_share=1.*below 1 for train_share"):
        search_all_for_one(adder, prompts, train_share=1.0)
    with pytest.raises(ValueError, match=r"target=1\.5"):
        search_all_for_one(adder, prompts, target=1.5)


TASK = Sums(n_values=10)


TRAINED_SUMS = SlotPrompts(
    "{A} + {B} + {C} =", dict.fromkeys("ABC", range(10)), lambda A, B, C: A + B + C
)


@pytest.mark.matrix
@pytest.mark.slow
def test_a_toy_trained_to_peek_in_layer_2_is_found_out(planted_sums: TrainRun) -> None:
    model = ToyModel(planted_sums.model(), TASK)
    found = search_all_for_one(model, TRAINED_SUMS)
    assert found.meta["settings"]["full_accuracy"] > 0.9
    assert (found.wait, found.peek) == (2, [2]) and found.kept >= 0.99
    undone = found.necessity.set_index("undone")["kept"]
    assert undone["2"] < 0.2 and (undone[["0", "1", "3"]] == 1).all()
    tokens, answers = TASK.held_out_prompts()
    held = SlotPrompts.from_tokens(tokens, TASK.slots, answers=answers)
    assert transfer(found, model, held).kept >= 0.99  # sums that training never saw


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_toy_trained_freely_can_not_wait(seed: int, tmp_path: Path) -> None:
    """Over ten seeds: .906 to 1 kept at wait 0, .24 to .54 at wait 1.

    Whether wait 0 passes 95 % differs between seeds, and between kinds of CPU.
    """
    run = train(TASK, PRESETS["sums-free-small"], tmp_path, seed=seed)
    model = ToyModel(run.model(), TASK)
    found = search_all_for_one(model, TRAINED_SUMS)
    assert found.meta["settings"]["full_accuracy"] > 0.9
    waits = found.table.set_index("wait")
    assert waits.index.tolist() == [0, 1, 2, 3]
    assert (waits.loc[1:, "high"] < 0.85).all()
    assert found.found == (waits.loc[0, "train_kept"] >= 0.95)
    assert found.wait in (None, 0)


@pytest.mark.slow
@pytest.mark.pretrained
def test_smollm2_one_digit_sums() -> None:
    model = ms.load_model("smollm2")
    prompts = SlotPrompts(
        "2 + 3 = 5, 1 + 6 = 7, {A} + {B} = ",
        {"A": range(10), "B": range(10)},
        lambda A, B: A + B,
    ).where(lambda A, B: A + B < 10)
    right = prompts.subset(prompts.answered(model))
    assert len(right) / len(prompts) > 0.75
    few = right.sample(16)
    waits = {0: range(30), 20: [20, 21], 29: [29]}
    means = means_at(model, few, [Site("resid_pre", wait) for wait in waits])
    kept = {
        site.layer: all_for_one(
            model, few, wait=site.layer, peek=waits[site.layer], means=given
        ).kept
        for site, given in means.items()
    }
    # Tokens that never hear of the examples say little (0); at the end the last
    # token's mean no longer knows the operands (29). In between two peeks suffice
    # for most, as in the paper's larger models; measured .875 of 24.
    assert kept[0] < 0.2 and kept[29] < 0.2 and kept[20] > 0.6
    mean = waiting_baselines(model, few, wait=20)["mean"]
    blind = all_for_one(model, few, wait=20, peek=[20, 21], means=mean)
    assert blind.kept < 0.3
