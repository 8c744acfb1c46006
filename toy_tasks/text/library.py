"""The source of Python's standard library: text that every machine already has."""

import sysconfig
from functools import lru_cache
from pathlib import Path

OUTSIDE = {
    "site-packages", "dist-packages", "__pycache__", "ensurepip", "idlelib",
    "lib2to3", "msilib", "turtledemo",  # split off or gone in some distributions
    "encodings", "pydoc_data",  # tables, and documentation with its own markup
}  # fmt: skip
TESTS = {"test", "tests", "idle_test"}
HELD_OUT = 16
"""Every so many modules, one is kept out of training."""


@lru_cache(maxsize=2)
def library_text(*, with_tests: bool = False) -> tuple[str, str]:
    """Training text and held-out text: modules in the order of their paths.

    About 9 million characters, 31 with the library's own tests. Which they are
    depends on Python's version. Every sixteenth module is held out, whole.

    Raises:
        FileNotFoundError: this Python has no sources of its library on disk, or,
            where they are asked for, none of its tests.
    """
    root = Path(sysconfig.get_path("stdlib"))
    files = [file for file in sorted(root.rglob("*.py")) if _belongs(file, root)]
    if with_tests and not any(_is_test(file, root) for file in files):
        raise FileNotFoundError(
            f"library_text: {root} has no tests of the library; some distributions "
            "ship them apart (Debian: libpython3-testsuite). Install them, or take "
            "with_tests=False."
        )
    if not with_tests:
        files = [file for file in files if not _is_test(file, root)]
    if len(files) < HELD_OUT:
        raise FileNotFoundError(
            f"library_text: {root} has {len(files)} modules in source. This Python "
            "seems to be packed without them (a zip, or compiled only): run it under "
            "a plain CPython."
        )
    texts = [file.read_text("utf-8", errors="replace") for file in files]
    held_out = texts[HELD_OUT - 1 :: HELD_OUT]
    training = [t for n, t in enumerate(texts) if n % HELD_OUT != HELD_OUT - 1]
    return "\n".join(training), "\n".join(held_out)


def _belongs(file: Path, root: Path) -> bool:
    folders = file.relative_to(root).parts[:-1]
    # config-3.11-x86_64-linux-gnu and the like differ from machine to machine.
    return not any(f in OUTSIDE or f.startswith("config-") for f in folders) and not (
        file.name.startswith("_sysconfigdata")
    )


def _is_test(file: Path, root: Path) -> bool:
    return bool(TESTS & set(file.relative_to(root).parts[:-1]))
