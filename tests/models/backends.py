"""Every backend, for the suite that a measurement can't tell apart."""

from typing import Any

import pytest

from mechsink.models.bridge import BridgeModel
from mechsink.models.toy import ToyModel
from mechsink.models.trace import TraceModel
from mechsink.run import Model
from tests.models.families import FAMILIES, MORE, NO_BRIDGE, tiny
from toy_tasks import ToyConfig, ToyTransformer

SMALL = {"d_vocab": 80, "n_layers": 3, "d_model": 32, "d_head": 8, "n_heads": 4}
TOYS: dict[str, ToyConfig] = {
    "toy": ToyConfig(**SMALL),
    "toy_gqa_relu": ToyConfig(**SMALL, n_kv_heads=2, attention="relu"),
    "toy_rotary": ToyConfig(**SMALL, n_kv_heads=2, positions="rotary"),
    "toy_alibi": ToyConfig(**SMALL, positions="alibi"),
    "toy_carriers": ToyConfig(**SMALL, carriers=("self", "peek", "full")),
}
TRACED = [f"nnsight_{family}" for family in (*FAMILIES, *MORE)]
BACKENDS = [*FAMILIES, *TOYS]


def matrix(name: str) -> Any:
    return pytest.param(name, marks=pytest.mark.matrix)


EVERY = [
    *BACKENDS,
    *(
        name if name in ("nnsight_gpt2", "nnsight_llama") else matrix(name)
        for name in TRACED
    ),
    *(matrix(family) for family in MORE if family not in NO_BRIDGE),
]
"""Backends by family for `parametrize`: all, most of them for `make test` alone."""
_made: dict[str, Model] = {}


def load(name: str) -> Model:
    """A model of that kind, the same one within a test session."""
    if name not in _made:
        _made[name] = _make(name)
    return _made[name]


def _make(name: str) -> Model:
    if name in TOYS:
        return ToyModel(ToyTransformer(TOYS[name]).eval())
    if name in TRACED:
        family = name.removeprefix("nnsight_")
        return TraceModel(tiny(family), name=family)
    return BridgeModel(tiny(name), name=name)
