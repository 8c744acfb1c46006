"""Engines of one machine: this process, or some of its own."""

import contextlib
import os
import queue
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from typing import Any

import torch

from mechsink.engines.engine import TRIES, Outcome, Work, WorkerLost
from mechsink.engines.worker import (
    Worker,
    default_workers,
    one_thread,
    packed,
    transportable,
    unpacked,
)
from mechsink.progress import Advance


@dataclass(frozen=True)
class Here:
    """This process, one item after the other.

    Attributes:
        name: "here", for `meta`.

    Examples:
        >>> case = ms.planted("and")
        >>> swept = ms.spread(
        ...     ms.patch_sweep, case.model, case.pairs, ms.logit_diff, engine=ms.Here()
        ... )
        >>> swept.table.prompt.nunique()
        12
    """

    name: str = "here"

    def run(
        self, work: Work, items: Sequence[Any], advance: Advance
    ) -> Iterator[tuple[int, Outcome]]:
        """See `Engine.run`.

        Args:
            work: what workers do; `open` once, then `do` for each item.
            items: one piece of work each.
            advance: told how many steps are done.
        """
        worker = Worker(work)
        for number, item in enumerate(items):
            with one_thread():
                outcome = worker.do(item, advance)
            if outcome.kind == "not opened":
                raise outcome.value
            yield number, outcome


@dataclass(frozen=True)
class Pool:
    """Processes of this machine; default: one a core, or one on a GPU.

    Args:
        workers: processes; None: one a core, or one on a GPU.
        name: for `meta`.

    Examples:
        >>> case = ms.planted("and")
        >>> swept = ms.spread(
        ...     ms.patch_sweep, case.model, case.pairs, ms.logit_diff, engine=ms.Pool(1)
        ... )
        >>> swept.table.prompt.nunique()
        12
    """

    workers: int | None = None
    name: str = "pool"

    def run(
        self, work: Work, items: Sequence[Any], advance: Advance
    ) -> Iterator[tuple[int, Outcome]]:
        """See `Engine.run`.

        Args:
            work: what workers do; `open` once, then `do` for each item.
            items: one piece of work each.
            advance: told how many steps are done.
        """
        waiting = deque(range(len(items)))
        tries = dict.fromkeys(waiting, 0)
        n = min(self.workers or default_workers(), len(items))
        seats: list[_Seat] = []
        ahead = 2 if work.short else 1

        try:
            for _ in range(n):
                seats.append(_Seat(work))
            for seat in seats * ahead:  # in turn, so that all have some
                if waiting:
                    seat.give(waiting.popleft(), items)
            while busy := {seat.pipe: seat for seat in seats if seat.has}:
                for pipe in wait_for(list(busy)):
                    seat = busy[pipe]  # type: ignore[index]
                    said = seat.hear()
                    if isinstance(said, int):
                        advance(said)
                        continue
                    if said is None:  # the worker is no more
                        number, *unbegun = seat.has
                        waiting.extendleft(reversed(unbegun))
                        tries[number] += 1
                        seat.hire()
                        if tries[number] < TRIES:
                            waiting.append(number)
                        else:
                            yield number, Outcome("failed", _lost(seat.ended))
                    elif said.kind == "not opened":
                        raise said.value
                    else:
                        yield seat.has.popleft(), said
                    while waiting and len(seat.has) < ahead:
                        seat.give(waiting.popleft(), items)
        finally:
            for seat in seats:
                seat.dismiss()


class _Seat:
    """A worker process, and another one once it has died."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self.ended: int | None = None  # exit code of the last that died
        self.hire()

    def hire(self) -> None:
        # loky's processes: fresh interpreters that do not run the caller's script
        # again, and are sent functions of a notebook by value. A fork would inherit
        # torch's threads half-dead.
        from loky.backend import get_context

        self.has: deque[int] = deque()  # items: at work, then the next
        context: Any = get_context("loky")
        self.pipe: Connection
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, self._work), init_main_module=False
        )
        self._process.start()
        theirs.close()

    def give(self, number: int, items: Sequence[Any]) -> None:
        self.has.append(number)
        with contextlib.suppress(OSError):  # it has died: `hear` says so
            self.pipe.send_bytes(packed(items[number]))

    def hear(self) -> int | Outcome | None:
        """Steps done, an outcome, or None where the worker has died."""
        try:
            return unpacked(self.pipe.recv_bytes())
        except (EOFError, OSError):
            self.pipe.close()
            self._process.join()
            self.ended = self._process.exitcode
            return None

    def dismiss(self) -> None:
        """End the worker, which leaves when its pipe closes, whatever it does."""
        self.pipe.close()
        self._process.join()


def _serve(pipe: Connection, work: Work) -> None:
    """Do what comes through the pipe."""
    torch.set_num_threads(1)
    sent: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(pipe, sent), daemon=True).start()

    def advance(steps: int = 1) -> None:
        pipe.send_bytes(packed(steps))

    worker = Worker(work)
    while True:
        try:
            item = unpacked(sent.get())
        except Exception as error:  # its module can't be found here, say
            outcome = Outcome("failed", error)
        else:
            outcome = worker.do(item, advance)
        pipe.send_bytes(packed(transportable(outcome)))


def _receive(pipe: Connection, sent: "queue.SimpleQueue[bytes]") -> None:
    """Take in items at once, so that nobody waits; leave when the pipe closes.

    It closes when this worker is dismissed and when its parent was killed: else it
    would go on, unseen.
    """
    with contextlib.suppress(EOFError, OSError):
        while True:
            sent.put(pipe.recv_bytes())
    os._exit(1)


def _lost(code: int | None) -> WorkerLost:
    why = f"exit code {code}"
    if code is not None and code < 0:
        why = f"signal {-code}" + (" (out of memory?)" if code == -9 else "")
    return WorkerLost(
        f"{TRIES} workers died at this piece of work, the last by {why}. Give each "
        "more memory by asking for fewer workers, or try the piece alone with "
        "engine='here'."
    )
