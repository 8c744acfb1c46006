"""The folder of a run: refused before the work, filled when the work is done.

A folder is ours if it holds the marker file, which lists what we wrote. Results
go to a stage inside it and are moved into place at the end, so that a failure
leaves the old report or nothing.
May import: nothing of mechsink.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from toy_tasks.storage import locked

MARKER = ".mechsink"


@contextmanager
def output_folder(path: Path | str) -> Iterator[Path]:
    """Claim `path`, yield a stage to write into, and move all into place at the end.

    What an earlier run of ours listed there is replaced; all else stays, such as
    training runs to be resumed. If the block fails, the stage goes, and `path` too
    if it was new and holds nothing else.

    Raises:
        ValueError: `path` is a file, holds somebody else's files, or cannot be
            written. Raised before the block runs.
        RuntimeError: another process is writing there.
    """
    path = Path(path).expanduser()
    made = _claim(path)
    with locked(path, f"--out {path}"):
        for left in path.glob(".new-*"):  # of a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        stage = Path(tempfile.mkdtemp(prefix=".new-", dir=path))
        try:
            yield stage
            _replace(stage, path)
        finally:
            shutil.rmtree(stage, ignore_errors=True)
            if {entry.name for entry in path.iterdir()} == {MARKER}:
                (path / MARKER).unlink()  # nothing came of it: leave no trace
                if made:
                    path.rmdir()


def _claim(path: Path) -> bool:
    """Make sure that `path` is a folder of ours; True if it was not there."""
    try:
        made = not path.exists()
        path.mkdir(parents=True, exist_ok=True)
        entries = {entry.name for entry in path.iterdir()}
        if not entries:
            (path / MARKER).write_text("")
        elif MARKER in entries:
            tempfile.TemporaryFile(dir=path).close()  # may we write here?
    except FileExistsError as error:
        raise ValueError(
            f"--out {path} is a file. Give a folder, new or written by mechsink before."
        ) from error
    except OSError as error:
        raise ValueError(
            f"--out {path} cannot be written: {error.strerror}. Give a folder in a "
            "place where you may write, on a disk with room."
        ) from error
    if entries and MARKER not in entries:
        raise ValueError(
            f"--out {path} holds files that mechsink did not write "
            f"({', '.join(sorted(entries)[:3])}). They are left alone: give a new "
            "folder, an empty one, or one that mechsink wrote before."
        )
    return made


def _replace(stage: Path, path: Path) -> None:
    """Put the stage's entries in the place of those that the marker lists."""
    for name in (path / MARKER).read_text().splitlines():
        old = path / Path(name).name  # never outside this folder
        if old.is_dir() and not old.is_symlink():
            shutil.rmtree(old)
        else:
            old.unlink(missing_ok=True)
    names = sorted(new.name for new in stage.iterdir())
    for name in names:
        target = path / name
        if target.exists():  # a file that somebody put here in the meantime
            target.rename(path / f"{name}.old")
        (stage / name).rename(target)
    (path / MARKER).write_text("".join(f"{name}\n" for name in names))
