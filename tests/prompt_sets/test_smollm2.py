"""The embedded model: all six sets align, and how good it is at each.

Floors are the lower ends of the 95 % intervals measured with n=100, seed 0, rounded
down to hold with the 40 pairs that are run here.
"""

from typing import Any

import pytest

import mechsink as ms
from mechsink import prompt_sets
from tests.prompt_sets.aligned import check_aligned, n_different

pytestmark = pytest.mark.pretrained
FLOORS = {  # name: share where the answer wins, mean clean logit difference
    "ioi": (0.85, 4.0),  # measured .95, 4.8
    "capitals": (0.90, 8.0),  # .99, 9.3
    "sums": (0.70, 2.5),  # .84, 3.7
    "greater_than": (0.90, 3.5),  # .99, 4.1
    "induction": (0.90, 9.0),  # .98, 10.1
}


@pytest.fixture(scope="module")
def smollm2() -> Any:
    return ms.load_model("smollm2")


@pytest.mark.parametrize("name", prompt_sets.ALL)
def test_a_hundred_pairs_align(smollm2: Any, name: str) -> None:
    made = prompt_sets.ALL[name](smollm2, 100)
    assert made.n_made == 100 and made.table["clean"].is_unique
    if name != "induction":
        check_aligned(smollm2, made)
    dropped = {
        "capitals": {"the answer is not one token after the prompt"},
        "sums": {"the answer is not one token after the prompt"},
        "multiple_choice": {"clean and corrupted have unequal numbers of tokens"},
    }
    assert {*made.dropped} == dropped.get(name, set())
    if name == "ioi":
        assert {*n_different(smollm2, made)} == {3}
    if name == "greater_than":
        assert made.settings["measured"] == "third digit"


@pytest.mark.parametrize("name", FLOORS)
@pytest.mark.some_cases(2)
def test_it_knows_five_of_the_tasks(smollm2: Any, name: str) -> None:
    found = prompt_sets.ALL[name](smollm2, 40).accuracy(smollm2)
    share, difference = FLOORS[name]
    assert found.beats_wrong >= share and found.clean >= difference
    assert found.corrupted < found.clean / 3


@pytest.mark.slow
def test_multiple_choice_is_beyond_it(smollm2: Any) -> None:
    # Measured .54 [.44, .63] with 100 pairs, and no effect of the question: so
    # little that a circuit found there would be one for the labels' frequencies.
    found = prompt_sets.multiple_choice(smollm2, 40).accuracy(smollm2)
    assert found.beats_wrong >= 0.4 and found.low < 0.5
    assert abs(found.clean - found.corrupted) < 0.3


def test_a_single_known_prompt(smollm2: Any) -> None:
    made = prompt_sets.capitals(smollm2, 500)
    at = made.table["clean"].tolist().index("The capital of France is")
    france = made.subset([at])
    found = france.accuracy(smollm2)
    token = smollm2.tokenizer(" Paris")["input_ids"]
    assert found.table["likeliest"].tolist() == token and found.top == 1.0
