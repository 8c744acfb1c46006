"""What the study of sink dynamics follows: paths of the reduced model and of toys.

Source: after the theory of Guo et al. 2024 (arXiv:2410.13835).
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mechsink.experiments.formation.recorder import FormationRecorder
from toy_tasks import BigramBackcopy, Preset, ToyConfig, train
from toy_tasks.dynamics.reduced import SinkFlow, reduced_dynamics
from toy_tasks.dynamics.toy import random_table, random_task, sink_toy, train_sink

VOCAB, SCALE = 10, 6.0
UNSEEN = 2**31
"""Seed of the sequences that are measured; training draws from other ones."""


def same_writes() -> Any:
    """What the others write where it is the same on every query, logits."""
    others = np.zeros((VOCAB, VOCAB))
    others[:, 0] = SCALE
    return others


def reduced_path(
    seed: int, until: float, same: bool = False, step: float | None = None
) -> SinkFlow:
    """The reduced model's flow, or descent with `step`; `same`: o_v = o."""
    return reduced_dynamics(
        random_table(VOCAB, seed),
        np.full(VOCAB, 1 / VOCAB),
        others=same_writes() if same else SCALE * np.eye(VOCAB),
        until=until,
        step=step,
    )


def apart(flow: SinkFlow, descent: SinkFlow) -> float:
    """Largest difference of mean alpha once descent's first steps are done."""
    later = descent.time >= 1000
    at = np.interp(np.log(descent.time), np.log(flow.time), flow.mean_alpha)
    return float(np.abs(descent.mean_alpha - at)[later].max())


def of_flow(source: str, seed: int, flow: SinkFlow) -> pd.DataFrame:
    """The three quantities of a path of the reduced model."""
    return pd.DataFrame(
        {
            "source": source,
            "seed": seed,
            "time": flow.time,
            "alpha": flow.mean_alpha,
            "beta": flow.beta_norm,
            "loss": flow.loss,
        }
    )


def planted_path(seed: int, steps: int, lr: float) -> tuple[pd.DataFrame, int]:
    """A planted toy's training; and after how many updates its loss was higher."""
    task = random_task(seed)
    model = sink_toy(task)
    recorder = _recorder(task, model.config.n_ctx)
    losses = train_sink(
        model,
        task,
        steps=steps,
        lr=lr,
        seed=seed,
        callback=recorder,
        callback_steps=_moments(steps),
    )
    rises = int((losses.diff() > 0).sum())
    return _of_recorder("planted", seed, lr, recorder), rises


def whole_path(seed: int, preset: Preset, folder: Path) -> pd.DataFrame:
    """A toy trained whole, measured at its checkpoints."""
    task = random_task(seed)
    run = train(task, preset, folder, seed, progress=False)
    recorder = _recorder(task, preset.model.n_ctx)
    for step in preset.checkpoint_steps():
        if step:
            recorder(step, run.model(step), task)
    return _of_recorder("whole", seed, preset.lr, recorder)


def whole_preset(quick: bool) -> Preset:
    """Attention-only, layer norm, plain SGD."""
    steps = 300 if quick else 4000
    model = ToyConfig(d_model=32, d_head=32, n_ctx=24, mlp_layers=())
    return Preset(
        "sgd-attention-only",
        model,
        steps=steps,
        batch=32,
        lr=0.3,
        optimizer="sgd",
        momentum=0.0,
        weight_decay=0.0,
        checkpoints=tuple(_moments(steps)),
    )


def _moments(steps: int) -> list[int]:
    """Steps to measure at: two an octave from 8 on, six in the last two octaves."""
    early = steps * 2.0 ** -np.arange(0, np.log2(steps / 8), 0.5)
    late = steps * 2.0 ** -np.arange(0, 2.01, 1 / 6)
    return sorted({round(step) for step in (*early, *late)})


def _recorder(task: BigramBackcopy, n_ctx: int) -> FormationRecorder:
    return FormationRecorder(task.sample(64, n_ctx + 1, UNSEEN), task=task)


def _of_recorder(
    source: str, seed: int, lr: float, recorder: FormationRecorder
) -> pd.DataFrame:
    """The three quantities of a one-layer, one-head toy, by the public measures."""
    names = {"sink_logit": "alpha", "value_norm": "beta", "markov_excess": "loss"}
    wide = recorder.result().table.pivot_table(
        index="step", columns="measure", values="value", aggfunc="first"
    )
    found = pd.DataFrame({new: wide[old] for old, new in names.items()}).reset_index()
    found.insert(0, "time", found.pop("step") * lr)
    found.insert(0, "seed", seed)
    found.insert(0, "source", source)
    return found
