"""A training run on disk: its task, its checkpoints, its log.

FOLDER/config.json                      format, model, task, preset, seed, versions
FOLDER/checkpoints/step-000123.safetensors   weights after 123 steps
FOLDER/state.safetensors                weights and optimiser, to go on from
FOLDER/log.jsonl                        one line {"step", "loss"} every few steps
"""

import hashlib
import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from toy_tasks.config import ToyConfig
from toy_tasks.presets import Preset
from toy_tasks.storage import (
    FORMAT,
    load_weights,
    read_facts,
    read_json,
    read_tensors,
    write_json,
)
from toy_tasks.task import Task, task_from_json
from toy_tasks.transformer import ToyTransformer

_CHECKPOINT = re.compile(r"step-(\d{6,})\.safetensors")


@dataclass(frozen=True, eq=False)
class TrainRun:
    """One run folder, finished or still training; files are read when asked for.

    Attributes:
        folder: where it lies.
        task: what is learnt.
        config: sizes, d_vocab filled in.
        preset: how.
        seed: of weights and data.
        versions: of the libraries that trained it.

    Examples:
        >>> from dataclasses import replace
        >>> from toy_tasks import PRESETS, train
        >>> from toy_tasks.planted import backcopy_task
        >>> preset = replace(PRESETS["bb-cpu"], steps=4, batch=4, checkpoints=(0, 4))
        >>> run = train(backcopy_task(), preset, "run", progress=False)
        >>> run.steps, run.is_finished, type(run.model(0)).__name__
        ([0, 4], True, 'ToyTransformer')
    """

    folder: Path
    task: Task
    config: ToyConfig
    preset: Preset
    seed: int
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Marks the files of this run: a digest of task, preset and seed."""
        return digest(identity(self.task, self.preset, self.seed))

    @property
    def steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending; 0 is before training."""
        files = (self.folder / "checkpoints").glob("step-*.safetensors")
        found = (_CHECKPOINT.fullmatch(file.name) for file in files)
        return sorted(int(match[1]) for match in found if match)

    @property
    def is_finished(self) -> bool:
        """Whether the last step is there."""
        return self.preset.steps in self.steps

    @property
    def history(self) -> list[dict[str, int | float]]:
        """Lines of the log: step (updates made) and loss of its batch, nats.

        Raises:
            ValueError: the log is not as it was written.
        """
        state = self.folder / "state.safetensors"
        facts = read_facts(state) if state.exists() else {}
        return read_log(self.folder / "log.jsonl", facts)

    def model(self, step: int | None = None) -> ToyTransformer:
        """The model after `step` updates (default: the last there is), in eval mode.

        Args:
            step: updates made.

        Raises:
            ValueError: there is no such checkpoint, or its file is damaged or foreign.
        """
        steps = self.steps
        step = steps[-1] if step is None and steps else step
        if step not in steps:
            near = min(steps, key=lambda s: abs(s - (step or 0)), default=None)
            raise ValueError(
                f"TrainRun.model: step={step} has no checkpoint in {self.folder}. "
                f"Allowed: one of run.steps; the nearest is {near}."
            )
        path = checkpoint_path(self.folder, step)
        model = ToyTransformer(self.config, seed=self.seed)
        load_weights(model, read_tensors(path, self.id)[0], path)
        return model.eval()


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the weights after `step` updates lie."""
    return folder / "checkpoints" / f"step-{step:06d}.safetensors"


def log_text(lines: list[dict[str, int | float]]) -> str:
    """Lines of a log as its file holds them."""
    return "".join(json.dumps(line) + "\n" for line in lines)


def read_log(path: Path, facts: Mapping[str, Any]) -> list[dict[str, int | float]]:
    """Lines of a log, none if it is not there yet.

    Args:
        facts: those of the state saved after it: its step and the log's checksum.
            Lines after that step are of a training that was killed before it saved.

    Raises:
        ValueError: a line is no {"step": , "loss": }, or was changed.
    """
    lines = _log_lines(path) if path.is_file() else []
    known = log_text([line for line in lines if line["step"] <= facts.get("step", 0)])
    if "log" in facts and facts["log"] != log_digest(known):
        raise ValueError(
            f"{path} is damaged: it is not as it was written. Put the file back, or "
            "delete it and state.safetensors; train then makes both again."
        )
    return lines


def log_digest(text: str) -> str:
    """Checksum of a log."""
    return hashlib.sha256(text.encode()).hexdigest()


def _log_lines(path: Path) -> list[dict[str, int | float]]:
    lines = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            row = json.loads(line)
            if set(row) != {"step", "loss"} or type(row["step"]) is not int:
                raise ValueError("it has other parts")
            lines.append({"step": row["step"], "loss": float(row["loss"])})
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(
                f"{path} is damaged: line {number} is no step and loss "
                f"({line[:40]!r}). Put the file back as train wrote it."
            ) from error
    return lines


def load_run(folder: str | Path) -> TrainRun:
    """Open a run folder.

    Args:
        folder: where `train` wrote.

    Returns:
        The run; its files are read when asked for.

    Raises:
        FileNotFoundError: no folder, or no config.json in it.
        ValueError: config.json is damaged or foreign, or there is no checkpoint.

    Examples:
        >>> from dataclasses import replace
        >>> from toy_tasks import PRESETS, load_run, train
        >>> from toy_tasks.planted import backcopy_task
        >>> preset = replace(PRESETS["bb-cpu"], steps=4, batch=4)
        >>> folder = train(backcopy_task(), preset, "run", progress=False).folder
        >>> load_run(folder).preset == preset
        True
    """
    folder = Path(folder)
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"load_run: {folder} holds no config.json, so it is no run. Pass the "
            "folder that was given to train; pickle files (.pt, .pkl) are never read."
        )
    data = read_json(path)
    if data.get("format") != FORMAT:
        raise ValueError(
            f"load_run: {path} has format {data.get('format')!r}, allowed is "
            f"{FORMAT!r}. It was written by another program or version."
        )
    missing = {"model", "task", "preset", "seed"} - set(data)
    if missing:
        raise ValueError(f"load_run: {path} lacks {', '.join(sorted(missing))}.")
    try:
        run = TrainRun(
            folder=folder,
            task=task_from_json(data["task"]),
            config=ToyConfig.from_json(data["model"]),
            preset=Preset.from_json(data["preset"]),
            seed=data["seed"],
            versions=data.get("versions", {}),
        )
        whole = identity(run.task, run.preset, run.seed)
    except Exception as error:  # a changed byte may break any part of it
        raise ValueError(
            f"load_run: {path} is damaged ({type(error).__name__}: {error}). Put the "
            "file back as train wrote it."
        ) from error
    if data["model"] != whole["model"]:
        raise ValueError(
            f"load_run: {path} is damaged: its model is not that of its preset. Put "
            "the file back as train wrote it."
        )
    if not run.steps:
        raise ValueError(
            f"load_run: {folder} has no checkpoint yet. Call train on it again; it "
            "goes on where it stopped."
        )
    return run


def identity(task: Task, preset: Preset, seed: int) -> dict[str, Any]:
    """All that decides a run, as config.json says it."""
    return {
        "format": FORMAT,
        "model": replace(preset.model, d_vocab=task.d_vocab).to_json(),
        "task": task.to_json(),
        "preset": preset.to_json(),
        "seed": seed,
    }


def digest(data: Any) -> str:
    """Short fingerprint of JSON values."""
    text = json.dumps(data, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def claim(folder: Path, task: Task, preset: Preset, seed: int) -> None:
    """Write config.json, or make sure that the one there describes this very run.

    Raises:
        ValueError: the folder holds another run, or parts of one.
    """
    want = identity(task, preset, seed)
    path = folder / "config.json"
    versions = {"torch": torch.__version__}
    if not path.exists():
        found = [*folder.glob("checkpoints/*"), *folder.glob("state.*")]
        if found:
            raise ValueError(
                f"train: {folder} holds {found[0].name} but no config.json, so it is "
                "not a run that can go on. Choose an empty or new folder."
            )
        write_json(path, {**want, "versions": versions})
        return
    have = read_json(path)
    differing = [
        f"{key}.{part}" if isinstance(want[key], dict) else key
        for key in want
        for part in (want[key] if isinstance(want[key], dict) else [key])
        if _part(want, key, part) != _part(have, key, part)
    ]
    if differing:
        raise ValueError(
            f"train: {folder} holds another run, with another {', '.join(differing)} "
            f"(there: preset {have.get('preset', {}).get('name')!r}, seed "
            f"{have.get('seed')}; asked for: {preset.name!r}, seed {seed}). Choose "
            "another folder, or delete this one."
        )
    if have.get("versions") != versions:
        warnings.warn(
            f"train: {folder} was begun with {have.get('versions')} and goes on with "
            f"{versions}: the result is valid, but may differ in its last bits.",
            stacklevel=3,  # points at the caller of train
        )


def _part(data: dict[str, Any], key: str, part: str) -> Any:
    value = data.get(key)
    return value.get(part) if isinstance(value, dict) else value
