"""Pairs of prompts as lines of JSON: what a good line is, and what a bad one lacks.

May import: nothing of mechsink.
"""

import json
import re
import warnings
from pathlib import Path

KEYS = ("clean", "corrupted", "answer", "wrong")


def read_pairs(path: Path | str, *, skip_bad: bool) -> list[dict[str, str]]:
    """The pairs of a file, as `PromptPairs.from_jsonl` reads them.

    Raises:
        ValueError: a line is no pair, unless `skip_bad`; or no line is one.
    """
    rows: list[dict[str, str]] = []
    bad: list[ValueError] = []
    # Bytes, and no splitlines: text may hold characters that it takes for ends.
    for number, line in enumerate(Path(path).read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        row = _pair(line.removeprefix(b"\xef\xbb\xbf"))
        if isinstance(row, str):
            bad.append(_bad_line(path, number, row))
            if not skip_bad:
                raise bad[0]
        else:
            rows.append(row)
    if not rows:
        found = f"{len(bad)} lines, none of them a pair" if bad else "no lines"
        raise ValueError(
            f"PromptPairs: {path} has {found}. Write one pair a line."
        ) from (bad[0] if bad else None)
    if bad:
        warnings.warn(
            f"PromptPairs: left out {len(bad)} of {len(bad) + len(rows)} lines. "
            f"The first: {bad[0]}",
            stacklevel=3,
        )
    return rows


def _pair(line: bytes) -> dict[str, str] | str:
    """The pair that a line holds, or why it holds none."""
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return "it is not UTF-8"
    except (ValueError, RecursionError) as error:
        return f"it is not JSON ({error})"
    if not isinstance(row, dict):
        return f"it holds a {type(row).__name__}"
    for key in KEYS:
        if not isinstance(row.get(key), str):
            return f"{key!r} is {ascii(row.get(key))[:60]}"
        if not row[key].isascii() and re.search("[\ud800-\udfff]", row[key]):
            return f"{key!r} holds half a character, {ascii(row[key])[:60]}"
    return {key: row[key] for key in KEYS}


def _bad_line(path: Path | str, number: int, what: str) -> ValueError:
    return ValueError(
        f"PromptPairs: line {number} of {path} is no pair: {what}. Each line must be "
        'like {"clean": "...", "corrupted": "...", "answer": " Paris", '
        '"wrong": " Rome"}.'
    )
