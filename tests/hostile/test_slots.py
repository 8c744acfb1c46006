"""Templates with slots, choices and ready sets: any input gives prompts or says why."""

import re

import pytest
import torch
from hypothesis import strategies as st

from mechsink.experiments.choices.prompts import Choices
from mechsink.prompt_sets import ALL
from mechsink.prompt_sets.repeats import induction
from mechsink.slots.prompts import SlotPrompts
from tests.hostile.cases import hostile
from tests.hostile.clear import is_refused, tried
from tests.hostile.small import D_VOCAB, characters
from tests.hostile.texts import any_texts, texts

names = st.sampled_from(["A", "B", "x y", "0", "A.real", "A[0]", "", "self"])
templates = st.one_of(
    texts,
    st.lists(
        st.one_of(
            st.sampled_from(
                ["{A}", "{B}", "{A}", "{B}", "{", "}", "{{", "}}", "{}", "{0}"]
            ),
            st.sampled_from(["{A.__class__}", "{A!r}", "{A:>9}", "{A:{B}}", "{A[0]}"]),
            st.sampled_from([*"abc", "<script>", "$x"]),
        ),
        max_size=5,
    ).map("".join),
)
slot_values = st.one_of(
    st.lists(st.sampled_from([*"abcdef"]), max_size=4),
    st.lists(any_texts | st.integers(0, 9), max_size=4),
)


@hostile(
    40,
    900,
    [
        {"template": "{", "slots": {}, "n": None, "seed": 0},
        {"template": "{A.x}", "slots": {"A": "ab"}, "n": None, "seed": 0},
        {
            "template": "{A.__class__}",
            "slots": {"A.__class__": "ab"},
            "n": 1,
            "seed": 0,
        },
        {"template": "{A:>9}", "slots": {"A": [1, 2]}, "n": None, "seed": 0},
        {"template": "{A:\ud800}", "slots": {"A": "ab"}, "n": None, "seed": 0},
        {"template": "{A}", "slots": {"A": "ab"}, "n": 1, "seed": -1},
    ],
    template=templates,
    slots=st.one_of(
        st.fixed_dictionaries({"A": slot_values, "B": slot_values}),
        st.fixed_dictionaries({"A": slot_values}),
        st.dictionaries(names, slot_values, max_size=2),
    ),
    n=st.none() | st.integers(-1, 30),
    seed=st.integers(-5, 10**25),
)
def test_any_template_gives_prompts_or_one_clear_error(template, slots, n, seed):
    prompts = tried(SlotPrompts, template, slots, lambda **held: "a", n, seed)
    if is_refused(prompts):
        assert type(prompts) is ValueError or n is None
        return
    text = tried(prompts.text, 0)
    assert isinstance(text, str), text
    assert len(prompts) == (prompts.n_combinations if n is None else n)
    try:
        found = prompts.tokens(characters())
    except ValueError as error:  # the tokenizer's own is told by the tokenizer
        assert re.match("SlotPrompts: |to_tokens: ", str(error))
        return
    for i in range(len(prompts)):
        want = characters().to_tokens(prompts.text(i))[0]
        assert found.tokens[i].tolist() == want.tolist()


def test_more_combinations_than_can_be_numbered_are_refused():
    names = [f"s{i}" for i in range(200)]
    template = "+".join(f"{{{name}}}" for name in names)
    with pytest.raises(ValueError, match="about 1e400 combinations"):
        SlotPrompts(template, dict.fromkeys(names, range(100)), n=5)


ids = st.integers(-1, D_VOCAB)
grid = st.tuples(st.integers(0, 4), st.integers(0, 4)).flatmap(
    lambda s: st.lists(
        st.integers(5, 7), min_size=s[0] * s[1], max_size=s[0] * s[1]
    ).map(lambda flat: torch.tensor(flat, dtype=torch.long).reshape(s))
)
counts = st.lists(ids, max_size=4).map(lambda row: torch.tensor(row, dtype=torch.long))


@hostile(
    30,
    600,
    tokens=grid,
    slots=st.lists(st.integers(-2, 5), max_size=4),
    answers=st.none() | counts,
    values=st.none()
    | st.dictionaries(st.integers(-1, 4), st.lists(ids, max_size=3), max_size=2),
)
def test_any_tokens_with_slots_are_kept_or_one_clear_error(
    tokens, slots, answers, values
):
    prompts = tried(
        SlotPrompts.from_tokens, tokens, slots, answers=answers, values=values
    )
    if is_refused(prompts):
        return
    found = prompts.tokens(characters())
    assert torch.equal(found.tokens, tokens)
    assert sorted(set(slots)) == list(found.positions)
    assert torch.equal(found.redrawn(found.picks(tokens))[:, found.positions],
                       tokens[:, found.positions])  # fmt: skip


small = st.tuples(st.integers(0, 3), st.integers(0, 3)).flatmap(
    lambda s: st.lists(ids, min_size=s[0] * s[1], max_size=s[0] * s[1]).map(
        lambda flat: torch.tensor(flat, dtype=torch.long).reshape(s)
    )
)


@hostile(
    30,
    600,
    tokens=grid,
    labels=small,
    correct=counts,
    places=small,
    other=st.none() | grid,
)
def test_any_choices_are_kept_or_one_clear_error(
    tokens, labels, correct, places, other
):
    found = tried(Choices, tokens, labels, correct, places, other)
    if is_refused(found):
        return
    for i, answer in enumerate(found.answers.tolist()):
        assert answer == labels[i, correct[i]]
    assert torch.allclose(found.weights.sum(1), torch.zeros(len(labels)).double())


@hostile(
    1,
    60,
    name=st.sampled_from([*ALL]),
    n=st.integers(-2, 3),
    seed=st.integers(-3, 10**25),
)
def test_a_ready_set_fits_a_tokenizer_or_says_why_not(name, n, seed):
    found = tried(ALL[name], characters(), n=n, seed=seed)
    if not is_refused(found):
        assert 1 <= len(found) <= n


@hostile(
    10,
    200,
    n=st.integers(-1, 4),
    seed=st.integers(-3, 10**25),
    length=st.integers(-1, 9),
)
def test_repeats_of_any_length_are_made_or_refused(n, seed, length):
    found = tried(induction, characters(), n=n, seed=seed, length=length)
    if not is_refused(found):
        assert len(found) == n and found.n_dropped == 0
