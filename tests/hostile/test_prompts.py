"""Pairs of prompts: any texts, tokens and files give these pairs or say why not."""

import json
import re
import tempfile
import warnings
from pathlib import Path

import torch
from hypothesis import strategies as st

from mechsink.prompt_lines import KEYS
from mechsink.prompts import PromptPairs
from tests.hostile.cases import hostile
from tests.hostile.clear import is_refused, tried
from tests.hostile.small import D_VOCAB, PAD, characters
from tests.hostile.texts import any_texts, texts

tokens = st.integers(0, D_VOCAB - 1)
rows = st.lists(tokens, max_size=6).map(lambda row: torch.tensor(row, dtype=torch.long))
grids = st.tuples(st.integers(0, 3), st.integers(0, 5)).flatmap(
    lambda shape: st.lists(tokens, min_size=shape[0] * shape[1],
                           max_size=shape[0] * shape[1]).map(
        lambda flat: torch.tensor(flat, dtype=torch.long).reshape(shape))
)  # fmt: skip
token_prompts = st.one_of(st.lists(rows, max_size=3), grids)
token_answers = st.none() | st.lists(
    st.integers(-2, D_VOCAB + 2), max_size=3
).map(lambda ids: torch.tensor(ids, dtype=torch.long))  # fmt: skip


def kept(row: torch.Tensor, pad: int) -> list[int]:
    """A row without the padding on its left."""
    ids = row.tolist()
    while ids and ids[0] == pad:
        ids.pop(0)
    return ids


@hostile(
    40,
    900,
    [
        {
            "clean": torch.tensor([[5]]),
            "corrupted": torch.tensor([[6]]),
            "answers": torch.tensor([D_VOCAB]),
            "wrong": torch.tensor([-1]),
            "pad": None,
        }
    ],
    clean=token_prompts,
    corrupted=token_prompts,
    answers=token_answers,
    wrong=token_answers,
    pad=st.sampled_from([None, -1, 3, 99]),
)
def test_tokens_come_back_row_by_row_or_one_clear_error(
    clean, corrupted, answers, wrong, pad
):
    pairs = tried(PromptPairs, clean, corrupted, answers, wrong, pad)
    if is_refused(pairs):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a BOS too many is worth a warning only
        groups = tried(pairs.tokens, characters())
    if is_refused(groups):
        return
    taken = PAD if pad is None else pad
    seen = []
    for group in groups:
        for place, i in enumerate(group.index):
            seen.append(i)
            assert group.clean[place].tolist() == kept(clean[i], taken)
            assert group.corrupted[place].tolist() == kept(corrupted[i], taken)
            for given, got in ((answers, group.answers), (wrong, group.wrong)):
                if given is None:
                    assert got is None
                else:
                    want = given[0 if len(given) == 1 else i]
                    assert got[place] == want and 0 <= want < D_VOCAB
    assert sorted(seen) == list(range(len(clean)))


@hostile(
    30,
    700,
    [{"clean": ["\ud800"], "corrupted": ["a"], "answers": ["b"], "wrong": ["c"]}],
    clean=st.lists(any_texts, max_size=3),
    corrupted=st.lists(any_texts, max_size=3),
    answers=st.none() | st.lists(any_texts, max_size=3),
    wrong=st.none() | st.lists(any_texts, max_size=3),
)
def test_any_texts_give_pairs_or_one_clear_error(clean, corrupted, answers, wrong):
    pairs = tried(PromptPairs, clean, corrupted, answers, wrong)
    if is_refused(pairs):
        return
    model = characters()
    try:
        groups = pairs.tokens(model)
    except ValueError as error:
        assert re.match("PromptPairs: |to_tokens: ", str(error))  # the tokenizer's own
        return
    for group in groups:
        for place, i in enumerate(group.index):
            assert group.clean[place].tolist() == model.to_tokens(clean[i])[0].tolist()


