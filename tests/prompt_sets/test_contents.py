"""What the prompts say: hand-written examples, and rules that hold of every pair."""

import inspect
from typing import Any

import pytest

from mechsink import prompt_sets
from mechsink.prompt_sets.facts import FACTS, WORDS
from mechsink.prompt_sets.words import CAPITALS, NAMES
from tests.prompt_sets.aligned import n_different
from tests.prompt_sets.small import model

COLUMNS = ["clean", "corrupted", "answer", "wrong"]


def shown(made: prompt_sets.PromptSet, *more: str) -> list[tuple[Any, ...]]:
    return list(made.table[[*COLUMNS, *more]].itertuples(index=False, name=None))


def test_ioi_by_hand() -> None:
    friends = "Friends {} and {} found a bone at the park. {} gave it to"
    after = "After {} and {} went to the park, {} gave a drink to"
    susan, mark = ("Susan", "Tom"), ("Mark", "Mary")
    assert shown(prompt_sets.ioi(model("words"), 2, corrupt="swap"), "order") == [
        (
            friends.format(*susan, "Tom"),
            friends.format(*susan, "Susan"),
            " Susan",
            " Tom",
            "ABBA",
        ),
        (
            after.format(*mark, "Mark"),
            after.format(*mark, "Mary"),
            " Mary",
            " Mark",
            "BABA",
        ),
    ]
    first, second = shown(prompt_sets.ioi(model("words"), 2))
    assert first[1] == friends.format("Mark", "Anna", "Kate")
    assert second[1] == after.format("Kate", "Tom", "John")


@pytest.mark.parametrize("corrupt", ["abc", "swap"])
@pytest.mark.parametrize("order", ["ABBA", "BABA"])
@pytest.mark.first_case
def test_ioi_roles(corrupt: Any, order: Any) -> None:
    wrapped = model("words")
    made = prompt_sets.ioi(wrapped, 30, seed=5, corrupt=corrupt, order=order)
    assert {*made.table["order"]} == {order}
    assert {*n_different(wrapped, made)} == {3 if corrupt == "abc" else 1}
    for clean, corrupted, answer, wrong in shown(made):
        names, others = (
            [w.strip(",.") for w in text.split() if w.strip(",.") in NAMES]
            for text in (clean, corrupted)
        )
        receiver, giver = answer.strip(), wrong.strip()
        assert names.count(receiver) == 1 and names.count(giver) == 2
        letters = {receiver: "A", giver: "B"}
        assert "".join(letters[n] for n in names) + "A" == order
        if corrupt == "swap":
            assert others.count(receiver) == 2 and others.count(giver) == 1
        else:
            assert len({receiver, giver, *others}) == 5


@pytest.mark.matrix
def test_capitals_answer_both_prompts() -> None:
    for line in prompt_sets.capitals(model("words"), 15).table.to_dict("records"):
        for text, slot, key in (
            ("clean", "country", "answer"),
            ("corrupted", "corrupted_country", "wrong"),
        ):
            assert line[slot] in line[text]
            assert line[key] == f" {CAPITALS[line[slot]]}"


def test_sums_by_hand_and_all_true() -> None:
    made = prompt_sets.sums(model("words"), 40)
    assert shown(made)[0] == (
        "0+2=2\n8+1=9\n9+3=12\n4+9=",
        "0+2=2\n8+1=9\n9+3=12\n7+1=",
        "13",
        "8",
    )
    for clean, corrupted, answer, wrong in shown(made):
        assert clean.split("\n")[:-1] == corrupted.split("\n")[:-1]
        asked = []
        for text, said in ((clean, answer), (corrupted, wrong)):
            lines = (text + said).split("\n")
            sums = [
                (line.split("=")[0].split("+"), line.split("=")[1]) for line in lines
            ]
            assert all(int(a) + int(b) == int(c) for (a, b), c in sums)
            pairs = [frozenset(pair) for pair, _ in sums]
            assert len({*pairs}) == len(pairs) == 4  # nothing is asked twice
            asked.append(sums[-1][0])
        (a, b), (c, d) = asked
        assert a != c and b != d and answer != wrong


@pytest.mark.matrix
def test_a_lone_largest_pair_still_finds_another() -> None:
    # 10+10 has no other pair of two-digit operands up to 10.
    made = prompt_sets.sums(model("words"), 300, largest=10)
    assert "20" in {*made.table["answer"]}


