"""Progress on a terminal, with time left; nothing where nobody watches.

May import: nothing of mechsink.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[], None]


@contextmanager
def bar(what: str, total: int, show: bool | None = None) -> Iterator[Advance]:
    """A bar on stderr, advanced by one a call; None shows it on a terminal only."""
    if not (sys.stderr.isatty() if show is None else show):
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn(what), BarColumn(), TimeElapsedColumn())
    with Progress(
        *columns, TimeRemainingColumn(), console=Console(stderr=True)
    ) as live:
        task = live.add_task(what, total=total)
        yield lambda: live.advance(task)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """A spinner with a sentence on stderr, on a terminal only."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield
