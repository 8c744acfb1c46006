"""Where the knobs are turned: Bigram-Backcopy, and a small language model.

A bed is a base recipe and the values that each knob takes on it. Both beds have the
same knobs, so that one table of trends serves them.

Source: the ablations of Gu et al. 2024 (arXiv:2410.10781), their values scaled.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from toy_tasks import PRESETS, BigramBackcopy, Preset, SourceText
from toy_tasks.task import Task


@dataclass(frozen=True)
class Bed:
    """A base recipe, and what its knobs can be set to.

    Values are strings as they stand in the names of settings: "lr 2e-4". The base's
    own value of each is no part of them.
    """

    name: str
    text: str  # what is learnt, for headings
    base: Preset
    quick: Preset  # the base's small form
    task: Callable[..., Task]  # of n_bos, bos_at, random_at; these are drawn from it
    lr: tuple[str, ...]
    steps: tuple[str, ...]
    data: tuple[str, ...]  # sequences there are; the base has fresh ones
    decay: tuple[str, ...]
    window: tuple[str, ...]
    prefix: int
    seeds: int  # how many, unless told
    quick_settings: tuple[str, ...]
    notes: Mapping[str, str] = field(default_factory=dict)
    """Trend to what to keep in mind of it here."""
