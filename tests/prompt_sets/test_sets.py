"""Sets as a whole: accuracy, splitting, JSON lines, the wrong tokenizer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mechsink import prompt_sets
from mechsink.prompt_sets import Accuracy
from mechsink.prompt_sets.accuracy import accuracy, wilson
from mechsink.prompts import PromptPairs
from tests.prompt_sets.small import KINDS, model, tokens


def test_accuracy_by_one_forward_pass_a_prompt() -> None:
    wrapped = model("words")
    made = prompt_sets.ioi(wrapped, 20, seed=2)
    found = made.accuracy(wrapped, batch_size=3)
    answers, wrong = made.pairs.answers, made.pairs.wrong
    assert isinstance(answers, Tensor) and isinstance(wrong, Tensor)
    network = wrapped.plain.model
    lines: list[dict[str, Any]] = found.table.to_dict("records")
    for i, line in enumerate(lines):
        assert line["pair"] == i
        last = {}
        for key in ("clean", "corrupted"):
            row = torch.tensor([tokens(wrapped, str(made.table[key][i]))])
            with torch.no_grad():
                last[key] = network(row).logits[0, -1]
            difference = last[key][answers[i]] - last[key][wrong[i]]
            assert line[key] == pytest.approx(difference.item(), abs=1e-4)
        assert line["beats_wrong"] == (line["clean"] > 0)
        assert line["likeliest"] == last["clean"].argmax().item()
        assert line["is_top"] == (line["likeliest"] == answers[i].item())
    assert 0 < found.beats_wrong < 1  # a random model: neither all nor none
    assert found.n == 20
    assert found.beats_wrong == found.table["beats_wrong"].mean()
    assert found.top == found.table["is_top"].mean()
    assert found.clean == pytest.approx(found.table["clean"].mean())
    assert found.corrupted == pytest.approx(found.table["corrupted"].mean())
    assert found.low < found.beats_wrong < found.high
    assert found.top_low <= found.top < found.top_high


def test_wilson_by_its_formula() -> None:
    # (k + z^2/2 -+ z sqrt(k(n-k)/n + z^2/4)) / (n + z^2) with z = 1.959964
    assert wilson(8, 10) == pytest.approx((0.490162, 0.943318), abs=1e-6)
    assert wilson(0, 10) == pytest.approx((0.0, 0.277533), abs=1e-6)


def test_accuracy_is_saved_with_what_was_dropped(tmp_path: Path) -> None:
    wrapped = model("bos")
    made = prompt_sets.sums(wrapped, 6)
    found = made.accuracy(wrapped)
    back = Accuracy.load(found.save(tmp_path / "accuracy"))
    assert back.table.equals(found.table) and back.top_high == found.top_high
    assert back.meta["settings"]["dropped"] == dict(made.dropped)
    assert back.meta["settings"]["prompt_set"]["n_made"] == 6


def test_accuracy_refuses() -> None:
    wrapped = model("words")
    pairs = PromptPairs(["Mary gave"], ["John gave"])
    with pytest.raises(ValueError, match="the prompts have no answers"):
        accuracy(wrapped, pairs)
    made = prompt_sets.ioi(wrapped, 3)
    with pytest.raises(ValueError, match="batch_size=0"):
        made.accuracy(wrapped, batch_size=0)
    with pytest.raises(ValueError, match=r"Make it anew: ms.prompt_sets.ioi\(model"):
        made.accuracy(model("byte pairs"))


def test_split_leaves_no_pair_in_both() -> None:
    wrapped = model("words")
    made = prompt_sets.ioi(wrapped, 20)
    first, second = made.split(0.3, seed=1)
    assert (len(first), len(second)) == (6, 14)
    clean = [*first.table["clean"], *second.table["clean"]]
    assert sorted(clean) == sorted(made.table["clean"]) and len({*clean}) == 20
    for part in (first, second):
        assert list(part.table["clean"]) == list(part.pairs.clean)
        assert list(part.table["pair"]) == list(range(len(part)))
        whole = made.accuracy(wrapped).table.set_index(made.table["clean"])
        for column in ("clean", "corrupted"):
            values = part.accuracy(wrapped).table[column].tolist()
            wanted = whole.loc[list(part.pairs.clean), column].tolist()
            assert values == pytest.approx(wanted, abs=1e-4)
    again, other = made.split(0.3, seed=1)[0], made.split(0.3, seed=2)[0]
    assert first.table.equals(again.table) and not first.table.equals(other.table)
    for share in (0.0, 1.0, 0.01):
        with pytest.raises(ValueError, match=f"share={share} of 20 pairs"):
            made.split(share)
    for chosen in ([], [20], [-1]):
        with pytest.raises(ValueError, match=r"of 20 pairs\. Name at least"):
            made.subset(chosen)


@pytest.mark.first_case
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["ioi", "sums", "capitals", "greater_than"])
def test_json_lines_give_the_same_tokens(name: str, kind: str, tmp_path: Path) -> None:
    wrapped = model(kind)
    made = prompt_sets.ALL[name](wrapped, 8)
    back = PromptPairs.from_jsonl(made.to_jsonl(tmp_path / "pairs.jsonl"))
    groups = zip(made.pairs.tokens(wrapped), back.tokens(wrapped), strict=True)
    for one, other in groups:
        assert one.index == other.index
        for key in ("clean", "corrupted", "answers", "wrong"):
            assert torch.equal(getattr(one, key), getattr(other, key)), key


def test_tokens_are_no_json_lines(tmp_path: Path) -> None:
    made = prompt_sets.induction(model("words"), 3)
    with pytest.raises(ValueError, match="prompts of induction are tokens"):
        made.to_jsonl(tmp_path / "pairs.jsonl")
    assert not (tmp_path / "pairs.jsonl").exists()
