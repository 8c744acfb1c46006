"""Exit codes: what went well or wrong, for scripts; and errors told in words.

May import: nothing heavy.
"""

import errno
from collections.abc import Iterator

DONE, FAILURE, BAD_INPUT, ENVIRONMENT, CLAIM, STOPPED = 0, 1, 2, 3, 4, 130

CODES = {
    DONE: "done",
    FAILURE: "failed in the middle of the work, or a fault of mechsink",
    BAD_INPUT: "wrong options, files or models; nothing was written",
    ENVIRONMENT: "this machine: no memory, no room on the disk, a package that is not "
    "installed, no way to the hub, another process in the same folder",
    CLAIM: "an experiment is done and written, but a claim of it does not hold",
    STOPPED: "interrupted (Ctrl-C)",
}
"""Every exit code and what it means; `mechsink --help` shows them."""

_OF_THE_MACHINE = {
    errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE,
}  # fmt: skip
# By name: torch and the hub's client are not imported for their errors alone.
_NAMES = {"OutOfMemoryError", "HubUnreachable", "FolderBusy", "DamagedFile"}
_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


def code_of(error: BaseException) -> int:
    """The exit code that an error stands for."""
    if isinstance(error, KeyboardInterrupt):
        return STOPPED
    for one in _chain(error):
        names = {kind.__name__ for kind in type(one).__mro__}
        if isinstance(one, MemoryError) or names & _NAMES:
            return ENVIRONMENT
        if isinstance(one, OSError) and one.errno in _OF_THE_MACHINE:
            return ENVIRONMENT
    if isinstance(error, ImportError | ConnectionError) or _lacks_memory(error):
        return ENVIRONMENT
    return BAD_INPUT if isinstance(error, ValueError | OSError) else FAILURE


def explain(error: BaseException) -> str:
    """One paragraph: our own messages as they are, what we did not expect by name."""
    if isinstance(error, KeyboardInterrupt):
        return "stopped. What was trained so far is kept and resumed next time."
    if isinstance(error, ImportError):
        return f"{error}. Install what is missing, then run the same command again."
    if isinstance(error, MemoryError) or _lacks_memory(error):
        return (
            "out of memory. Give fewer or shorter texts, fewer pairs, or a smaller "
            "model, or end what else fills this machine."
        )
    if isinstance(error, ValueError | OSError | RuntimeError) and str(error):
        return str(error)
    return (
        f"unexpected {type(error).__name__}: {error}. This is a fault of mechsink: run "
        "again as `mechsink --debug ...` and report what that shows."
    )


def _lacks_memory(error: BaseException) -> bool:
    """torch's CPU allocator raises a plain RuntimeError."""
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        words in said for words in _NO_MEMORY
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from."""
    seen: BaseException | None = error
    for _ in range(10):
        if seen is None:
            return
        yield seen
        seen = seen.__cause__
