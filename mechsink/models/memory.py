"""How many rows fit: batches are sized before they run.

On a CPU an overrun kills the process and can't be caught, so sizes come from
shapes and from the memory really free, the container's limit included.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import psutil
import torch

from mechsink.run import ModelShape

SHARE = 0.25  # of what is free; the rest is for others and for what is not counted
ENOUGH = 2 * 2**30  # bytes; a batch that large keeps any core busy

_planned: ContextVar[int | None] = ContextVar("planned", default=None)


def rows_that_fit(
    shape: ModelShape,
    n_pos: int,
    *,
    dtype: torch.dtype,
    device: torch.device,
    n_logits: int = 0,
) -> int:
    """Rows of `n_pos` tokens that one block can take at once, at least 1.

    Args:
        shape: the model's sizes.
        n_pos: tokens a row.
        dtype: of the activations.
        device: where they live.
        n_logits: logits kept a row (tokens times vocabulary), if any.
    """
    floats = n_pos * (12 * shape.d_model + 4 * shape.d_mlp)
    floats += 2 * n_pos * n_pos * shape.n_heads + n_logits
    row = floats * dtype.itemsize
    return max(1, int(min(ENOUGH, SHARE * free_bytes(device))) // row)


def free_bytes(device: torch.device) -> int:
    """Memory that can still be taken on a device, or what `planned_memory` says."""
    if (planned := _planned.get()) is not None:
        return planned
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    for limit, used in (
        ("memory.max", "memory.current"),  # cgroup v2
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        root = Path("/sys/fs/cgroup")
        try:
            left = int((root / limit).read_text()) - int((root / used).read_text())
        except (OSError, ValueError):  # no container, or no limit ("max")
            continue
        free = min(free, max(left, 0))
    return free


@contextmanager
def planned_memory(n_bytes: int) -> Iterator[None]:
    """Size batches as if so much were free, whatever is.

    The size of a batch decides the last bits of a sum: with the same plan the same
    work gives the same bits, beside however many other workers.
    """
    token = _planned.set(n_bytes)
    try:
        yield
    finally:
        _planned.reset(token)
