"""What counts as one clear error: ours, said on purpose, with advice.

Under the tests' shape checker a value of the wrong type or shape never gets as far:
its own error counts as a refusal here. `test_as_users.py` runs all of this without.
"""

import linecache
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from beartype.roar import BeartypeCallHintViolation
from jaxtyping import TypeCheckError

import mechsink
import toy_tasks

ROOMS = tuple(str(Path(str(room.__file__)).parent) for room in (mechsink, toy_tasks))
ADVICE = re.compile(
    r"\b(allowed|give|pass|take|write|choose|needed|must|use|leave|did you mean|call|"
    r"train|delete|put|name|read|say|count|save|load|install|cut|lacks|holds|cannot|"
    r"make|exchange|corrupt|check|add|part|set)\b",
    re.I,
)
KINDS = (ValueError, TypeError, FileNotFoundError, OSError, MemoryError)


def is_clear(error: BaseException) -> bool:
    """Whether our own code raised it in a `raise` statement, with words that help."""
    if type(error) not in KINDS:
        return False
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1]
    ours = last.filename.startswith(ROOMS)
    line = linecache.getline(last.filename, last.lineno or 0).strip()
    said = str(error)
    return ours and line.startswith("raise") and bool(ADVICE.search(said))


def tried(call: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """The call's result, or its clear error; any other error is one of the test."""
    try:
        return call(*args, **options)
    except (TypeCheckError, BeartypeCallHintViolation) as error:
        return error
    except Exception as error:
        if not is_clear(error):
            raise AssertionError(
                f"{type(error).__name__} is no clear error: {error}"
            ) from error
        return error


def is_refused(found: Any) -> bool:
    """Whether `tried` gave an error in place of a result."""
    return isinstance(found, Exception)
