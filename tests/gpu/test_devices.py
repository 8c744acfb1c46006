"""No measurement mixes devices: shown without a GPU, by a device that is only said."""

import json
import os
import subprocess
import sys

import pytest

from tests.gpu.audit import BACKENDS

OFTEN = ("two transformer_lens", "training")
"""Audits of `make test`: each takes up to a minute, and two devices find most."""

DETECTS = """
import os, torch
from tests.gpu.fake_device import MixedDevicesError, fake_device

def refused(kind, call):
    try:
        call()
    except kind:
        return
    raise AssertionError(f"{kind} expected")

with fake_device() as device:
    x = torch.arange(4.0, device=device, requires_grad=True)
    assert x.device == device and (x * 2).device == device
    refused(MixedDevicesError, lambda: x + torch.ones(4))
    refused(MixedDevicesError, lambda: torch.where(torch.ones(4).bool(), x, 0.0))
    refused(MixedDevicesError, lambda: x + torch.arange(4, device="fake:1"))
    refused(MixedDevicesError, lambda: torch.ones(4)[torch.arange(2, device=device)])
    refused(MixedDevicesError, lambda: torch.rand(
        3, device=device, generator=torch.Generator().manual_seed(0)))
    refused(TypeError, lambda: x.detach().numpy())
    refused(TypeError, lambda: __import__("numpy").asarray(x.detach()))
    assert (x + torch.tensor(1.0)).tolist() == [1, 2, 3, 4]  # a number may come along
    assert x[torch.tensor([1, 3])].tolist() == x[[1, 3]].tolist() == [1, 3]
    assert x.detach().cpu().numpy().tolist() == [0, 1, 2, 3]
    (x * x).sum().backward()
    assert x.grad.device == device and x.grad.tolist() == [0, 2, 4, 6]
    moved = torch.ones(2).to(device)
    moved.copy_(torch.zeros(2))
    assert moved.tolist() == [0, 0]
print("fine", flush=True)
os._exit(0)
"""


def python(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=850,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.matrix
def test_the_fake_device_minds_what_it_is_mixed_with() -> None:
    assert python("-c", DETECTS).strip() == "fine"


@pytest.mark.matrix
@pytest.mark.parametrize(
    "backend",
    [
        name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow)
        for name in BACKENDS
    ],
)
@pytest.mark.some_cases(1)
def test_no_measurement_mixes_devices(backend: str) -> None:
    found = json.loads(python("-m", "tests.gpu.audit", backend).splitlines()[-1])
    assert len(found) > 40
    assert {name: wrong for name, wrong in found.items() if wrong} == {}
