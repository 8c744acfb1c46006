"""Named training recipes: model, optimiser, number of steps, checkpoint schedule."""

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from toy_tasks.checks import check_fields
from toy_tasks.config import ToyConfig
from toy_tasks.jsonable import ADDED_LATER, checked_fields, json_fields

Decay = Literal["none", "cosine"]


@dataclass(frozen=True)
class Preset:
    """How to train: everything that decides the weights, but the task and the seed.

    Vary one with `dataclasses.replace(PRESETS["bb-cpu"], steps=500)`.

    Args:
        name: what results call it.
        model: sizes; d_vocab=0: the task's.
        steps: optimiser steps.
        batch: sequences a step, each of model.n_ctx positions.
        lr: largest step size.
        optimizer: "adamw" or "sgd".
        betas: of AdamW.
        momentum: of SGD.
        weight_decay: of either.
        dtype: "float32", or "bfloat16" for the products only.
        checkpoints: about so many, log-spaced, or these steps.
        log_every: steps between lines of log.jsonl.
        save_every: steps between saves of the training state.
        warmup: steps from lr 0, linear.
        decay: of lr afterwards, "none" or "cosine".
        n_sequences: all there is to train on, so many sequences over and over; None:
            fresh ones at every step.

    Raises:
        ValueError: a number out of range, an unknown optimiser or dtype.

    Examples:
        >>> from dataclasses import replace
        >>> from toy_tasks import PRESETS
        >>> short = replace(PRESETS["bb-cpu"], steps=100, checkpoints=(0, 50))
        >>> short.checkpoint_steps(), short.rate(0)
        ([0, 50, 100], 0.006)
    """

    name: str
    model: ToyConfig
    steps: int
    batch: int
    lr: float
    optimizer: Literal["adamw", "sgd"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.99)
    momentum: float = 0.9
    weight_decay: float = 1e-4
    dtype: Literal["float32", "bfloat16"] = "float32"
    checkpoints: int | tuple[int, ...] = 40
    log_every: int = 10
    save_every: int = 200
    warmup: int = field(default=0, metadata=ADDED_LATER)
    decay: Decay = field(default="none", metadata=ADDED_LATER)
    # All there is to train on: so many sequences, drawn from the run's seed and
    # repeated in a new order each time round. None: fresh ones at every step.
    n_sequences: int | None = field(default=None, metadata=ADDED_LATER)

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("steps", "batch", "log_every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"Preset: {name}={getattr(self, name)}. It must be at least 1."
                )
        for name, allowed in (
            ("optimizer", ("adamw", "sgd")),
            ("dtype", ("float32", "bfloat16")),
            ("decay", ("none", "cosine")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"Preset: {name}={getattr(self, name)!r}. Allowed: "
                    f"{' or '.join(map(repr, allowed))}."
                )
        if not 0 < self.lr < math.inf:
            raise ValueError(
                f"Preset: lr={self.lr}. The step size must be above 0, and finite."
            )
        for name, value, most in (
            ("betas", min(self.betas), 1.0),
            ("betas", max(self.betas), 1.0),
            ("momentum", self.momentum, math.inf),
            ("weight_decay", self.weight_decay, math.inf),
        ):
            if not 0 <= value < most:
                raise ValueError(
                    f"Preset: {name}={getattr(self, name)}. Allowed: from 0 to below "
                    f"{most}."
                )
        if not 0 <= self.warmup < self.steps:
            raise ValueError(
                f"Preset: warmup={self.warmup} of {self.steps} steps. Allowed: 0 "
                f"(none) to {self.steps - 1}."
            )
        if self.n_sequences is not None and self.n_sequences < 1:
            raise ValueError(
                f"Preset: n_sequences={self.n_sequences}. Allowed: 1 and more, or None "
                "for fresh sequences at every step."
            )
        if isinstance(self.checkpoints, tuple):
            outside = [s for s in self.checkpoints if not 0 <= s <= self.steps]
            if outside:
                raise ValueError(
                    f"Preset: checkpoints {outside} lie outside the run. Allowed: "
                    f"0 (before the first step) to {self.steps} (steps)."
                )
        elif self.checkpoints < 1:
            raise ValueError(
                f"Preset: checkpoints={self.checkpoints}. Pass at least 1, or the "
                "steps themselves as a tuple."
            )

    def rate(self, step: int) -> float:
        """Step size of the update after `step` earlier ones; cosine falls to 0.

        Args:
            step: updates made before.
        """
        if step < self.warmup:
            return self.lr * (step + 1) / (self.warmup + 1)
        if self.decay == "none":
            return self.lr
        done = (step - self.warmup) / (self.steps - self.warmup)
        return self.lr * (1 + math.cos(math.pi * done)) / 2

    def checkpoint_steps(self) -> list[int]:
        """Steps whose weights are kept, ascending; the last step always is."""
        if isinstance(self.checkpoints, tuple):
            return sorted({*self.checkpoints, self.steps})
        return sorted({*log_spaced(self.steps, self.checkpoints), self.steps})

    def to_json(self) -> dict[str, Any]:
        """All fields, as JSON values."""
        return json_fields(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Preset":
        """Rebuild what `to_json` wrote.

        Args:
            data: what `to_json` gave.

        Raises:
            ValueError: a field is unknown or missing.
        """
        values = checked_fields(cls, data)
        return cls(**{**values, "model": ToyConfig.from_json(values["model"])})


def log_spaced(steps: int, n: int) -> list[int]:
    """0 and about `n` steps from 1 to `steps`, evenly spaced in the logarithm."""
    return [0, *np.unique(np.geomspace(1, steps, n).round().astype(int)).tolist()]


# Planted: operands can reach the answer in layer 2 alone (docstring of ToyConfig).
# The small ones are for Sums(10), the others for Sums(20).
def _sums(
    name: str, width: int, heads: int, steps: int, batch: int, *, planted: bool
) -> Preset:
    model = ToyConfig(
        n_layers=4,
        n_heads=heads,
        d_model=width,
        d_head=width // heads,
        d_mlp=4 * width,
        n_ctx=7,
        norm="rms",
        carriers=("self", "self", "peek", "self") if planted else None,
    )
    return Preset(
        name,
        model,
        steps,
        batch,
        lr=4e-3,
        weight_decay=1.0,  # at 1e-4 full attention learnt Sums(10) by heart: .93
        checkpoints=10,
        warmup=50,
        decay="cosine",
    )


_PAPER = ToyConfig(d_model=256, d_head=256, d_mlp=1024, n_ctx=256)


def _text(
    name: str, model: ToyConfig, steps: int, batch: int, lr: float, **options: Any
) -> Preset:
    """A small language model, for `SourceText`; optimiser of arXiv:2410.10781."""
    model = replace(model, norm="rms", positions="rotary")
    return Preset(
        name, model, steps, batch, lr, betas=(0.9, 0.95), checkpoints=20, warmup=100,
        **options,
    )  # fmt: skip


# With weight decay .5 a sink forms in two minutes (docs/results/emergence-text).
_SMALL = ToyConfig(n_layers=3, n_heads=8, d_model=64, d_head=8, d_mlp=256, n_ctx=64)
# Between that and the 60M model of arXiv:2410.10781, which takes more text.
_LARGE = ToyConfig(n_layers=8, n_heads=8, d_model=512, d_head=64, d_mlp=2048, n_ctx=256)

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("bb-cpu", ToyConfig(), steps=1500, batch=64, lr=6e-3),
        Preset("bb3-cpu", ToyConfig(n_layers=3), steps=2500, batch=64, lr=6e-3),
        Preset("bb-sgd", ToyConfig(), steps=4000, batch=64, lr=0.03, optimizer="sgd"),
        Preset("bb-relu", ToyConfig(attention="relu"), steps=3000, batch=64, lr=3e-3),
        # The published sizes and step numbers; for a GPU.
        Preset("bb-paper", _PAPER, steps=10_000, batch=512, lr=3e-4, checkpoints=100),
        _text(
            "text-cpu",
            _SMALL,
            5000,
            8,
            1e-2,
            decay="cosine",
            weight_decay=0.2,
            dtype="bfloat16",
        ),
        _text("text-gpu", _LARGE, 20_000, 64, 4e-4, dtype="bfloat16", weight_decay=0.1),
        _sums("sums-planted", 64, 4, 800, 256, planted=True),
        _sums("sums-planted-small", 48, 2, 400, 128, planted=True),
        _sums("sums-free", 64, 4, 800, 256, planted=False),
        _sums("sums-free-small", 64, 4, 400, 128, planted=False),
    )
}
"""Recipes by name; docs/toy-presets.md shows what each was measured to do.

Examples:
    >>> from toy_tasks import PRESETS
    >>> PRESETS["bb-cpu"].steps, PRESETS["bb-cpu"].model.n_layers
    (1500, 1)
"""
