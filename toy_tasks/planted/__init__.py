"""Transformers built by hand, whose circuits are known edge by edge."""

from collections.abc import Callable
from functools import partial

from toy_tasks.planted.backcopy import backcopy, backcopy_task
from toy_tasks.planted.case import Planted
from toy_tasks.planted.duplicate import duplicate_token
from toy_tasks.planted.gates import and_gate, or_gate
from toy_tasks.planted.induction import induction
from toy_tasks.planted.letters import LABEL_POSITIONS, correct_letter
from toy_tasks.planted.noisy import NoisyGate, noisy_gate
from toy_tasks.planted.words import Words

_BUILDERS: dict[str, Callable[..., Planted]] = {
    "induction": induction,
    "duplicate": duplicate_token,
    "and": and_gate,
    "or": or_gate,
    "backcopy": backcopy,
    "letter": correct_letter,
}

PLANTED: dict[str, Callable[..., Planted]] = {
    name if variant == "plain" else f"{name}-{variant}": partial(build, variant=variant)
    for name, build in _BUILDERS.items()
    for variant in ("plain", "grouped", "rms")
}
"""Every case with moderate attention, as a function of n_prompts, seed, ..

Examples:
    >>> from toy_tasks import PLANTED
    >>> len(PLANTED), sorted(PLANTED["and"](n_prompts=4).edges)[0]
    (18, ('a0.h0', 'm0'))
"""

SATURATED: dict[str, Callable[..., Planted]] = {
    f"{name}-saturated": partial(build, saturated=True)
    for name, build in PLANTED.items()
}
"""The same with saturated attention (gates: a steep gate), reported apart."""

__all__ = [
    "LABEL_POSITIONS",
    "PLANTED",
    "SATURATED",
    "NoisyGate",
    "Planted",
    "Words",
    "and_gate",
    "backcopy",
    "backcopy_task",
    "correct_letter",
    "duplicate_token",
    "induction",
    "noisy_gate",
    "or_gate",
]
