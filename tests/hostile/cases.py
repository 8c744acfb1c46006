"""Properties that are tried on many drawn inputs, and how many they were.

Each property runs twice: on a few inputs among the quick tests, on many as a slow
test. The draw is the same every time, so that a green suite stays green.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir

set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "mechsink-hypothesis")

COUNTED = "hostile_cases"
"""Name of a test's property that says how many inputs it tried."""

Case = dict[str, Any]


def run_cases(
    body: Callable[..., None], n: int, kinds: Mapping[str, st.SearchStrategy[Any]]
) -> int:
    """Try a property on `n` inputs; how many were tried to the end."""
    done = 0

    def counted(**drawn: Any) -> None:
        nonlocal done
        body(**drawn)
        done += 1

    counted.__name__ = counted.__qualname__ = body.__name__
    chosen = settings(
        max_examples=n,
        deadline=None,
        database=None,
        derandomize=True,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=[*HealthCheck],
    )
    chosen(given(**kinds)(counted))()
    return done


def hostile(
    few: int, many: int, known: Sequence[Case] = (), **kinds: st.SearchStrategy[Any]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A property as a test: `few` inputs quickly, `many` in the slow profile.

    `known`: inputs that once failed; they are tried every time.
    """

    def wrap(body: Callable[..., None]) -> Callable[..., None]:
        numbers = [
            pytest.param(few, id="few"),
            pytest.param(many, id="many", marks=pytest.mark.slow),
        ]

        @pytest.mark.parametrize("n", numbers)
        def test(n: int, record_property: Callable[[str, object], None]) -> None:
            for case in known:
                body(**case)
            done = run_cases(body, n, kinds)
            assert done >= n, f"{done} inputs: there are no more of this kind"
            record_property(COUNTED, done + len(known))

        test.__name__ = test.__qualname__ = body.__name__
        test.__doc__ = body.__doc__
        test.__module__ = body.__module__
        test.many = many  # type: ignore[attr-defined]
        return test

    return wrap
