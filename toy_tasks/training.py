"""Train a toy transformer; a killed run goes on bit for bit where it was saved."""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from toy_tasks.presets import Preset
from toy_tasks.progress import progress_bar
from toy_tasks.repeats import Repeats
from toy_tasks.runs import TrainRun, checkpoint_path, claim, load_run
from toy_tasks.state import TrainingState
from toy_tasks.storage import locked, write_tensors
from toy_tasks.task import Task, TaskT
from toy_tasks.transformer import ToyTransformer

Callback = Callable[[int, ToyTransformer, TaskT], object]


def train(
    task: TaskT,
    preset: Preset,
    folder: str | Path,
    seed: int = 0,
    *,
    callbacks: Sequence[Callback[TaskT]] = (),
    callback_steps: Sequence[int] | None = None,
    device: str | torch.device | None = None,
    progress: bool | None = None,
) -> TrainRun:
    """Train into `folder`, or go on with the run that is there.

    Step s trains on `task.sequences(..., seed=(seed, s))`, or on the preset's
    `n_sequences` over and over, and on no target that a prefix shows. So a run is a
    function of task, preset and seed: called again after a kill it reaches the same
    bits, given the same machine, thread count and torch; called when finished it
    returns at once.

    Args:
        callbacks: called as callback(step, model, task) with the model in eval mode
            and no gradient. Steps that a resumed run has behind it are not repeated.
        callback_steps: when; by default the checkpoint steps.
        device: by default CUDA if there is one, else the CPU.
        progress: show a bar with rate and time left; None: on terminals, in notebooks.
        task: what is learnt.
        preset: how.
        folder: new, or with this very run in it.
        seed: of weights and data.

    Returns:
        The finished run.

    Raises:
        ValueError: the folder holds another run, or a damaged or foreign file.
        RuntimeError: another process is training there.
        OSError: the folder cannot be written.

    Examples:
        >>> from dataclasses import replace
        >>> from toy_tasks import PRESETS, train
        >>> from toy_tasks.planted import backcopy_task
        >>> preset = replace(PRESETS["bb-cpu"], steps=4, batch=4, log_every=2)
        >>> run = train(backcopy_task(), preset, "run", seed=0, progress=False)
        >>> [line["step"] for line in run.history]
        [1, 2, 4]
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    folder = Path(folder)
    with locked(folder):
        (folder / "checkpoints").mkdir(exist_ok=True)
        claim(folder, task, preset, seed)
        run_steps = preset.checkpoint_steps()
        state = TrainingState.start(task, preset, seed, folder, device)
        if state.step < preset.steps:
            _compare_threads(state, folder)
            calls = set(run_steps if callback_steps is None else callback_steps)
            with progress_bar(preset.steps, state.step, progress) as advance:
                for step in _steps(state, task, preset, seed, folder):
                    if step in calls:
                        _call(callbacks, step, state.model, task)
                    advance(step, state.log)
    return load_run(folder)


def _steps(
    state: TrainingState, task: Task, preset: Preset, seed: int, folder: Path
) -> Iterator[int]:
    """Train to the end, yielding the updates made: 0 first, unless resumed."""
    kept = set(preset.checkpoint_steps())
    device = state.model.W_E.device
    n_ctx = state.model.config.n_ctx
    pool = None
    if preset.n_sequences is not None:
        pool = Repeats.draw(task, preset.n_sequences, n_ctx, seed, device)

    def keep() -> None:
        if state.step in kept:
            path = checkpoint_path(folder, state.step)
            write_tensors(path, state.model.state_dict(), state.facts)

    if not state.resumed:
        keep()
        yield 0
    with _deterministic(device):
        while state.step < preset.steps:
            state.model.train()
            if pool is None:
                key = (seed, state.step)
                tokens = task.sequences(preset.batch, n_ctx, key, device)
            else:
                tokens = pool.batch(preset.batch, state.step)
            set_rate(state.optimizer, preset, state.step)
            n_targets = learnt_targets(task, preset.model.prefix, tokens.shape[1])
            loss = update(state.model, state.optimizer, tokens, preset.dtype, n_targets)
            state.step += 1
            is_last = state.step == preset.steps
            if state.step % preset.log_every == 0 or state.step == 1 or is_last:
                state.log.append({"step": state.step, "loss": loss.item()})
            keep()
            yield state.step
            if state.step % preset.save_every == 0 or is_last:
                state.save(folder)


def update(
    model: ToyTransformer,
    optimizer: torch.optim.Optimizer,
    tokens: Int[Tensor, "batch pos"],
    dtype: str = "float32",
    n_targets: int | None = None,
) -> Float[Tensor, ""]:
    """One optimiser step on next-token cross-entropy; the loss before it, nats.

    `n_targets`: how many last tokens are predicted; None for all but the first.
    """
    is_mixed = dtype == "bfloat16"
    with torch.autocast(tokens.device.type, torch.bfloat16, enabled=is_mixed):
        logits = model(tokens[:, :-1])
    targets = tokens[:, 1:]
    if n_targets is not None:
        logits, targets = logits[:, -n_targets:], targets[:, -n_targets:]
    loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
    extra = model.extra_loss()
    optimizer.zero_grad()
    (loss if extra is None else loss + extra).backward()
    optimizer.step()
    return loss.detach()


def learnt_targets(task: Task, prefix: int, length: int) -> int | None:
    """How many last tokens of a training sequence are learnt; None: all but the first.

    Those inside a prefix are left out: they would be seen. Token `prefix` is the first
    that counts, predicted from the prefix's last.

    Args:
        length: tokens of a sequence, the last of them only predicted.

    Raises:
        ValueError: the prefix leaves none.
    """
    if not prefix:
        return task.n_targets
    hidden = length - prefix
    if hidden < 1:
        raise ValueError(
            f"train: a prefix of {prefix} tokens shows all of sequences of {length}: "
            f"nothing is left to learn. Take a prefix of {length - 1} at most."
        )
    return hidden if task.n_targets is None else min(hidden, task.n_targets)


def set_rate(optimizer: torch.optim.Optimizer, preset: Preset, step: int) -> None:
    """Set the step size of the update after `step` earlier ones."""
    for group in optimizer.param_groups:
        group["lr"] = preset.rate(step)


def _compare_threads(state: TrainingState, folder: Path) -> None:
    """Warn of a thread count that is not the saved state's."""
    now = torch.get_num_threads()
    if state.threads not in (None, now):
        warnings.warn(
            f"train: {folder} was trained on {state.threads} threads so far and goes "
            f"on with {now}: the result is valid, but may differ in its last bits. "
            f"torch.set_num_threads({state.threads}) gives the same ones.",
            stacklevel=3,  # points at the caller of train
        )


def _call(
    callbacks: Sequence[Callback[TaskT]],
    step: int,
    model: ToyTransformer,
    task: TaskT,
) -> None:
    model.eval()
    with torch.no_grad():
        for callback in callbacks:
            callback(step, model, task)


@contextlib.contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    """On CUDA, ask torch for kernels that give the same bits every time."""
    if device.type != "cuda":  # the CPU's kernels do so already
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
