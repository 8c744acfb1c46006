"""Who watches a progress bar: a terminal, a notebook, or nobody.

In a notebook the same bar is shown as the terminal's, rich's, but drawn into a cell's
output by IPython itself, so no widgets are needed.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress
else:  # so that the shape checker can resolve annotations without rich
    Progress = Any

LATER = 1.0
"""Seconds before a notebook shows a bar: what is over by then needs none."""
EVERY = 0.2
"""Seconds between two drawings of it."""
MARK = {"mechsink": "progress"}
"""Metadata of such an output, by which a script can drop it from a kept notebook."""

_drawn = False  # whether a bar is on the screen


def in_notebook() -> bool:
    """Whether this runs in a Jupyter kernel; nothing is imported to find out."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and hasattr(shell, "kernel")


def is_watched() -> bool:
    """Whether anybody sees what is written to stderr, or a cell's output."""
    return in_notebook() or sys.stderr.isatty()


@contextlib.contextmanager
def live(columns: Any) -> Iterator[tuple[Progress, Callable[[], None]]]:
    """A bar of these columns, and what to call after each move of it.

    Inside another one it is not drawn: two bars on one line can't be read.
    """
    global _drawn
    from rich.console import Console
    from rich.progress import Progress

    if _drawn:
        yield Progress(*columns, disable=True), _redrawn_by_itself
        return
    _drawn = True
    try:
        bar = Progress(*columns, console=Console(stderr=True))
        if not in_notebook():
            with bar:
                yield bar, _redrawn_by_itself
            return
        with _cell(lambda: bar.make_tasks_table(bar.tasks)) as draw:
            yield bar, draw
    finally:
        _drawn = False


@contextlib.contextmanager
def note(words: Any) -> Iterator[None]:
    """Words beside a spinner, or in a cell's output, until the block is left."""
    if in_notebook():
        from IPython.display import Pretty, display

        handle: Any = display(Pretty(f"{words} ..."), display_id=True, metadata=MARK)
        try:
            yield
        finally:
            handle.update(Pretty(""), metadata=MARK)
        return
    from rich.console import Console

    with Console(stderr=True).status(words):
        yield


@contextlib.contextmanager
def _cell(content: Callable[[], Any]) -> Iterator[Callable[[], None]]:
    """Draw `content` into one output of the cell, now and then and at the end."""
    from IPython.display import display

    last = time.monotonic() + LATER - EVERY
    handle: Any = None

    def draw(at_once: bool = False) -> None:
        nonlocal last, handle
        if time.monotonic() - last < EVERY and not at_once:
            return
        if handle is None:
            handle = display(content(), display_id=True, metadata=MARK)
        else:
            handle.update(content(), metadata=MARK)
        last = time.monotonic()

    try:
        yield draw
    finally:
        if handle is not None:
            draw(at_once=True)


def _redrawn_by_itself() -> None:
    pass
