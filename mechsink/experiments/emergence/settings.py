"""Knobs of "When Attention Sink Emerges", as settings of a bed.

Each setting turns one knob of the bed's base, and is a `Setting` to train: a task and
a preset.

Source: the ablations of Gu et al. 2024 (arXiv:2410.10781).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mechsink.experiments.emergence.beds import Bed
from mechsink.experiments.grids.jobs import Setting
from toy_tasks.operators import OPERATORS, Window
from toy_tasks.operators.operator import Operator

POSITIONS = ("none", "learned", "sinusoidal", "rotary", "alibi", "relative")
BIASES = ("key-bias", "kv-bias", "v-bias", "sink-token")
NORMALISED = ("sigmoid-sum", "elu-features-sum")
LOOSE = ("sigmoid", "elu", "linear", "mlp-clamped", "relu")


@dataclass(frozen=True)
class Turn:
    """What a setting changes of its bed's base: fields of preset, model and task."""

    preset: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    task: Mapping[str, Any] = field(default_factory=dict)


BASE = Turn()
"""The base itself; it is in every knob."""
TOKENS: Mapping[str, Mapping[str, Any]] = {
    "no bos": {"n_bos": 0},
    "2 bos": {"n_bos": 2},
    "bos at 2": {"n_bos": 0, "bos_at": 2},
    "bos at 5": {"n_bos": 0, "bos_at": 5},
    "random 0": {"n_bos": 0, "random_at": (0, 1)},
    "random 0-1": {"n_bos": 0, "random_at": (0, 2)},
}
"""What stands at the first positions; the base has `<s>` at 0."""


def knobs(bed: Bed) -> dict[str, dict[str, Turn]]:
    """Knob to its settings, by name."""
    base = {"base": BASE}
    prefix = {"prefix": bed.prefix}
    return {
        "learning rate": {f"lr {v}": _preset(lr=float(v)) for v in bed.lr} | base,
        "steps": {f"steps {v}": _preset(steps=int(v)) for v in bed.steps} | base,
        "data": {f"data {v}": _preset(n_sequences=int(v)) for v in bed.data} | base,
        "weight decay": base
        | {f"decay {v}": _preset(weight_decay=float(v)) for v in bed.decay},
        "tokens": base | {name: Turn(task=task) for name, task in TOKENS.items()},
        "prefix": base
        | {
            f"prefix {bed.prefix}": Turn(model=prefix),
            f"prefix {bed.prefix}, no bos": Turn(model=prefix, task={"n_bos": 0}),
        },
        "window": base | {f"window {v}": _window(int(v)) for v in bed.window},
        "positions": base
        | {
            f"positions {name}": Turn(model={"positions": name})
            for name in POSITIONS
            if name != bed.base.model.positions
        },
        "biases": base | {name: _operator(OPERATORS[name]) for name in BIASES},
        "operators": base
        | {name: _operator(OPERATORS[name]) for name in (*NORMALISED, *LOOSE)}
        # Faster than the operator of that name, and the same.
        | {"relu": Turn(model={"attention": "relu"})},
    }


def setting(bed: Bed, name: str, quick: bool = False) -> Setting:
    """The setting of that name; quick: on the bed's small form, its steps scaled.

    Raises:
        KeyError: no such setting.
    """
    turn = {n: t for settings in knobs(bed).values() for n, t in settings.items()}[name]
    base = bed.quick if quick else bed.base
    changed = dict(turn.preset)
    if quick and "steps" in changed:
        changed["steps"] = round(changed["steps"] * base.steps / bed.base.steps)
    preset = replace(base, model=replace(base.model, **turn.model), **changed)
    preset = replace(preset, checkpoints=(preset.steps,))
    return Setting(bed.task(**turn.task), preset)


def _preset(**options: Any) -> Turn:
    return Turn(preset=options)


def _window(n: int) -> Turn:
    return _operator(Operator(carrier=Window(n)))


def _operator(operator: Operator) -> Turn:
    return Turn(model={"operators": operator})
