"""Progress on a terminal or in a notebook, with rate and time left; else nothing.

May import: visible, toy_tasks.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

from mechsink.visible import visible
from toy_tasks.watched import is_watched, live, note


@runtime_checkable  # the shape checker needs isinstance
class Advance(Protocol):
    """Move a bar on by some steps."""

    def __call__(self, steps: int = 1) -> None:
        """One step by default."""
        ...


@contextmanager
def bar(what: str, total: int, show: bool | None = None) -> Iterator[Advance]:
    """A bar moved on by each call, on stderr or in a notebook's cell.

    `show`: None shows it on a terminal and in a Jupyter kernel only.
    """
    if not (is_watched() if show is None else show):
        yield _nothing
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
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
        TimeRemainingColumn(),
    )
    with live(columns) as (drawn, moved):
        task = drawn.add_task(visible(what), total=total)

        def advance(steps: int = 1) -> None:
            drawn.advance(task, steps)
            moved()

        yield advance


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """A sentence beside a spinner, or in a notebook's cell, while the block runs."""
    if not is_watched():
        yield
        return
    from rich.text import Text

    with note(Text(visible(what))):
        yield


def _nothing(steps: int = 1) -> None:
    pass
