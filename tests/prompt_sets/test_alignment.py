"""Every task fits every kind of tokenizer, or says how much did not."""

import pytest

from mechsink import prompt_sets
from mechsink.models.bridge import BridgeModel
from mechsink.prompt_sets import PromptSet
from mechsink.prompt_sets.candidates import UNKNOWN, Candidate, leading, token_rows
from tests.models.families import tiny
from tests.models.test_load import word_tokenizer
from tests.prompt_sets.aligned import check_aligned, n_different
from tests.prompt_sets.small import (
    CAPITALS,
    KINDS,
    NAMES,
    byte_pairs,
    model,
    spoken,
    words,
)

CALLS = {
    "ioi": [{}, {"corrupt": "swap", "order": "BABA"}],
    "capitals": [{}],
    "sums": [{}, {"n_examples": 0}, {"largest": 20}],
    "greater_than": [{}],
    "multiple_choice": [
        {"content": "words"},
        {"content": "words", "corrupt": "order", "labels": "random"},
    ],
}


@pytest.mark.first_case
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.some_cases(5)
def test_pairs_differ_in_the_exchanged_words_alone(name: str, kind: str) -> None:
    for options in CALLS[name]:
        made = prompt_sets.ALL[name](model(kind), 12, seed=1, **options)
        assert len(made) == 12 and made.table["clean"].is_unique
        check_aligned(model(kind), made)


def test_all_names_the_six_tasks() -> None:
    assert {*prompt_sets.ALL} == {*CALLS, "induction"}
    for name, make in prompt_sets.ALL.items():
        assert getattr(prompt_sets, name) is make


@pytest.mark.first_case
@pytest.mark.parametrize("name", prompt_sets.ALL)
def test_a_seed_makes_one_set(name: str) -> None:
    def made(seed: int) -> PromptSet:
        options = {"content": "words"} if name == "multiple_choice" else {}
        return prompt_sets.ALL[name](model("words"), 8, seed=seed, **options)

    first, again, other = made(3), made(3), made(4)
    assert first.table.equals(again.table)
    assert first.settings == again.settings and first.dropped == again.dropped
    assert not first.table["clean"].equals(other.table["clean"])


@pytest.mark.first_case
@pytest.mark.parametrize(
    ("digits", "measured", "shown", "differ"),
    [
        (1, "third digit", " {century}", {1, 2}),
        (2, "last two digits", " {century}", {1}),
        (3, "first three digits", " ", {1, 2}),
    ],
)
def test_years_follow_how_the_tokenizer_cuts_them(
    digits: int, measured: str, shown: str, differ: set[int]
) -> None:
    wrapped = words(digits)
    made = prompt_sets.greater_than(wrapped, 40)
    assert made.settings["measured"] == measured
    check_aligned(wrapped, made)
    assert {*n_different(wrapped, made)} <= differ
    for line in made.table.to_dict("records"):
        begin, end = (f"the year {part}" for part in (line["century"], shown.strip()))
        assert begin + line["start"] in line["clean"]
        assert begin + "01" in line["corrupted"]
        assert line["clean"].endswith(end.format(century=line["century"]))
        # Put together, whatever the last digits: later or earlier than the start.
        front = line["century"] if measured != "first three digits" else ""
        start = int(line["century"] + line["start"])
        rest = {"last two digits": 0}.get(measured, 1)
        for key, later in (("answer", True), ("wrong", False)):
            year = front + line[key]
            years = (
                [int(f"{year}{last}") for last in range(10)] if rest else [int(year)]
            )
            assert len(str(years[0])) == 4
            assert all((y > start) is later and y != start for y in years), line


@pytest.mark.matrix
def test_what_does_not_align_is_counted_by_reason() -> None:
    # 90 countries, 3 templates. The four capitals of two words are never one token;
    # five pairs of country and capital are in the vocabulary, the rest is unknown.
    made = prompt_sets.capitals(model("words"), 1000)
    known = len(CAPITALS) - 1
    assert made.n_made == 3 * known
    assert dict(made.dropped) == {
        "the answer is not one token after the prompt": 3 * 4,
        "a word is unknown to the tokenizer": 3 * (90 - 4 - known),
    }
    assert made.n_dropped == 3 * (90 - known)
    assert f"{3 * known} made, {3 * (90 - known)} dropped; " in repr(made)


