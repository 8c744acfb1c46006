"""Where a result comes from: versions, model, settings and the exact tokens.

May import: sites, run, files.
"""

import functools
import importlib.metadata
import platform
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mechsink.files import plain
from mechsink.run import Model

_VERSIONED = ("mechsink", "torch", "transformers", "transformer-lens")
_BACKENDS = ("nnsight",)  # recorded only where they ran


def provenance(
    model: Model,
    tokens: Tensor | Sequence[Tensor],
    *,
    duration: float | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """What a result must say about its origin: versions, model, exact tokens.

    Args:
        model: the model that was measured.
        tokens: what it was run on, Int[batch pos] or a list of such tensors.
        duration: wall-clock seconds, if measured.
        settings: the options of the measurement.

    Returns:
        A dict of plain values, ready for JSON: versions (nnsight's too, where it
        read the sites), model, model_info, device, dtype, attention (how it was
        computed), threads (torch's, on the CPU), matmul (precision of float32
        products on a GPU), seed (of what was drawn; None where nothing was),
        settings, n_prompts, n_tokens, and tokens with one entry a prompt: `ids` and
        `strings`.
    """
    batches = [tokens] if isinstance(tokens, Tensor) else list(tokens)
    rows = [row for batch in batches for row in batch.cpu()]
    info = model.info
    backend = (info["backend"],) if info.get("backend") in _BACKENDS else ()
    meta: dict[str, Any] = {
        "versions": versions(*backend),
        "model": model.name,
        "model_info": info,
        "device": model.device,
        "dtype": model.dtype,
        "attention": info.get("attention"),
        "threads": torch.get_num_threads(),
        "matmul": torch.get_float32_matmul_precision(),
        "seed": settings.get("seed"),
        "settings": settings,
        "n_prompts": len(rows),
        "n_tokens": sum(len(row) for row in rows),
        "tokens": [{"ids": row, "strings": model.to_strings(row)} for row in rows],
    }
    if duration is not None:
        meta["duration_s"] = round(duration, 3)
    return plain(meta)


def versions(*more: str) -> dict[str, str | None]:
    """Versions of Python, of the libraries that decide numbers, and of some more."""
    found = {name: _version(name) for name in (*_VERSIONED, *more)}
    return {"python": platform.python_version(), **found}


@functools.cache  # reading it takes longer than measuring a short prompt
def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
