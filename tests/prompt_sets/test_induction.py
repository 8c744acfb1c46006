"""Induction: any vocabulary, no special token; solved by a planted circuit."""

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

from mechsink import prompt_sets
from mechsink.models.bridge import BridgeModel
from mechsink.models.toy import ToyModel
from mechsink.prompt_sets import PromptSet
from tests.models.families import tiny
from tests.prompt_sets.small import model
from toy_tasks import BigramBackcopy, ToyConfig, ToyTransformer
from toy_tasks.planted import PLANTED

BARE = BridgeModel(tiny("llama"), selfcheck=False)  # 80 tokens, no tokenizer


def rows(made: PromptSet) -> list[tuple[list[int], list[int], int, int]]:
    clean, corrupted, answers, wrong = (
        getattr(made.pairs, key).tolist()
        for key in ("clean", "corrupted", "answers", "wrong")
    )
    return list(zip(clean, corrupted, answers, wrong, strict=True))


@pytest.mark.parametrize("corrupt", ["break", "swap"])
@pytest.mark.parametrize("repeated", [1, 3])
def test_what_followed_once_follows_again(corrupt: Any, repeated: int) -> None:
    made = prompt_sets.induction(BARE, 50, length=9, repeated=repeated, corrupt=corrupt)
    assert len({tuple(clean) for clean, *_ in rows(made)}) == 50
    for i, (clean, corrupted, answer, wrong) in enumerate(rows(made)):
        block, tail = clean[:9], clean[9:]
        assert len({*block}) == 9 and len(tail) == repeated
        at = block.index(tail[-1])
        assert block[at + 1 - repeated : at + 1] == tail
        assert block[at + 1] == answer != wrong
        assert clean.count(answer) == clean.count(wrong) == 1
        assert corrupted[9:] == tail
        line: dict[str, Any] = made.table.to_dict("records")[i]
        assert (line["position"], line["A"], line["B"]) == (at, tail[-1], answer)
        if corrupt == "swap":
            assert corrupted[at + 1] == wrong
            assert sorted(corrupted) == sorted(clean)
        else:
            differ = [p for p in range(len(clean)) if clean[p] != corrupted[p]]
            assert differ == [at] and corrupted[at] not in clean


@pytest.mark.parametrize("kind", ["words", "bos", "byte pairs"])
def test_no_special_token_is_drawn(kind: str) -> None:
    wrapped = model(kind)
    made = prompt_sets.induction(wrapped, 200)
    start = [1] if kind == "bos" else []
    special = {*wrapped.tokenizer.all_special_ids}
    assert special and made.settings["first"] == start
    for clean, corrupted, *_ in rows(made):
        assert clean[: len(start)] == corrupted[: len(start)] == start
        assert not special & {*clean[len(start) :], *corrupted[len(start) :]}
    drawn = {t for clean, *_ in rows(made) for t in clean[len(start) :]}
    assert len(drawn) > 0.8 * made.settings["n_vocabulary"]
    assert made.settings["n_vocabulary"] == len(wrapped.tokenizer) - len(special)


def test_a_toy_reads_its_own_tokens() -> None:
    task = BigramBackcopy.from_text("the cat sat on the mat, and a bat ate it. " * 99)
    config = ToyConfig(d_vocab=task.d_vocab, n_layers=1, d_model=8, d_head=8, n_heads=1)
    toy = ToyModel(ToyTransformer(config).eval(), task)
    made = prompt_sets.induction(toy, 30, length=5, repeated=2)
    for clean, *_ in rows(made):
        assert clean[0] == task.bos
        assert all(len(task.vocab[token]) == 1 for token in clean[1:])
    assert made.accuracy(toy).n == 30


@pytest.mark.parametrize("variant", ["induction", "induction-rms"])
def test_a_planted_induction_circuit_solves_all(variant: str) -> None:
    planted = PLANTED[variant]()
    toy = ToyModel(planted.model)
    options: dict[str, Any] = {"length": 8, "repeated": 1, "first": [11]}
    vocabulary = range(11)  # 11 is <s>
    swapped = prompt_sets.induction(
        toy, 60, corrupt="swap", vocabulary=vocabulary, **options
    )
    found = swapped.accuracy(toy)
    assert found.beats_wrong == found.top == 1.0
    assert max(found.table["corrupted"].tolist()) < 0
    assert found.clean == pytest.approx(-found.corrupted, rel=0.02)
    broken = prompt_sets.induction(toy, 60, vocabulary=vocabulary, **options)
    after = broken.accuracy(toy)
    # Nothing says what follows A: far less is left than of the clean difference.
    assert after.beats_wrong == 1.0
    assert abs(after.corrupted) < 0.2 * after.clean


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n=0"),
        ({"corrupt": "none"}, "corrupt='none'"),
        ({"repeated": 0}, "repeated=0"),
        ({"length": 5, "repeated": 4}, r"length from repeated \+ 2"),
        ({"length": 79, "repeated": 1}, "prompts of 80; .* takes 64 a prompt"),
        ({"vocabulary": range(16)}, "there are 16 tokens to draw from"),
        ({"vocabulary": range(70, 90)}, r"\[80, 81, .* no tokens of .* 0 to 79"),
        ({"first": [-1]}, r"\[-1\] are no tokens"),
    ],
)
def test_bad_input(options: dict[str, Any], message: str) -> None:
    make: Any = prompt_sets.induction
    make = inspect.unwrap(make)  # past the type checker of the tests
    with pytest.raises(ValueError, match=message):
        make(BARE, **options)


def test_all_prompts_that_there_are() -> None:
    # 4 tokens, blocks of 3, A before the last: 4 * 3 * 2 blocks with 2 places of A.
    made = prompt_sets.induction(BARE, 200, length=3, repeated=1, vocabulary=range(4))
    assert made.n_made == 48 and made.n_dropped == 0
    assert isinstance(made.pairs.clean, Tensor)
    assert torch.unique(made.pairs.clean, dim=0).shape == (48, 4)
