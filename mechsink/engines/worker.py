"""What a worker does, wherever it runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from mechsink.engines.engine import Outcome, Work
from mechsink.progress import Advance


class Worker:
    """Opens the work before the first item, keeps what that gave, and does items."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._opened: list[Any] = []

    def do(self, item: Any, advance: Advance) -> Outcome:
        """The item's outcome; no error escapes but the wish to stop."""
        try:
            if not self._opened:
                self._opened.append(self._work.open())
        except Exception as error:
            return Outcome("not opened", error)
        try:
            return Outcome("done", self._work.do(self._opened[0], item, advance))
        except Exception as error:
            return Outcome("failed", error)


def transportable(outcome: Outcome) -> Outcome:
    """The same, its error without what can't leave this process."""
    if outcome.is_done:
        return outcome
    try:
        unpacked(packed(outcome.value))
    except Exception:
        error = outcome.value
        plain = RuntimeError(f"{type(error).__name__}: {error}")
        return Outcome(outcome.kind, plain)
    return outcome


def packed(value: Any) -> bytes:
    """A value on its way to another process of this call; it is never stored.

    Functions of a script or a notebook go along by value.
    """
    import cloudpickle

    return cloudpickle.dumps(value)


def unpacked(data: bytes) -> Any:
    """What `packed` packed, in a process that this call started, or from one."""
    import cloudpickle

    return cloudpickle.loads(data)


@contextmanager
def one_thread() -> Iterator[None]:
    """As in every worker: sums over several threads differ in their last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def default_workers(device: str | None = None) -> int:
    """One process a core that may be used here, or one on a GPU."""
    from loky import cpu_count  # minds affinity and the limits of a container

    on_gpu = torch.cuda.is_available() if device is None else device != "cpu"
    return 1 if on_gpu else cpu_count()
