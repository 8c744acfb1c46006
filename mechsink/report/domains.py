"""Texts by domain: prose and code that are on every machine, or the user's files.

May import: nothing but the texts beside it.
"""

import re
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from mechsink.report.texts import PER_TOKEN, read_texts

LEAST = 2  # texts a domain


def default_domains(n_texts: int, length: int) -> dict[str, list[str]]:
    """Documentation topics of CPython as prose, modules of its library as code.

    One text a topic and a module, so that texts are separate documents. There are
    some fifty topics of 128 tokens, and hundreds of modules.

    Args:
        n_texts: most texts a domain.
        length: tokens that each must be good for.
    """
    from pydoc_data.topics import topics

    n_characters = PER_TOKEN * length
    prose = (re.sub(r"\s+", " ", topics[name]).strip() for name in sorted(topics))
    library = Path(sysconfig.get_paths()["stdlib"])
    modules = (_from_first_definition(path) for path in sorted(library.glob("*.py")))
    return {
        name: [text[:n_characters] for text in texts if len(text) >= n_characters][
            :n_texts
        ]
        for name, texts in (("prose", prose), ("code", modules))
    }


def read_domains(
    given: Sequence[str], length: int, n_texts: int
) -> tuple[dict[str, list[str]], list[str]]:
    """Texts of NAME=PATH: a folder's files are its documents, a file is cut to pieces.

    Args:
        given: such as "code=src/" or "prose=notes.txt"; a name may come again.
        length: tokens wanted of each text.
        n_texts: most texts a domain.

    Returns:
        The texts by name, and what a reader should know about them.

    Raises:
        ValueError: no NAME=PATH, no such path, fewer than two domains, or fewer than
            two long texts in one.
    """
    paths: dict[str, list[Path]] = {}
    for word in given:
        name, sign, path = word.partition("=")
        if not (name and sign and path):
            raise ValueError(
                f"heads: --domain {word} is no NAME=PATH. Give a name and a file or "
                "folder, such as --domain code=src --domain prose=notes.txt."
            )
        if not Path(path).exists():
            raise ValueError(f"heads: --domain {word}: there is no {path}.")
        paths.setdefault(name, []).append(Path(path))
    if len(paths) == 1:
        raise ValueError(
            f"heads: only one domain, {next(iter(paths))}. A head is dormant on one "
            "compared with another: give --domain twice or more."
        )
    found, notes = {}, []
    for name, places in paths.items():
        files = [file for place in places for file in _files(place)]
        if len(files) >= LEAST:
            found[name] = _beginnings(files, length)[:n_texts]
        else:
            found[name] = _long(read_texts(files, length, n_texts), length)
            notes.append(
                f"{name}: {files[0].name} was cut into pieces. Pieces of one document "
                "are more alike than documents, so intervals are too narrow: give a "
                "folder with one file a document."
            )
        if len(found[name]) < LEAST:
            raise ValueError(
                f"heads: domain {name} has {len(found[name])} text(s) of "
                f"{PER_TOKEN * length} characters, {LEAST} are needed. Give more or "
                "longer files, or a smaller --length."
            )
    return found, notes


def _from_first_definition(path: Path) -> str:
    """A module's source from its first class or function on: no license, no header."""
    text = path.read_text(encoding="utf-8", errors="ignore")
    start = re.search(r"^(?:class|def) ", text, re.M)
    return text[start.start() :] if start else ""


def _files(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    found = sorted(path for path in place.rglob("*") if path.is_file())
    return [path for path in found if not path.name.startswith(".")]


def _beginnings(files: Sequence[Path], length: int) -> list[str]:
    """The start of each text file that is long enough."""
    texts = []
    for file in files:
        try:
            texts.append(file.read_text(encoding="utf-8")[: PER_TOKEN * length])
        except UnicodeDecodeError:
            continue  # a picture or an archive among the documents
    return _long(texts, length)


def _long(texts: Sequence[str], length: int) -> list[str]:
    return [text for text in texts if len(text) >= PER_TOKEN * length]
