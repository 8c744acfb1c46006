"""A hundred sweeps in a row leave nothing behind: no tensors, no memory."""

import gc

import psutil
import pytest
import torch

from mechsink.interventions.patching import patch_sweep
from mechsink.metrics import logit_diff
from mechsink.models.bridge import BridgeModel
from mechsink.prompts import PromptPairs
from tests.models.families import tiny

MOST_GROWTH = 5 * 2**20
"""Bytes. Measured 2.2 to 3.0 million in sweeps 10 to 110, the allocator's own: 0.1 in
the 130 after them. A hundred base runs kept (4 prompts, 24 tokens, 4 residual streams
of 32, keys and values of 16 in 3 layers, 4 bytes each) would be 8.6 million."""


def live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


@pytest.mark.matrix
@pytest.mark.slow
def test_a_hundred_sweeps_leave_nothing_behind() -> None:
    generator = torch.Generator().manual_seed(3)
    clean, corrupted = torch.randint(0, 80, (2, 4, 24), generator=generator)
    pairs = PromptPairs(clean, corrupted, torch.tensor([5]), torch.tensor([9]))
    model = BridgeModel(tiny("llama"))
    process = psutil.Process()

    def sweeps(n: int) -> tuple[int, int]:
        for number in range(n):
            site = "z" if number % 2 else "resid_pre"
            patch_sweep(
                model, pairs, logit_diff, site, layers=[0, 2], positions=[3, 20]
            )
        tensors = live_tensors()  # collects first, so memory is what is really held
        return tensors, process.memory_info().rss

    tensors, memory = sweeps(10)
    more_tensors, more_memory = sweeps(100)
    assert more_tensors == tensors
    assert more_memory - memory < MOST_GROWTH
