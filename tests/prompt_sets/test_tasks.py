"""Each task, told from its texts: parsed and solved here by other means."""

import re

import pytest
import torch

from mechsink.models.toy import ToyModel
from mechsink.prompt_sets import (
    capitals,
    greater_than,
    induction,
    ioi,
    multiple_choice,
    sums,
    years_above,
)
from mechsink.prompt_sets.facts import FACTS
from mechsink.prompt_sets.words import CAPITALS, NAMES
from mechsink.prompts import TokenPairs
from mechsink.run import Run
from tests.prompt_sets.tokenizers_here import model
from toy_tasks.planted.induction import induction as planted_induction
from toy_tasks.transformer import ToyConfig, ToyTransformer

GPT2 = model("two digits")
DIGITS = model("one digit")


def test_known_prompts() -> None:
    first = ioi(GPT2, 1, seed=1)
    assert first.pairs.clean == [
        "Friends Elena and Tim found a bone at the station. Tim gave it to"
    ]
    assert first.pairs.corrupted == [
        "Friends Brian and Jeremy found a bone at the station. Diana gave it to"
    ]
    assert first.table.loc[0, ["answer", "wrong"]].tolist() == [" Elena", " Tim"]
    assert ioi(GPT2, 1, seed=1, corrupt="swap").pairs.corrupted == [
        "Friends Elena and Tim found a bone at the station. Elena gave it to"
    ]
    asked = capitals(GPT2, 1, seed=1)
    assert (asked.pairs.clean, asked.pairs.corrupted) == (
        ["Question: What is the capital of Colombia? Answer:"],
        ["Question: What is the capital of Uruguay? Answer:"],
    )
    added = sums(GPT2, 1, seed=1, n_examples=2)
    assert (added.pairs.clean, added.pairs.corrupted) == (
        ["8+8=16\n7+7=14\n1+7="],
        ["8+8=16\n7+7=14\n9+9="],
    )
    years = greater_than(GPT2, 1, seed=1)
    assert (years.pairs.clean, years.pairs.corrupted) == (
        ["The expedition lasted from the year 1283 to the year 12"],
        ["The expedition lasted from the year 1201 to the year 12"],
    )
    choice = multiple_choice(GPT2, 1, seed=1)
    options = "\nA. French\nB. Finnish\nC. Turkish\nD. Hungarian\nAnswer:"
    asked_for = "Question: What is the main language of "
    assert choice.pairs.clean == [f"{asked_for}France?{options}"]
    assert choice.pairs.corrupted == [f"{asked_for}Hungary?{options}"]
    assert choice.table.loc[0, ["answer", "wrong"]].tolist() == [" A", " D"]


@pytest.mark.matrix
def test_the_answer_is_the_name_that_stands_once() -> None:
    for corrupt in ("abc", "swap"):
        got = ioi(GPT2, 60, corrupt=corrupt)
        assert got.table["order"].value_counts().to_dict() == {"ABBA": 30, "BABA": 30}
        for row in got.table.itertuples():
            names = [w for w in re.findall(r"\w+", row.clean) if w in NAMES]
            answer, wrong = row.answer.strip(), row.wrong.strip()
            if row.order == "ABBA":
                assert names == [answer, wrong, wrong]
            else:
                assert names == [wrong, answer, wrong]
            others = [w for w in re.findall(r"\w+", row.corrupted) if w in NAMES]
            if corrupt == "swap":
                assert others == [*names[:2], answer]
            else:
                assert len({*others, answer, wrong}) == 5
    assert set(ioi(GPT2, 10, order="BABA").table["order"]) == {"BABA"}


def test_names_of_several_tokens_are_left_out() -> None:
    got = ioi(model("words"), 60)  # which knows every second name
    assert got.left_out == list(NAMES[1::2])
    assert not set(got.table["first"]) & set(got.left_out)
    assert len(NAMES) > 100 and len(set(NAMES)) == len(NAMES)


