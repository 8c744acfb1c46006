"""Knobs of "When Attention Sink Emerges", as settings on Bigram-Backcopy.

Each setting turns one knob of the base: one layer, one head, 64 tokens, AdamW,
32,000 sequences. Smaller than the preset bb-cpu in its MLP, batch and steps, so that
all settings and three seeds take some half an hour of one core.

Source: the ablations of Gu et al. 2024 (arXiv:2410.10781), their values scaled.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from mechsink.experiments.grids.jobs import Setting
from toy_tasks import PRESETS, BigramBackcopy, Preset
from toy_tasks.operators import OPERATORS, Operator, Window

BASE = replace(
    PRESETS["bb-cpu"],
    model=replace(PRESETS["bb-cpu"].model, d_mlp=128),
    steps=1000,
    batch=32,
)

LR = {"lr 2e-4": 2e-4, "lr 6e-4": 6e-4, "lr 2e-3": 2e-3, "base": BASE.lr}
STEPS = {"steps 125": 125, "steps 250": 250, "steps 500": 500, "base": BASE.steps}
DATA = {
    "data 32": 32,
    "data 256": 256,
    "data 2048": 2048,
    "base": BASE.steps * BASE.batch,  # fresh ones at every step
}
"""Name to sequences there are."""
DECAY = {"decay 0": 0.0, "decay 0.1": 0.1, "decay 0.5": 0.5, "decay 2": 2.0,
         "decay 5": 5.0}  # fmt: skip
"""Weight decay; lr x decay x steps is near the published one at the same value."""
TOKENS: Mapping[str, dict[str, Any]] = {
    "no bos": {"n_bos": 0},
    "2 bos": {"n_bos": 2},
    "bos at 2": {"n_bos": 0, "bos_at": 2},
    "bos at 5": {"n_bos": 0, "bos_at": 5},
    "random 0": {"n_bos": 0, "random_at": (0, 1)},
    "random 0-1": {"n_bos": 0, "random_at": (0, 2)},
}
"""What stands at the first positions; the base has `<s>` at 0."""
PREFIX: Mapping[str, tuple[int, int]] = {
    "prefix 5": (5, 1),
    "prefix 5, no bos": (5, 0),
}
"""Tokens that see each other, and whether `<s>` is the first of them."""
WINDOW = {"window 4": 4, "window 16": 16, "window 32": 32}
POSITIONS = ("none", "sinusoidal", "rotary", "alibi", "relative")
BIASES = ("key-bias", "kv-bias", "v-bias", "sink-token")
NORMALISED = ("sigmoid-sum", "elu-features-sum")
LOOSE = ("sigmoid", "elu", "linear", "mlp-clamped", "relu")

KNOBS: Mapping[str, tuple[str, ...]] = {
    "learning rate": tuple(LR),
    "steps": tuple(STEPS),
    "data": tuple(DATA),
    "weight decay": ("base", *DECAY),
    "tokens": ("base", *TOKENS),
    "prefix": ("base", *PREFIX),
    "window": ("base", *WINDOW),
    "positions": ("base", *(f"positions {p}" for p in POSITIONS)),
    "biases": ("base", *BIASES),
    "operators": ("base", *NORMALISED, *LOOSE),
}
"""Knob to the names of its settings; "base" is in every one."""

QUICK = ("base", "steps 125", "bos at 2", "linear")
"""The settings of the quick form."""


def setting(name: str, quick: bool = False) -> Setting:
    """The setting of that name; quick: 32 tokens and 0.4 of the steps.

    Raises:
        KeyError: no such setting.
    """
    preset, task = _recipe(name)
    if quick:
        model = replace(preset.model, n_ctx=32)
        steps = round(0.4 * preset.steps)
        preset = replace(preset, steps=steps, batch=48, model=model)
    preset = replace(preset, checkpoints=(preset.steps,))
    return Setting(replace(_text(), **task), preset)


@cache
def _text() -> BigramBackcopy:
    return BigramBackcopy.from_text()  # counting takes a tenth of a second


def _recipe(name: str) -> tuple[Preset, dict[str, Any]]:
    """The base with one knob turned: preset, and options of the task."""
    if name == "base":
        return BASE, {}
    if name in LR:
        return replace(BASE, lr=LR[name]), {}
    if name in STEPS:
        return replace(BASE, steps=STEPS[name]), {}
    if name in DATA:
        return replace(BASE, n_sequences=DATA[name]), {}
    if name in DECAY:
        return replace(BASE, weight_decay=DECAY[name]), {}
    if name in TOKENS:
        return BASE, dict(TOKENS[name])
    if name in PREFIX:
        prefix, n_bos = PREFIX[name]
        return _model(prefix=prefix), {"n_bos": n_bos}
    if name in WINDOW:
        return _model(operators=Operator(carrier=Window(WINDOW[name]))), {}
    if name.startswith("positions "):
        return _model(positions=name.removeprefix("positions ")), {}
    if name == "relu":  # faster than the operator of that name, and the same
        return _model(attention="relu"), {}
    return _model(operators=OPERATORS[name]), {}


def _model(**options: Any) -> Preset:
    return replace(BASE, model=replace(BASE.model, **options))
