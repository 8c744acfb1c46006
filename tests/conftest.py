"""For all tests: one thread, and a trained toy that several files need."""

import os
import random
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from toy_tasks import PRESETS, Sums, train
from toy_tasks.runs import TrainRun

torch.set_num_threads(1)  # tiny models lose by waiting for a second


@pytest.hookimpl(tryfirst=True)  # before -m leaves anything out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave cases to `make test-all`, and to `make test`, as their marks say.

    The first case of a `first_case` test stays quick, the others are `matrix`. Of a
    test with `some_cases(n)`, n cases, drawn the same every time, go on as marked; the
    others are `slow`.
    """
    many: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("some_cases"):
            many.setdefault(item.nodeid.split("[")[0], []).append(item)
    for name, cases in many.items():
        (n,) = cases[0].get_closest_marker("some_cases").args  # type: ignore[union-attr]
        kept = random.Random(name).sample(cases, min(n, len(cases)))
        for item in cases:
            if item not in kept:
                item.add_marker(pytest.mark.slow)
    seen: set[str] = set()
    for item in items:
        if item.get_closest_marker("first_case") and not item.get_closest_marker(
            "slow"
        ):
            name = item.nodeid.split("[")[0]
            if name in seen:
                item.add_marker(pytest.mark.matrix)
            elif not item.get_closest_marker("matrix"):
                seen.add(name)


def pytest_terminal_summary(terminalreporter) -> None:
    """Say how many inputs the properties of tests/hostile were tried on."""
    reports = terminalreporter.stats.get("passed", [])
    tried = [
        n for r in reports for key, n in r.user_properties if key == "hostile_cases"
    ]
    if tried:
        terminalreporter.write_line(f"hostile input: {sum(tried):,} cases")


@pytest.fixture(scope="session")
def planted_sums(tmp_path_factory: pytest.TempPathFactory) -> TrainRun:
    """`sums-planted-small` on operands up to 9, trained once for all workers."""
    root: Path = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        root = root.parent  # shared by the workers
    with FileLock(root / "planted-sums.lock"):  # the second finds it trained
        return train(Sums(10), PRESETS["sums-planted-small"], root / "planted-sums")