@pytest.mark.matrix
def test_capitals_are_those_of_the_list() -> None:
    got = capitals(GPT2, 1000)  # more than there are
    assert got.n_made + got.n_dropped == 3 * len(CAPITALS) > 3 * 40
    assert got.settings["n"] == 1000 and len(set(CAPITALS.values())) == len(CAPITALS)
    for row in got.table.itertuples():
        assert row.answer.strip() == CAPITALS[row.country]
        assert row.wrong.strip() == CAPITALS[row.corrupted_country]
        assert row.country in row.clean and row.corrupted_country in row.corrupted
    whole = {  # of one token, by the tokenizer itself
        country
        for country, capital in CAPITALS.items()
        if len(GPT2.tokenizer(f" {capital}")["input_ids"]) == 1
    }
    assert set(got.table["country"]) <= whole < set(CAPITALS)


@pytest.mark.matrix
def test_sums_are_right_and_those_of_two_tokens_dropped() -> None:
    every = sums(model("words"), 97, largest=9)  # there, each number is one token
    few = sums(DIGITS, 20, largest=9)
    assert every.n_dropped == 0
    short = every.table["answer"].str.len() + every.table["wrong"].str.len() == 2
    assert few.pairs.clean == every.table["clean"][short].tolist()[:20]
    assert few.dropped == {"the answer is not one token after the prompt": 77}
    assert every.table["pair"][short].tolist()[19] == 96  # 97 tried, 20 made
    for row in every.table.itertuples():
        *examples, asked = row.clean.split("\n")
        *same, other = row.corrupted.split("\n")
        assert examples == same and len(set(examples)) == 3
        pairs = []
        for line in (*examples, asked + row.answer, other + row.wrong):
            a, b, c = map(int, re.fullmatch(r"(\d+)\+(\d+)=(\d+)", line).groups())
            assert a + b == c
            pairs.append(tuple(sorted((a, b))))
        assert len(set(pairs)) == 5 and row.answer != row.wrong


@pytest.mark.matrix
def test_later_years_are_later() -> None:
    year = r"The \w+ lasted from the year (\d\d)(\d\d) to the year "
    kinds = {
        "two digits": ("last two digits", r"(\d\d)(\d\d)"),
        "one digit": ("third digit", r"(\d\d)(\d)"),
        "sentencepiece": ("third digit", r"(\d\d)(\d)"),
        "three digits": ("first three digits", r"(\d\d)(\d)"),
    }
    for kind, (measured, end) in kinds.items():
        got = greater_than(model(kind), 60)
        assert got.settings["measured"] == measured
        for row in got.table.itertuples():
            for prompt in (row.clean, row.corrupted):
                for more, is_later in ((row.answer, True), (row.wrong, False)):
                    found = re.fullmatch(year + end, prompt + more)
                    assert found is not None, prompt + more
                    century, start, again, ending = found.groups()
                    assert century == again
                    point = int(start) // 10 ** (2 - len(ending))
                    if prompt == row.corrupted:  # nothing is wrong any more
                        assert start == "01" and int(ending) > point
                    else:
                        assert (int(ending) > point) == is_later
                        assert int(ending) != point


@pytest.mark.matrix
def test_all_years_weighed() -> None:
    def by_hand(point: int, ending: int, n_digits: int) -> int:
        if n_digits == 1 and ending == point:
            return 0
        return 1 if ending > point else -1

    for kind, n_digits in (("two digits", 2), ("one digit", 1), ("three digits", 1)):
        own = model(kind)
        got = greater_than(own, 12)
        metric = years_above(own, got)
        assert repr(metric) == "years_above"
        for group in got.pairs.tokens(own):
            run = own.run(group.clean)
            p = run.logits[:, -1].softmax(-1)
            for at, i in enumerate(group.index):
                prompt, start = got.pairs.clean[i], got.table["start"][i]
                front = got.table["century"][i] if kind == "three digits" else ""
                want = 0.0
                for ending in range(10**n_digits):
                    after = f"{prompt}{front}{ending:0{n_digits}}"
                    token = own.tokenizer(after)["input_ids"][-1]
                    point = int(start) // 10 ** (2 - n_digits)
                    want += by_hand(point, ending, n_digits) * float(p[at, token])
                assert float(metric(run, group)[at]) == pytest.approx(want, abs=1e-6)
    # All on one later year: 1; all on an earlier one: -1.
    group = got.pairs.tokens(own)[0]
    for tokens, value in ((group.answers, 1.0), (group.wrong, -1.0)):
        logits = torch.full((len(group), 1, own.shape.d_vocab), -100.0)
        logits[torch.arange(len(group)), 0, tokens] = 100.0
        assert metric(
            Run(group.clean[:, -1:], logits, {}), group
        ).tolist() == pytest.approx([value] * len(group))
    with pytest.raises(ValueError, match="none of the set"):
        metric(run, got.pairs.flipped().tokens(own)[0])
    with pytest.raises(ValueError, match="set of ioi"):
        years_above(own, ioi(own, 2))