good = st.fixed_dictionaries(dict.fromkeys(KEYS, any_texts))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | any_texts,
    lambda inside: (
        st.lists(inside, max_size=2) | st.dictionaries(any_texts, inside, max_size=2)
    ),
    max_leaves=4,
)
bad = st.one_of(
    values.map(json.dumps),
    st.fixed_dictionaries({}, optional={k: values for k in KEYS}).map(json.dumps),
    st.sampled_from(
        ["{", "}", "[" * 3000, '{"clean": "a"', "nul", "9" * 5000, "\ufeff"]
    ),
    texts.map(lambda text: "x" + text.replace("\n", "")),
)


@st.composite
def files(draw) -> tuple[bytes, list[dict[str, str]], list[int]]:
    """A file's bytes, its pairs, and the numbers of its broken lines."""
    lines, pairs, broken = [], [], []
    for number in range(1, 1 + draw(st.integers(0, 5))):
        kind = draw(st.sampled_from(["good", "good", "bad", "bytes", "empty"]))
        if kind == "empty":
            lines.append(draw(st.sampled_from([b"", b"  ", b"\t\r"])))
            continue
        if kind == "good":
            pair = draw(good)
            lines.append(json.dumps(pair, ensure_ascii=True).encode())
        elif kind == "bad":
            lines.append(draw(bad).encode())
        else:
            lines.append(b"\xff" + draw(st.binary(max_size=8)).replace(b"\n", b""))
        row = read(lines[-1])
        if row is None and not lines[-1].strip():
            continue
        if row is None:
            broken.append(number)
        else:
            pairs.append(row)
    end = draw(st.sampled_from([b"", b"\n", b"\n\n"]))
    return b"\n".join(lines) + end, pairs, broken


def read(line: bytes) -> dict[str, str] | None:
    """The pair of a line, read by the rule: an object with four texts."""
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not all(isinstance(row.get(k), str) for k in KEYS):
        return None
    try:
        json.dumps([row[k] for k in KEYS], ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half a character is no text
        return None
    return {k: row[k] for k in KEYS}


def written(data: bytes, folder: str) -> Path:
    path = Path(folder) / "pairs.jsonl"
    path.write_bytes(data)
    return path


@hostile(30, 900, given=files())
def test_a_file_gives_its_pairs_or_the_number_of_the_line(given):
    data, pairs, broken = given
    with tempfile.TemporaryDirectory() as folder:
        found = tried(PromptPairs.from_jsonl, written(data, folder))
    if broken or not pairs:
        assert type(found) is ValueError
        assert (
            f"line {broken[0]} of" in str(found) if broken else "no lines" in str(found)
        )
        assert len(str(found)) < 600
    else:
        given_keys = ("clean", "corrupted", "answers", "wrong")
        for key, field in zip(KEYS, given_keys, strict=True):
            assert list(getattr(found, field)) == [pair[key] for pair in pairs]


@hostile(30, 700, given=files())
def test_skipped_lines_are_counted(given):
    data, pairs, broken = given
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with tempfile.TemporaryDirectory() as folder:
            path = written(data, folder)
            found = tried(PromptPairs.from_jsonl, path, skip_bad=True)
    if not pairs:
        assert type(found) is ValueError
        assert f"{len(broken)} lines, none" in str(found) or "no lines" in str(found)
        return
    assert list(found.clean) == [pair["clean"] for pair in pairs]
    said = [str(warning.message) for warning in told]
    if broken:
        n = len(broken) + len(pairs)
        assert f"left out {len(broken)} of {n} lines" in said[0]
        assert f"line {broken[0]} of" in said[0]
    else:
        assert said == []


@hostile(20, 500, data=st.binary(max_size=60))
def test_any_bytes_are_pairs_or_one_clear_error(data):
    with tempfile.TemporaryDirectory() as folder:
        path = written(data, folder)
        assert isinstance(tried(PromptPairs.from_jsonl, path), ValueError | PromptPairs)
