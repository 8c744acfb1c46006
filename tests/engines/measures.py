"""A tiny model, pairs, and measurements that die or fail on purpose."""

import os
import signal
from pathlib import Path

import torch

import mechsink as ms
from mechsink.models.toy import ToyModel
from mechsink.prompts import PromptPairs
from toy_tasks import ToyConfig
from toy_tasks.transformer import ToyTransformer

N_PAIRS = 5


def toy_model(seed: int = 0) -> ToyModel:
    config = ToyConfig(d_vocab=12, n_layers=2, n_heads=2, d_model=8, d_head=4, n_ctx=8)
    return ToyModel(ToyTransformer(config, seed=seed).eval(), name="tiny")


def pairs(n: int = N_PAIRS) -> PromptPairs:
    draw = torch.Generator().manual_seed(1)
    clean = [torch.randint(12, (5 + i % 2,), generator=draw) for i in range(n)]
    corrupted = [torch.randint(12, (len(row),), generator=draw) for row in clean]
    answers = torch.arange(n) % 12
    return PromptPairs(clean, corrupted, answers, (answers + 5) % 12)


def dies_once(model, prompts, metric, *, at, flag):
    """The first worker that meets pair `at` is killed."""
    if torch.equal(prompts.clean[0], pairs().clean[at]) and not Path(flag).exists():
        Path(flag).write_text("")
        os.kill(os.getpid(), signal.SIGKILL)
    return ms.patch_sweep(model, prompts, metric)


def dies_always(model, prompts, metric, *, at):
    """Every worker that meets pair `at` is killed."""
    if torch.equal(prompts.clean[0], pairs().clean[at]):
        os.kill(os.getpid(), signal.SIGKILL)
    return ms.patch_sweep(model, prompts, metric)


def fails_at(model, prompts, metric, *, at, counted=None):
    """Pair `at` is an error; each call leaves a file in `counted`."""
    if counted is not None:
        name = "-".join(map(str, prompts.clean[0].tolist()))
        (Path(counted) / name).write_text("")
    if at is not None and torch.equal(prompts.clean[0], pairs().clean[at]):
        raise ValueError("no such pair")
    return ms.patch_sweep(model, prompts, metric)


def logits(model, tokens, advance):
    """As lists: tensors would travel by shared memory."""
    return model.run(tokens).logits.float().tolist()
