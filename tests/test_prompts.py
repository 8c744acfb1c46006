"""Prompt pairs: aligned token for token, refused with the place where they part."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from mechsink.models.bridge import BridgeModel
from mechsink.prompts import PromptPairs
from tests.models.families import tiny
from tests.models.test_load import word_tokenizer

MODEL = BridgeModel(tiny("llama"), word_tokenizer())


def test_texts_become_tokens_grouped_by_length() -> None:
    pairs = PromptPairs(
        clean=["w1 w2 w3", "w4 w5", "w6 w7 w8"],
        corrupted=["w1 w9 w3", "w4 w6", "w6 w7 w9"],
        answers=["w10", "w11", "w12"],
        wrong=["w20"],
    )
    long, short = pairs.tokens(MODEL)
    assert long.index == [0, 2] and short.index == [1]
    assert long.clean.tolist() == [[2, 3, 4], [7, 8, 9]]
    assert long.answers is not None and long.answers.tolist() == [11, 13]
    assert short.wrong is not None and short.wrong.tolist() == [21]
    assert long.rows(torch.tensor([1, 1])).index == [2, 2]
    assert pairs.flipped().tokens(MODEL)[0].clean.tolist()[0] == [2, 10, 4]


def test_tokens_pass_through_and_answers_may_be_left_out() -> None:
    tokens = torch.arange(6).reshape(2, 3)
    (group,) = PromptPairs(tokens, tokens + 1).tokens(MODEL)
    assert torch.equal(group.clean, tokens) and group.answers is None
    assert len(group) == 2 and group.n_pos == 3


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (lambda: PromptPairs([], []), "at least one pair"),
        (lambda: PromptPairs(["w1"], ["w2", "w3"]), "1 clean and 2 corrupted"),
        (lambda: PromptPairs(["w1"], ["w2"], ["a", "b"]), "2 answers for 1 pairs"),
        (lambda: PromptPairs(["w1"], torch.ones(1, 1).long()), "both be texts"),
        (
            lambda: PromptPairs(["w1 w2 w3"], ["w1 w4"]).tokens(MODEL),
            "3 clean and 2 corrupted tokens. They part at token 1",
        ),
        (
            lambda: PromptPairs(["w1"], ["w2"], ["w3 w4"]).tokens(MODEL),
            r"'w3 w4', which is 2 tokens here: \['w3', 'w4'\]",
        ),
        (
            lambda: PromptPairs(["w1"], ["w2"], ["w3"], ["w3"]).tokens(MODEL),
            "'w3' as answer and as wrong answer",
        ),
    ],
)
def test_bad_pairs_are_refused_with_advice(pairs, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pairs()


def test_two_bos_tokens_are_told() -> None:
    tokenizer = word_tokenizer()
    tokenizer.bos_token = "w1"
    model = BridgeModel(tiny("llama"), tokenizer)
    with pytest.warns(UserWarning, match=r"two BOS tokens: \['w1', 'w1', 'w3'\]"):
        PromptPairs(["w1 w1 w3"], ["w1 w1 w4"]).tokens(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PromptPairs(["w1 w3"], ["w1 w4"]).tokens(model)


def test_a_missing_bos_token_is_told() -> None:
    tokenizer = word_tokenizer()
    tokenizer.bos_token = "w1"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="w1 $A", special_tokens=[("w1", 2)]
    )
    model = BridgeModel(tiny("llama"), tokenizer)
    bare = torch.tensor([[7, 8, 9]])
    with pytest.warns(UserWarning, match=r"lacks the BOS token.*\['w6', 'w7', 'w8'\]"):
        PromptPairs(bare, bare).tokens(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = model.to_tokens("w6 w7 w8")
        assert whole.tolist() == [[2, 7, 8, 9]]
        PromptPairs(whole, whole).tokens(model)


def test_left_padding_is_taken_off() -> None:
    rows = [[7, 8, 9], [4, 5, 6, 7], [0, 1]]
    padded = torch.tensor([[50] * (6 - len(row)) + row for row in rows])
    model = BridgeModel(tiny("llama"))
    got = PromptPairs(padded, padded + (padded != 50), pad=50).tokens(model)
    assert [group.clean.tolist() for group in got] == [[row] for row in rows]
    right = padded.flip(1)
    with pytest.raises(ValueError, match="to the right of a prompt"):
        PromptPairs(right, right, pad=50).tokens(model)
    with pytest.raises(ValueError, match="nothing but padding"):
        PromptPairs(padded * 0 + 50, padded, pad=50).tokens(model)


def test_the_tokenizers_own_padding_is_known() -> None:
    tokenizer = word_tokenizer()
    tokenizer.pad_token = "w2"
    model = BridgeModel(tiny("llama"), tokenizer)
    padded = torch.tensor([[3, 3, 7, 8], [3, 5, 6, 7]])
    groups = PromptPairs(padded, padded).tokens(model)
    assert [group.n_pos for group in groups] == [2, 3]
    tokenizer.eos_token = "w2"  # now it may mean something
    assert PromptPairs(padded, padded).tokens(model)[0].n_pos == 4


def test_jsonl_round_trip_and_broken_lines(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    good = '{"clean": "w1", "corrupted": "w2", "answer": "w3", "wrong": "w4"}\n'
    path.write_text(good + "\n" + good)
    assert PromptPairs.from_jsonl(path).answers == ["w3", "w3"]
    for bad, message in [
        ("{", "line 2 of .* it is not JSON"),
        ("[1]", "line 2 of .* it holds a list"),
        ('{"clean": "w1"}', "line 2 of .* 'corrupted' is None"),
    ]:
        path.write_text(good + bad + "\n")
        with pytest.raises(ValueError, match=message):
            PromptPairs.from_jsonl(path)
    path.write_bytes(good.encode() + b"\xff\n")
    with pytest.raises(ValueError, match=r"line 2 of .* it is not UTF-8"):
        PromptPairs.from_jsonl(path)
    path.write_text("")
    with pytest.raises(ValueError, match="has no lines"):
        PromptPairs.from_jsonl(path)


def test_bad_lines_are_left_out_and_counted_if_asked(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    good = b'{"clean": "w1", "corrupted": "w2", "answer": "w3", "wrong": "w4"}\n'
    path.write_bytes(good + b"[]\n\n\xff\n" + good)
    with pytest.warns(UserWarning, match="left out 2 of 4 lines. The first: .*line 2"):
        assert len(PromptPairs.from_jsonl(path, skip_bad=True)) == 2
    path.write_bytes(b"[]\n{\n")
    with pytest.raises(ValueError, match="has 2 lines, none of them a pair"):
        PromptPairs.from_jsonl(path, skip_bad=True)


def test_a_line_may_hold_what_python_takes_for_an_end(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    strange = "a\u2028b\x85c\u000bd"
    row = {"clean": strange, "corrupted": "w2", "answer": "w3", "wrong": "w4"}
    text = json.dumps(row, ensure_ascii=False).replace("\\u000b", "\\u000b")
    path.write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\r\n")
    assert PromptPairs.from_jsonl(path).clean == [strange]
