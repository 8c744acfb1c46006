"""What is finished, kept as it comes: one saved result a piece of work.

FOLDER/work.json      what was asked, so that another question is refused
FOLDER/parts/000012/  the result of one piece (`Result.save`)

Once all is there the whole result takes the parts' place.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from mechsink.files import atomic_write, plain, to_json
from mechsink.results import Result
from toy_tasks.storage import locked


class Store:
    """Results of pieces of work, in a folder that one process holds."""

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        self.parts = folder / "parts"
        self._claim(plain(identity))

    @classmethod
    @contextmanager
    def held(cls, folder: Path | str, identity: Mapping[str, Any]) -> "Iterator[Store]":
        """A store whose folder no other process can use meanwhile.

        Raises:
            RuntimeError: another process holds it.
            ValueError: it holds other work, or a result that comes from elsewhere.
            OSError: it can't be written.
        """
        folder = Path(folder)
        with locked(folder, "spread"):
            yield cls(folder, identity)

    def whole(self) -> Result | None:
        """The finished result, if it is there."""
        return _loaded(self.folder)

    def part(self, number: int) -> Result | None:
        """A finished piece; None if it is yet to be done."""
        return _loaded(self._at(number))

    def keep(self, number: int, result: Result) -> None:
        """Store a finished piece."""
        self.parts.mkdir(exist_ok=True)
        _named(result).save(self._at(number))

    def finish(self, result: Result) -> None:
        """Store the whole and let go of the pieces."""
        _named(result).save(self.folder)
        shutil.rmtree(self.parts, ignore_errors=True)

    def _at(self, number: int) -> Path:
        return self.parts / f"{number:06d}"

    def _claim(self, identity: dict[str, Any]) -> None:
        path = self.folder / "work.json"
        if not path.exists():
            others = [p.name for p in self.folder.iterdir() if p.name[0] != "."]
            if others:
                raise ValueError(
                    f"spread: {self.folder} holds files of something else "
                    f"({', '.join(sorted(others)[:3])}). Give a new folder."
                )
            atomic_write(path, to_json(identity))
            return
        try:
            saved = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(
                f"spread: {path} is damaged ({error}). Delete the folder, or give a "
                "new one."
            ) from error
        differ = sorted(k for k in identity | saved if saved.get(k) != identity.get(k))
        if differ:
            raise ValueError(
                f"spread: {self.folder} holds other work; it differs in "
                f"{', '.join(differ)}. Give a new folder, or ask the same again."
            )


def _named(result: Result) -> Result:
    """The result with its type's name, by which `_loaded` knows what to load."""
    kind = type(result)
    return replace(
        result, meta={**result.meta, "class": f"{kind.__module__}:{kind.__qualname__}"}
    )


def _loaded(folder: Path) -> Result | None:
    if not (folder / "meta.json").exists():
        return None
    name = json.loads((folder / "meta.json").read_text()).get("class", "")
    module, _, kind = name.partition(":")
    if not module.startswith("mechsink."):  # the name of a file never runs code
        raise ValueError(
            f"spread: {folder} holds a result of {name or 'something else'}, which "
            "spread did not write. Give a new folder."
        )
    result = getattr(import_module(module), kind).load(folder)
    del result.meta["class"]
    return result
