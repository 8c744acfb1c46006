"""Where a training stands, saved so that it can go on bit for bit."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toy_tasks.presets import Preset
from toy_tasks.runs import (
    checkpoint_path,
    digest,
    identity,
    log_digest,
    log_text,
    read_log,
)
from toy_tasks.storage import (
    load_weights,
    read_tensors,
    write_atomically,
    write_tensors,
)
from toy_tasks.task import Task
from toy_tasks.transformer import ToyTransformer


@dataclass
class TrainingState:
    """Where training stands: everything that the next step depends on."""

    model: ToyTransformer
    optimizer: torch.optim.Optimizer
    run_id: str  # marks the files of this run
    step: int = 0
    resumed: bool = False
    threads: int | None = None  # that wrote what was resumed; older files don't say
    log: list[dict[str, int | float]] = field(default_factory=list)

    @classmethod
    def start_afresh(
        cls, task: Task, preset: Preset, seed: int, device: torch.device
    ) -> "TrainingState":
        """Step 0: weights as the seed draws them."""
        config = replace(preset.model, d_vocab=task.d_vocab)
        model = ToyTransformer(config, seed=seed).to(device)
        run_id = digest(identity(task, preset, seed))
        return cls(model, _optimizer(model, preset), run_id)

    @classmethod
    def start(
        cls,
        task: Task,
        preset: Preset,
        seed: int,
        folder: Path,
        device: torch.device,
    ) -> "TrainingState":
        """As last saved in the folder, or step 0.

        Raises:
            ValueError: the saved state is damaged or another run's.
        """
        state = cls.start_afresh(task, preset, seed, device)
        path = folder / "state.safetensors"
        if path.exists():
            facts = state.load(path)
            due = [s for s in preset.checkpoint_steps() if s <= state.step]
            if not all(checkpoint_path(folder, s).exists() for s in due):
                # Deleted since, perhaps because damaged: only a new start, which
                # gives the same bits, brings it back.
                return cls.start_afresh(task, preset, seed, device)
            log = read_log(folder / "log.jsonl", facts)
            # The log is written first: a kill in between leaves lines too many.
            state.log = [line for line in log if line["step"] <= state.step]
        return state

    def load(self, path: Path) -> dict[str, Any]:
        """Take over what `save` wrote; the facts of its header."""
        tensors, facts = read_tensors(path, self.run_id)
        parts: dict[str, dict[str, Tensor]] = {"model": {}}
        for key, tensor in tensors.items():
            part, _, name = key.partition("/")
            parts.setdefault(part, {})[name] = tensor
        load_weights(self.model, parts.pop("model"), path)
        names = [n for n, p in self.model.named_parameters() if p.requires_grad]
        blank = self.optimizer.state_dict()
        slots = {
            i: {kind: parts[kind][name] for kind in parts if name in parts[kind]}
            for i, name in enumerate(names)
        }
        self.optimizer.load_state_dict({**blank, "state": slots})
        self.step, self.resumed = facts["step"], True
        self.threads = facts.get("threads")
        return facts

    def save(self, folder: Path) -> None:
        """Write the log, then state.safetensors, each atomically."""
        text = log_text(self.log)
        write_atomically(folder / "log.jsonl", text.encode())
        tensors = {f"model/{k}": v for k, v in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for kind, value in self.optimizer.state.get(parameter, {}).items():
                if value is not None:
                    tensors[f"{kind}/{name}"] = value
        facts = {**self.facts, "log": log_digest(text)}
        write_tensors(folder / "state.safetensors", tensors, facts)

    @property
    def facts(self) -> dict[str, str | int]:
        """What the header of every file of tensors says."""
        # A sum over other threads has other last bits.
        threads = torch.get_num_threads()
        return {"run": self.run_id, "step": self.step, "threads": threads}


def _optimizer(model: ToyTransformer, preset: Preset) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    common = {"lr": preset.lr, "weight_decay": preset.weight_decay, "fused": True}
    if preset.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=preset.momentum, **common)
    return torch.optim.AdamW(parameters, betas=preset.betas, **common)
