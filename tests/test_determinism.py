"""The same call gives the same bits: twice in a process, and in two processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mechsink.models.bridge import BridgeModel
from tests.determinism import MEASUREMENTS, digests, table_digest
from tests.models.families import tiny

QUICK = ("patch_sweep", "ablate", "sink_scores")


@pytest.mark.parametrize(
    "name",
    [
        n if n in QUICK else pytest.param(n, marks=pytest.mark.matrix)
        for n in MEASUREMENTS
    ],
)
@pytest.mark.matrix
def test_twice_in_one_process(name) -> None:
    """Whatever the global generator has drawn in between."""
    model = BridgeModel(tiny("llama"), name="llama")
    once = table_digest(MEASUREMENTS[name](model).table)
    torch.manual_seed(99)
    torch.rand(7)
    assert table_digest(MEASUREMENTS[name](model).table) == once


@pytest.mark.matrix
def test_in_two_processes_with_different_hash_seeds() -> None:
    """Sets and dicts of strings come in another order there; no number may notice."""
    found = [digests()]
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-m", "tests.determinism"],
            env={**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"},
            cwd=Path(__file__).parent.parent,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout.splitlines()[-1]))
    for name in found[0]:
        assert found[1][name] == found[2][name] == found[0][name], name