def test_a_country_with_no_other_of_its_length_is_dropped() -> None:
    # Without South Korea's capital New Zealand is alone with its two words.
    fewer = [t for t in CAPITALS if t not in ("South Korea", "Norway")]
    facts = [f"The capital of {c} is {CAPITALS[c]}." for c in fewer]
    asked = [f"Question: What is the capital of {c}? Answer:" for c in fewer]
    trained = byte_pairs([*facts * 20, *asked * 20, "The capital city of"], size=450)
    made = prompt_sets.capitals(trained, 1000)
    assert "New Zealand" not in {*made.table["country"]}
    assert made.dropped["clean and corrupted have unequal numbers of tokens"] > 0
    check_aligned(trained, made)


def test_names_that_are_not_one_token_are_left_out() -> None:
    made = prompt_sets.ioi(model("words"), 5)
    assert "Mary" not in made.left_out and "Alice" in made.left_out
    slots = ["first", "second", "giver", "corrupted_first", "corrupted_giver"]
    assert {*made.table[slots].to_numpy().ravel()} <= {*NAMES}


@pytest.mark.parametrize(
    ("template", "clean", "corrupted", "answer", "wrong", "reason"),
    [
        ("{a} gave", "Mary", "New Zealand", " to", " at", "unequal numbers"),
        ("{a} gave", "Mary", "John", " to the", " at", "the answer is not one token"),
        ("{a} gave", "Mary", "John", " to", " to", "are the same token"),
        ("{a} gave", "Mary", "Xyz", " to", " at", "unknown to the tokenizer"),
        ("{a} gave", "Zyx", "Xyz", " to", " at", "unknown to the tokenizer"),
        ("{a} gave", "New Zealand", "South Korea", " to", " at", "is several tokens"),
        (
            "gave " * 64 + "{a}",
            "Mary",
            "John",
            " to",
            " at",
            "than the model's context",
        ),
    ],
)
def test_each_reason_to_drop(
    template: str, clean: str, corrupted: str, answer: str, wrong: str, reason: str
) -> None:
    candidate = Candidate(
        template, {"a": clean}, {"a": corrupted}, answer, wrong, single=("a",)
    )
    why = token_rows(model("words"), candidate)
    assert isinstance(why, str) and reason in why


def test_two_words_that_share_a_token_are_not_aligned() -> None:
    # "bc", "xc", "by" and "xy" are one token each: each change alone looks aligned.
    wrapped = byte_pairs([f"{two} d" for two in ("bc", "xc", "by", "xy")] * 9, 264)
    assert wrapped.to_tokens(["bc", "xc", "by", "xy"]).shape == (4, 1)
    candidate = Candidate(
        "{one}{two} d", {"one": "b", "two": "c"}, {"one": "x", "two": "y"}, "e", "f"
    )
    why = token_rows(wrapped, candidate)
    assert why == "tokens differ outside the exchanged words"


@pytest.mark.matrix
def test_what_stands_before_every_text() -> None:
    assert leading(model("bos")) == [1]
    assert leading(model("byte pairs")) == []
    # All that is compared is unknown here: that is no BOS.
    unknown = BridgeModel(tiny("llama"), word_tokenizer(), selfcheck=False)
    assert unknown.to_tokens("a").tolist() == unknown.to_tokens("b").tolist() == [[0]]
    assert leading(unknown) == []


def test_a_bos_that_is_named_unknown_too_is_no_unknown_word() -> None:
    wrapped = byte_pairs(spoken(), bos=True)
    assert wrapped.tokenizer.unk_token_id == wrapped.tokenizer.bos_token_id == 0
    assert leading(wrapped) == [0]
    for name, n in (("ioi", 5), ("capitals", 12)):
        made = prompt_sets.ALL[name](wrapped, n)
        assert made.n_made == n and UNKNOWN not in made.dropped
        check_aligned(wrapped, made)