def parsed(prompt: str) -> tuple[str, dict[str, str]]:
    """The last question of a prompt, and label to option."""
    *_, last = prompt.split("Question: ")
    asked, *options, end = last.split("\n")
    assert end == "Answer:" and len(options) == 4
    return asked, dict(option.split(". ", 1) for option in options)


def solved(asked: str, content: str) -> str:
    """The right option of a question."""
    if content == "words":
        return asked.split('"')[1]
    for topic in FACTS:
        for subject, answer in topic.answers.items():
            if topic.question.format(subject=subject) == asked:
                return answer
    raise AssertionError(asked)


@pytest.mark.first_case
@pytest.mark.parametrize("content", ["facts", "words"])
@pytest.mark.parametrize("corrupt", ["question", "order"])
@pytest.mark.parametrize("labels", ["ABCD", ("W", "X", "Q", "J"), "random"])
def test_the_label_of_the_right_option(
    content: str, corrupt: str, labels: str | tuple[str, ...]
) -> None:
    options = {"content": content, "corrupt": corrupt, "labels": labels}
    got = multiple_choice(GPT2, 40, **options)
    plain = multiple_choice(GPT2, 40, content=content, corrupt=corrupt)
    places, used = set(), set()
    for row, same in zip(got.table.itertuples(), plain.table.itertuples(), strict=True):
        asked, by_label = parsed(row.clean)
        assert by_label[row.answer.strip()] == solved(asked, content)
        assert len(set(by_label.values())) == len(by_label) == 4
        again, by_other = parsed(row.corrupted)
        assert by_other[row.wrong.strip()] == solved(again, content)
        assert row.answer != row.wrong and list(by_other) == list(by_label)
        assert (asked == again) == (corrupt == "order")
        assert sorted(by_label.values()) == sorted(by_other.values())
        places.add(list(by_label).index(row.answer.strip()))
        used |= {tuple(by_label)}
        # Other labels, the same content in the same places.
        assert parsed(same.clean)[0] == asked
        assert list(parsed(same.clean)[1].values()) == list(by_label.values())
    assert places == {0, 1, 2, 3}
    assert len(used) > 30 if labels == "random" else used == {tuple(labels)}


def test_examples_are_solved_with_the_same_labels() -> None:
    got = multiple_choice(GPT2, 20, n_examples=2, labels="random")
    for row in got.table.itertuples():
        *examples, _ = row.clean.split("\n\n")
        assert len(examples) == 2
        assert row.corrupted.split("\n\n")[:2] == examples
        for example in examples:
            shown, _, label = example.rpartition(" ")
            asked, by_label = parsed(shown)
            assert by_label[label] == solved(asked, "facts")
            assert list(by_label) == list(parsed(row.clean)[1])
            assert asked not in (parsed(row.clean)[0], parsed(row.corrupted)[0])


def test_facts_have_one_right_option() -> None:
    for topic in FACTS:
        assert len(set(topic.answers.values())) == len(topic.answers) >= 10, topic.name


@pytest.mark.parametrize("kind", ["sentencepiece", "one digit"])
@pytest.mark.parametrize("corrupt", ["break", "swap"])
def test_what_followed_follows_again(kind: str, corrupt: str) -> None:
    own = model(kind)
    got = induction(own, 50, length=12, repeated=3, corrupt=corrupt)
    (group,) = got.pairs.tokens(own)
    bos = [0] if kind == "sentencepiece" else []
    assert group.n_pos == len(bos) + 15 == got.table["n_tokens"][0]
    assert group.answers is not None and group.wrong is not None
    special = {own.tokenizer.convert_tokens_to_ids(t) for t in ("<s>", "</s>", "<unk>")}
    for i in range(50):
        clean, other = group.clean[i].tolist(), group.corrupted[i].tolist()
        answer, wrong = int(group.answers[i]), int(group.wrong[i])
        assert clean[: len(bos)] == other[: len(bos)] == bos
        drawn, changed = clean[len(bos) :], other[len(bos) :]
        assert not special & {*drawn, *changed}
        assert drawn.count(answer) == drawn.count(wrong) == 1
        at = drawn.index(drawn[-1])
        assert drawn[at + 1] == answer and drawn[at - 2 : at + 1] == drawn[-3:]
        assert got.table["position"][i] == at + len(bos)
        differ = [j for j in range(15) if drawn[j] != changed[j]]
        if corrupt == "break":
            assert differ == [at] and changed[at] not in drawn
        else:
            assert sorted(differ) == sorted([at + 1, drawn.index(wrong)])
            assert changed[at + 1] == wrong and changed[drawn.index(wrong)] == answer
    assert len(set(got.table["position"])) > 5


