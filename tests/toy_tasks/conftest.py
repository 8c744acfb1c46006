from dataclasses import replace

import pytest
import torch

from toy_tasks import PRESETS, BigramBackcopy, Preset, ToyConfig


@pytest.fixture(scope="session")
def task() -> BigramBackcopy:
    """The default task: English, 66 tokens, triggers space, e and t."""
    return BigramBackcopy.from_text()


@pytest.fixture
def abc() -> BigramBackcopy:
    """Three letters, worked by hand; a is the trigger.

    From b: a or b, evenly; from c: a or c, evenly; after a the letter before it.
    """
    table = torch.tensor(
        [[0, 0.5, 0.5, 0], [0.5, 0.5, 0, 0], [0.5, 0, 0.5, 0], [0.4, 0.4, 0.2, 0]],
        dtype=torch.float64,
    )
    return BigramBackcopy(["a", "b", "c", "<s>"], table, table[3], triggers=[0])


@pytest.fixture
def tiny() -> Preset:
    """Trains in under a second; saves often."""
    return replace(
        PRESETS["bb-cpu"],
        name="tiny",
        model=ToyConfig(d_model=16, d_head=8, d_mlp=32, n_ctx=12),
        steps=60,
        batch=8,
        checkpoints=5,
        save_every=10,
    )
