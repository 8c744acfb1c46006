"""Every backend, for the suite that a measurement can't tell apart."""

from collections.abc import Callable

from mechsink.models.bridge import BridgeModel
from mechsink.models.toy import ToyModel
from mechsink.run import Model
from tests.models.families import FAMILIES, tiny
from toy_tasks import ToyConfig, ToyTransformer

SMALL = {"d_vocab": 80, "n_layers": 3, "d_model": 32, "d_head": 8, "n_heads": 4}
TOYS: dict[str, ToyConfig] = {
    "toy": ToyConfig(**SMALL),
    "toy_gqa_relu": ToyConfig(**SMALL, n_kv_heads=2, attention="relu"),
    "toy_rotary": ToyConfig(**SMALL, n_kv_heads=2, positions="rotary"),
    "toy_alibi": ToyConfig(**SMALL, positions="alibi"),
    "toy_carriers": ToyConfig(**SMALL, carriers=("self", "peek", "full")),
}
BACKENDS = [*FAMILIES, *TOYS]
_made: dict[str, Model] = {}


def load(name: str) -> Model:
    """A model of that kind, the same one within a test session."""
    if name not in _made:
        make: Callable[[], Model] = (
            (lambda: ToyModel(ToyTransformer(TOYS[name]).eval()))
            if name in TOYS
            else (lambda: BridgeModel(tiny(name), name=name))
        )
        _made[name] = make()
    return _made[name]
