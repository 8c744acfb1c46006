"""Files of a run: written whole or not at all, read only if they are what they say.

Tensors are safetensors, everything else JSON. Pickle is neither written nor read:
loading one runs whatever code it holds.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FORMAT = "toy_tasks run 1"
DIGEST = "sha256"
"""Name of the checksum among a file's facts; files of before there was one lack it."""
PUT_BACK = "Put the file back as it was written."
_LONGEST = 100_000_000  # bytes of a header, as safetensors has it
_PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt")


def put(path: Path, data: bytes) -> None:
    """Put `data` at `path` so that a reader, or a kill, sees the old or the new file.

    Raises:
        OSError: the system's own; no part of the file is left.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def write_atomically(path: Path, data: bytes) -> None:
    """`put`, its error saying how a run is mended.

    Raises:
        OSError: the folder cannot be written; no part of the file is left.
    """
    try:
        put(path, data)
    except OSError as error:
        raise OSError(
            f"cannot write {path}: {error.strerror or error}. Choose a folder that you "
            "may write to, on a disk with room, and run again: a run goes on from its "
            "last saved state."
        ) from error


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
) -> None:
    """Write tensors with JSON `facts` and a checksum in the header, atomically."""
    from safetensors.torch import save

    flat = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    # One key: with two, safetensors would write them in an order of its own.
    header = {FORMAT: json.dumps({**facts, DIGEST: _digest(flat, facts)})}
    write_atomically(path, save(flat, metadata=header))


def read_tensors(path: Path, run_id: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of a file that `write_tensors` wrote for this run.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a pickle (refused by name, never opened), a truncated or changed
            file, or safetensors that come from elsewhere or from another run.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    if path.suffix in _PICKLES:
        raise ValueError(
            f"{path} is a pickle by its name, and loading a pickle runs the code in "
            "it: refused. Allowed: .safetensors files that toy_tasks wrote. To bring "
            "weights in, save them with safetensors where you trust them."
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist. Train a run into that folder.")
    data = path.read_bytes()  # safetensors opens no path that is not UTF-8
    try:
        tensors, header = load(data), _header(data)
    except (SafetensorError, ValueError, RuntimeError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged or no safetensors file ({error}). Delete it; train "
            "writes it again when called on its folder."
        ) from error
    if FORMAT not in header:
        raise ValueError(
            f"{path} was not written by toy_tasks: its header lacks {FORMAT!r} (it "
            f"has {sorted(header) or 'nothing'}). Delete it, or put the run's own back."
        )
    try:
        facts = json.loads(header[FORMAT])
        digest = facts.pop(DIGEST, None)
    except (ValueError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged: its header can't be read ({error}). Delete it; train "
            "writes it again when called on its folder."
        ) from error
    if digest is not None and digest != _digest(tensors, facts):  # older: none
        raise ValueError(
            f"{path} is damaged: it is not as it was written. Delete it; train writes "
            "it again when called on its folder."
        )
    if facts.get("run") != run_id:
        raise ValueError(
            f"{path} belongs to another run than the config.json beside it (another "
            "task, preset or seed). Put it back where it belongs, or delete it: train "
            "writes this run's own again when called on the folder."
        )
    return tensors, facts


def read_facts(path: Path) -> dict[str, Any]:
    """The facts in a file's header alone, its tensors unread and unchecked.

    Raises:
        ValueError: the file is none that `write_tensors` wrote.
    """
    try:
        with path.open("rb") as file:
            size = file.read(8)
            data = size + file.read(min(int.from_bytes(size, "little"), _LONGEST))
        return dict(json.loads(_header(data)[FORMAT]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged: its header can't be read ({error}). Delete it; train "
            "writes it again when called on its folder."
        ) from error


def _header(data: bytes) -> dict[str, str]:
    """What stands in a safetensors file's header beside its tensors."""
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]).get("__metadata__") or {}


def _digest(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
    """Checksum of facts, names, types, shapes and every bit of the tensors."""
    found = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def write_json(path: Path, data: Any) -> None:
    """Write JSON atomically; numbers keep every bit."""
    write_atomically(path, (json.dumps(data, indent=1) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """An object that `write_json` wrote.

    Raises:
        ValueError: the file is not a JSON object.
    """
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # bad JSON, or bytes that are no text
        raise ValueError(f"{path} is damaged: no JSON ({error}). {PUT_BACK}") from error
    if not isinstance(data, dict):
        raise ValueError(
            f"{path} holds a {type(data).__name__}, not a JSON object. {PUT_BACK}"
        )
    return data


def load_weights(
    model: torch.nn.Module, tensors: Mapping[str, Tensor], path: Path
) -> None:
    """Copy `tensors` into the model if names, shapes and types are just the model's.

    Raises:
        ValueError: a name, shape or type differs.
    """
    want, have = (
        {name: (*t.shape, str(t.dtype).removeprefix("torch.")) for name, t in given}
        for given in (model.state_dict().items(), tensors.items())
    )
    if want != have:
        name = sorted(k for k in want | have if want.get(k) != have.get(k))[0]
        raise ValueError(
            f"{path} does not fit the model in config.json: {name} is "
            f"{have.get(name, 'missing')} in the file, {want.get(name, 'missing')} in "
            "the model. It comes from another run; put it back where it belongs."
        )
    model.load_state_dict(dict(tensors))


class FolderBusy(RuntimeError):
    """Another process is at work in a folder."""


@contextlib.contextmanager
def locked(folder: Path, caller: str = "train") -> Iterator[None]:
    """Hold a folder for one process; the system lets go when the process ends.

    Args:
        folder: made if it is not there.
        caller: who says so, in the errors.

    Raises:
        OSError: the folder can't be made.
        FolderBusy: another process holds it (a RuntimeError).
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"{caller}: cannot make the folder {folder}: {error.strerror or error}. "
            "Choose one inside a folder that you may write to."
        ) from error
    try:
        import fcntl
    except ImportError:  # Windows: no lock, the user takes care
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderBusy(
                f"{caller}: another process is at work in {folder}. Wait until it has "
                "finished, or choose another folder."
            ) from None
        for leftover in folder.rglob(".*.tmp"):  # of a run killed while writing
            leftover.unlink()
        yield
    finally:
        os.close(handle)