def test_a_planted_induction_circuit_solves_it() -> None:
    toy = ToyModel(planted_induction(distractors=False, saturated=True).model)
    options = {"length": 8, "repeated": 1, "vocabulary": range(11), "first": [11]}
    for corrupt in ("break", "swap"):
        done = induction(toy, 50, corrupt=corrupt, **options).accuracy(toy)
        assert done.beats_wrong == done.top == 1.0
        assert done.clean == pytest.approx(8.0, rel=1e-3)  # LOGIT, all the attention
        # Without a match all positions are attended alike; swapped, the sign turns.
        want = 0.0 if corrupt == "break" else -8.0
        assert done.corrupted == pytest.approx(want, abs=1e-2)


def test_induction_without_a_tokenizer() -> None:
    config = ToyConfig(d_vocab=20, n_ctx=16, d_model=8, n_heads=1, n_layers=1, d_mlp=8)
    toy = ToyModel(ToyTransformer(config))
    got = induction(toy, 40, length=6, repeated=2)
    (group,) = got.pairs.tokens(toy)
    assert isinstance(group, TokenPairs) and group.n_pos == 8
    assert set(group.clean.flatten().tolist()) == set(range(20))
    tiny_set = induction(toy, 500, length=3, repeated=1, vocabulary=[4, 5, 6, 7])
    # 24 blocks; A at 0 or 1 of each: 48 prompts, and no more.
    assert tiny_set.n_made == 48 and tiny_set.settings["n"] == 500


@pytest.mark.first_case
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ioi(GPT2, 0), r"ioi: n=0\. Allowed: 1 or more"),
        (lambda: capitals(GPT2, 0), r"capitals: n=0"),
        (lambda: induction(GPT2, -1), r"induction: n=-1"),
        (lambda: multiple_choice(GPT2, 0), r"multiple_choice: n=0"),
        (lambda: ioi(GPT2, order="AB"), r"order='AB'.*'both', 'ABBA' or 'BABA'"),
        (lambda: ioi(GPT2, corrupt="names"), r"corrupt='names'.*'abc' or 'swap'"),
        (lambda: sums(GPT2, largest=1), r"largest=1.*largest from 2"),
        (lambda: sums(GPT2, largest=2, n_examples=5), r"n_examples=5.*here 4"),
        (lambda: induction(GPT2, repeated=0), r"repeated=0.*from 1"),
        (lambda: induction(GPT2, length=5), r"length=5.*from repeated \+ 2"),
        (lambda: induction(GPT2, length=300), r"length=300 needs 301.*takes 256"),
        (lambda: induction(GPT2, vocabulary=range(9)), r"there are 9 tokens"),
        (lambda: multiple_choice(GPT2, labels="ABC"), r"labels='ABC'.*four different"),
        (lambda: multiple_choice(GPT2, labels="ABCA"), r"labels='ABCA'"),
        (lambda: multiple_choice(GPT2, n_examples=-1), r"n_examples=-1"),
        (lambda: multiple_choice(GPT2, content="all"), r"content='all'.*'facts'"),
        (
            lambda: multiple_choice(GPT2, labels=["Zurich", "Qxjw", "Xyzzy", "Wqqk"]),
            r"0 of n=100 pairs could be made.*: the answer is not one token",
        ),
    ],
)  # fmt: skip
def test_bad_options(call: object, message: str) -> None:
    from jaxtyping import TypeCheckError

    # The type checker that tests run under may be faster than our own check.
    with pytest.raises((ValueError, TypeCheckError)) as caught:
        call()
    if isinstance(caught.value, ValueError):
        assert re.search(message, str(caught.value), re.DOTALL), caught.value
