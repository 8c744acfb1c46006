"""The same properties as users meet them: without the tests' shape checker.

There a value of a wrong type reaches the code, which must refuse it in words itself.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*more: str) -> str:
    """Run this folder's tests in a process of its own; what it printed."""
    args = ["-o", "addopts=", "-p", "no:cacheprovider", "-p", "no:xdist", "-q"]
    args += ["tests/hostile", "--deselect", "tests/hostile/test_as_users.py", *more]
    env = {key: value for key, value in os.environ.items() if key != "PYTEST_ADDOPTS"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *args],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.matrix
def test_a_few_inputs_without_the_shape_checker():
    assert re.search(r"[1-9]\d* passed", run("-k", "few"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_thousand_inputs_without_the_shape_checker():
    found = re.search(r"hostile input: ([\d,]+) cases", run("-k", "many"))
    assert found and int(found[1].replace(",", "")) >= 10_000
