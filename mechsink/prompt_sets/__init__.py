"""Ready prompt sets: known behaviours as pairs that fit the tokenizer at hand.

Each task is a function of a model; it returns a `PromptSet`: aligned pairs, what
was dropped, and a way to measure the model's accuracy on them.
May import: sites, run, results, prompts, slots, metrics, models.

Examples:
    >>> case = ms.planted("induction")
    >>> found = ms.prompt_sets.induction(case.model, n=10, length=5, repeated=2)
    >>> found.accuracy(case.model).top
    1.0
"""

from collections.abc import Callable

from mechsink.prompt_sets.accuracy import Accuracy
from mechsink.prompt_sets.choices import multiple_choice
from mechsink.prompt_sets.few_shot_sums import sums
from mechsink.prompt_sets.indirect_objects import ioi
from mechsink.prompt_sets.later_years import YearsAbove, greater_than, years_above
from mechsink.prompt_sets.repeats import induction
from mechsink.prompt_sets.sets import PromptSet
from mechsink.prompt_sets.world_capitals import capitals

ALL: dict[str, Callable[..., PromptSet]] = {
    "ioi": ioi,
    "capitals": capitals,
    "sums": sums,
    "greater_than": greater_than,
    "induction": induction,
    "multiple_choice": multiple_choice,
}
"""Every task by its name; each takes (model, n=, seed=) and options of its own.

Examples:
    >>> list(ms.prompt_sets.ALL)
    ['ioi', 'capitals', 'sums', 'greater_than', 'induction', 'multiple_choice']
"""

__all__ = [
    "ALL",
    "Accuracy",
    "PromptSet",
    "YearsAbove",
    "capitals",
    "greater_than",
    "induction",
    "ioi",
    "multiple_choice",
    "sums",
    "years_above",
]
