"""Progress on a terminal, with time left; nothing where nobody watches.

May import: visible.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

from mechsink.visible import visible


@runtime_checkable  # the shape checker needs isinstance
class Advance(Protocol):
    """Move a bar on by some steps."""

    def __call__(self, steps: int = 1) -> None:
        """One step by default."""
        ...


@contextmanager
def bar(what: str, total: int, show: bool | None = None) -> Iterator[Advance]:
    """A bar on stderr, moved on by each call; None shows it on a terminal only."""
    if not (sys.stderr.isatty() if show is None else show):
        yield _nothing
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        """Steps a second, or seconds a step."""

        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            if not speed:
                return Text("")
            slow = speed < 1
            return Text(f"{1 / speed:.1f} s each" if slow else f"{speed:.1f}/s")

    columns = (
        # A name is no markup and no format: "[/]" or "{x}" would be taken for one.
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeElapsedColumn(),
    )
    with Progress(
        *columns, TimeRemainingColumn(), console=Console(stderr=True)
    ) as live:
        task = live.add_task(visible(what), total=total)

        def advance(steps: int = 1) -> None:
            live.advance(task, steps)

        yield advance


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """A spinner with a sentence on stderr, on a terminal only."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status(Text(visible(what))):
        yield


def _nothing(steps: int = 1) -> None:
    pass
