"""The progress bar of a training."""

import contextlib
from collections.abc import Callable, Iterator

from toy_tasks.watched import is_watched, live


@contextlib.contextmanager
def progress_bar(
    steps: int, done: int, progress: bool | None
) -> Iterator[Callable[[int, list[dict[str, int | float]]], None]]:
    """A progress bar's advance(step, log), or one that does nothing."""
    if not (is_watched() if progress is None else progress):
        yield lambda step, log: None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]} steps/s, loss {task.fields[loss]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with live(columns) as (bar, moved):
        entry = bar.add_task("", total=steps, completed=done, rate="-", loss="-")

        def advance(step: int, log: list[dict[str, int | float]]) -> None:
            speed = bar.tasks[0].speed
            rate = "-" if speed is None else f"{speed:.1f}"
            loss = f"{log[-1]['loss']:.3f}" if log else "-"
            bar.update(entry, completed=step, rate=rate, loss=loss)
            moved()

        yield advance
