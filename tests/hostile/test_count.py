"""How many inputs the slow profile tries; each test asserts that it tried its own."""

import importlib
import warnings
from pathlib import Path

LEAST = 10_000


def test_the_slow_profile_tries_ten_thousand_inputs():
    planned = {}
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = importlib.import_module(f"tests.hostile.{path.stem}")
        for name, test in vars(module).items():
            if getattr(test, "__module__", "") == module.__name__:
                planned[module.__name__, name] = getattr(test, "many", 0)
    assert sum(planned.values()) >= LEAST
    assert sum(n > 0 for n in planned.values()) > 30
