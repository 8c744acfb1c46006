"""Measurements whose tables must come out the same, bit for bit; run as a script too.

As a script it prints one digest a measurement, for a process of its own.
"""

import hashlib
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import mechsink as ms
from mechsink.models.bridge import BridgeModel
from mechsink.run import Model
from tests.models.families import tiny
from toy_tasks import PRESETS, BigramBackcopy, train


def draw(n: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 80, (n, 8), generator=generator)


def pairs() -> ms.PromptPairs:
    given = torch.arange(5, 9)
    return ms.PromptPairs(draw(4, 0), draw(4, 1), answers=given, wrong=given + 30)


MEASUREMENTS: dict[str, Callable[[Model], Any]] = {
    "patch_sweep": lambda m: ms.patch_sweep(m, pairs(), ms.logit_diff),
    "patch_sweep z": lambda m: ms.patch_sweep(m, pairs(), ms.logit_diff, "z"),
    "cells": lambda m: ms.patch_sweep(
        m, pairs(), ms.logit_diff, layers=[1], engine="cells"
    ),
    "ablate": lambda m: ms.ablate(
        m, pairs(), [ms.Site("z", 1)], ms.resample(draw(5, 2), seed=3), ms.logit_diff
    ),
    "eap_ig": lambda m: ms.eap_ig(m, pairs(), ms.logit_diff, steps=2, seed=1),
    "logit_attribution": lambda m: ms.logit_attribution(m, pairs()),
    "sink_scores": lambda m: ms.sink_scores(m, draw(4, 0)),
    "active_dormant": lambda m: ms.active_dormant(
        m, {"a": draw(4, 0), "b": draw(4, 1)}, n_pos=8, n_confirm=2, seed=1
    ),
    "noise_floor": lambda m: ms.noise_floor(m, pairs(), ms.logit_diff),
}


def table_digest(table: pd.DataFrame) -> str:
    """Of every cell to the last bit, and of the order of rows and columns."""
    digest = hashlib.sha256(",".join(map(str, table.columns)).encode())
    for name in table.columns:
        column = table[name]
        if column.dtype.kind == "f":
            digest.update(column.to_numpy(dtype="float64").tobytes())
        else:
            digest.update("\0".join(map(str, column)).encode())
    return digest.hexdigest()


def trained() -> str:
    """Digest of a toy's weights and log after a few steps."""
    preset = replace(PRESETS["bb-cpu"], steps=3, batch=4, checkpoints=(3,))
    with tempfile.TemporaryDirectory() as folder:
        run = train(
            BigramBackcopy.from_text(), preset, Path(folder), seed=5, progress=False
        )
        digest = hashlib.sha256()
        for name, weight in sorted(run.model().state_dict().items()):
            digest.update(name.encode())
            digest.update(weight.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def digests() -> dict[str, str]:
    """One a measurement, and one of training, on a model made anew."""
    model = BridgeModel(tiny("llama"), name="llama")
    found = {}
    for name, measure in MEASUREMENTS.items():
        result = measure(model)
        found[name] = table_digest(result.table)
        if noise := getattr(result, "noise", None):
            found[f"noise of {name}"] = str([value.hex() for value in noise])
    return {**found, "train": trained()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.stdout.write(json.dumps(digests()))
