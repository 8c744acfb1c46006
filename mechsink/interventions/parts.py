"""A long sweep's finished batches, in a folder, so that it can be resumed.

Each batch is one safetensors file, written whole or not at all; sweep.json says
which sweep they belong to. Both go once the result itself is saved there.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from mechsink.files import atomic_write, plain, to_json
from mechsink.interventions.sweep import Swept
from toy_tasks.storage import locked

NAME = "sweep.json"


class Parts:
    """The finished batches of one sweep.

    Args:
        folder: where they are.
        identity: all that the sweep's numbers depend on, as JSON values.
        probe: some logits of the model, to tell other weights of the same name.

    Raises:
        ValueError: the folder holds another sweep's batches, or another result.
    """

    def __init__(
        self, folder: Path | str, identity: dict[str, Any], probe: Tensor
    ) -> None:
        self.folder = Path(folder)
        self._identity = json.loads(json.dumps(plain(identity)))
        path = self.folder / NAME
        if path.exists():
            self._check(path, probe)
        elif (self.folder / "meta.json").exists():
            raise ValueError(
                f"patch_sweep: {self.folder} holds a result of another call, which "
                "would be taken for this one's. Give a new folder."
            )
        else:
            text = to_json({**self._identity, "probe": probe.tolist()})
            atomic_write(path, text)

    @classmethod
    @contextmanager
    def held(
        cls, folder: Path | str, identity: dict[str, Any], probe: Tensor
    ) -> "Iterator[Parts]":
        """The batches in a folder that no other process can use meanwhile.

        Raises:
            RuntimeError: another process is at work there.
        """
        folder = Path(folder)
        with locked(folder, "patch_sweep"):
            yield cls(folder, identity, probe)

    @property
    def is_done(self) -> bool:
        """Whether the folder holds the result already."""
        return (self.folder / "meta.json").exists()

    def read(self, index: Sequence[int]) -> Swept | None:
        """A finished batch, None if it isn't."""
        path = self._path(index)
        if not path.exists():
            return None
        try:
            found = load(path.read_bytes())
        except SafetensorError:  # cut short by a full disk, say: measured again
            return None
        if "noise" not in found:  # of an earlier version
            return None
        engine = bytes(found["engine"].tolist()).decode()
        return Swept(
            found["values"], found["patched"], found["other"], found["noise"], engine
        )

    def write(self, index: Sequence[int], batch: Swept) -> None:
        """Keep a finished batch."""
        tensors = {
            "values": batch.values.contiguous(),
            "patched": batch.patched.contiguous(),
            "other": batch.other.contiguous(),
            "noise": batch.noise.contiguous(),
            "engine": torch.tensor(list(batch.engine.encode()), dtype=torch.uint8),
        }
        atomic_write(self._path(index), save(tensors))

    def remove(self) -> None:
        """All of it, once the result is saved; sweep.json stays and names it."""
        for path in self.folder.glob("part-*.safetensors"):
            path.unlink()

    def _path(self, index: Sequence[int]) -> Path:
        # All pairs of a batch in its name: another batching shares no file.
        return self.folder / f"part-{index[0]}-{index[-1]}-{len(index)}.safetensors"

    def _check(self, path: Path, probe: Tensor) -> None:
        saved = json.loads(path.read_text())
        before = torch.tensor(saved.pop("probe"), dtype=torch.float64)
        differ = [k for k, v in self._identity.items() if saved.get(k) != v]
        close = 1e-3 * float(before.abs().max())
        if not differ and (before - probe.double()).abs().max() > close:
            differ = ["the model's logits on the first prompt"]
        if differ:
            raise ValueError(
                f"patch_sweep: {path.parent} holds batches of another sweep; it "
                f"differs in {', '.join(differ)}. Give another folder, or empty this "
                "one."
            )