@pytest.mark.first_case
@pytest.mark.parametrize("corrupt", ["question", "order"])
@pytest.mark.parametrize("labels", ["ABCD", "HGFE", "random"])
def test_the_label_stands_before_the_right_option(corrupt: Any, labels: Any) -> None:
    made = prompt_sets.multiple_choice(
        model("words"), 60, content="words", labels=labels, corrupt=corrupt
    )
    places = [0] * 4
    for clean, corrupted, answer, wrong in shown(made):
        for text, label in ((clean, answer), (corrupted, wrong)):
            question, *options, end = text.split("\n")
            word = question.split('"')[1]
            assert f"{label.strip()}. {word}" in options and end == "Answer:"
            assert len({*options}) == 4
        options = clean.split("\n")[1:-1]
        places[[o[0] for o in options].index(answer.strip())] += 1
        if labels != "random":
            assert "".join(option[0] for option in options) == labels
        if corrupt == "question":
            assert corrupted.split("\n")[1:] == clean.split("\n")[1:]
        else:
            assert corrupted.split("\n")[0] == clean.split("\n")[0]
    assert min(places) >= 5  # 15 expected; each below 5 once in 3,000 draws
    assert [int(p) for p in made.table["place"]] == [
        [line[f"label{i}"] for i in range(4)].index(line["answer"].strip())
        for line in made.table.to_dict("records")
    ]


def test_other_labels_leave_the_content_as_it_was() -> None:
    plain, drawn, named = (
        prompt_sets.multiple_choice(
            model("words"), 40, content="words", labels=labels
        ).table
        for labels in ("ABCD", "random", ["E", "F", "G", "H"])
    )
    content = ["question", "corrupted_question", "place"]
    content += [f"option{i}" for i in range(4)]
    assert plain[content].equals(drawn[content])
    assert plain[content].equals(named[content])
    labels = drawn[[f"label{i}" for i in range(4)]].to_numpy().tolist()
    assert {len({*row}) for row in labels} == {4}
    assert len({tuple(row) for row in labels}) > 30  # of 8*7*6*5 or more
    assert len({*plain["answer"]}) == 4 < len({*drawn["answer"]})


def test_examples_are_solved_and_tell_nothing() -> None:
    made = prompt_sets.multiple_choice(
        model("words"), 20, content="words", labels="random", n_examples=1
    )
    for clean, corrupted, *_ in shown(made):
        example, asked = clean.split("\n\n")
        assert corrupted.split("\n\n")[0] == example
        question, *options, end = example.split("\n")
        word = question.split('"')[1]
        label = end.removeprefix("Answer: ")
        assert f"{label}. {word}" in options
        assert word not in [line[3:] for line in asked.split("\n")[1:-1]]


def test_facts_have_one_right_option() -> None:
    for topic in (*FACTS, *WORDS):
        answers = [answer.lower() for answer in topic.answers.values()]
        assert len({*answers}) == len(answers) >= 8, topic.name
    assert len({*NAMES}) == len(NAMES)
    for country, capital in CAPITALS.items():
        assert country not in capital


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ioi", {"n": 0}, "ioi: n=0. Allowed: 1 or more"),
        ("ioi", {"corrupt": "none"}, "corrupt='none'"),
        ("ioi", {"order": "AABB"}, "order='AABB'"),
        ("capitals", {"n": -1}, "capitals: n=-1"),
        ("sums", {"n": 0}, "sums: n=0"),
        ("sums", {"n_examples": -1}, "n_examples=-1"),
        ("sums", {"largest": 2, "n_examples": 5}, "here 4"),
        ("greater_than", {"n": 0}, "greater_than: n=0"),
        ("multiple_choice", {"content": "jokes"}, "content='jokes'"),
        ("multiple_choice", {"labels": "ABCA"}, "four different"),
        ("multiple_choice", {"labels": "ABC"}, "four different"),
        ("multiple_choice", {"n_examples": -1}, "n_examples=-1"),
        ("multiple_choice", {"n": 9}, r"0 of n=9 pairs .* dropped \(.*unknown"),
    ],
)
@pytest.mark.first_case
def test_bad_input(name: str, options: dict[str, Any], message: str) -> None:
    make: Any = getattr(prompt_sets, name)
    make = inspect.unwrap(make)  # past the type checker of the tests
    with pytest.raises(ValueError, match=message):
        make(model("words"), **options)
