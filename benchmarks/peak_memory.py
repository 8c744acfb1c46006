"""Most memory taken within a block, for the other benchmarks."""

import contextlib
import threading
from collections.abc import Iterator

import psutil
import torch


@contextlib.contextmanager
def peak_memory(device: torch.device) -> Iterator[list[float]]:
    """Most memory taken within, over what was held before; bytes."""
    used = [0.0]
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        yield used
        torch.cuda.synchronize()
        used[0] = torch.cuda.max_memory_allocated() - held
        return
    process, done = psutil.Process(), threading.Event()
    held = process.memory_info().rss

    def watch() -> None:
        while not done.wait(0.02):
            used[0] = max(used[0], process.memory_info().rss - held)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield used
    finally:
        done.set()
        thread.join()
