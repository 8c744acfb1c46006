"""A run's options as TOML: written beside its results, read by --config and replay.

    verb = "patch"
    model = "smollm2"
    pairs = "../pairs.jsonl"    # paths are seen from the file's own folder
    site = ["resid_pre", "z"]

Keys are the options' long names and the arguments' names.
"""

import difflib
import os
import tomllib
from pathlib import Path
from typing import Any

import typer

from mechsink.cli.choices import MODELS

FILE = "run.toml"
OWN = ("mechsink", "verb")
"""Keys that are no option: the version that wrote the file, and its verb."""

_NOT_KEPT = ("help", "json", "config")


def keys_of(command: Any) -> dict[str, Any]:
    """Each option and argument of a verb by its key in the file."""
    return {
        key: parameter
        for parameter in command.params
        if (key := _key(parameter)) not in _NOT_KEPT
    }


def written(context: Any, verb: str, out: Path) -> str:
    """The file's text: every option with the value it had, defaults included.

    Args:
        context: click's, of the verb.
        verb: its name, such as "experiment operators".
        out: the folder that the file will lie in.
    """
    from importlib.metadata import version

    lines = [
        f"# Repeat this run: mechsink replay {FILE} --out FOLDER",
        "# or, with some options changed: "
        f"mechsink {verb} --config {FILE} --out FOLDER ...",
        *_line("mechsink", version("mechsink")),
        *_line("verb", verb),
        "",
    ]
    for key, parameter in keys_of(context.command).items():
        value = context.params[parameter.name]
        is_path = parameter.name in _paths(context.command)
        lines += _line(key, _seen_from(out, key, value, is_path))
    return "\n".join(lines) + "\n"


def read(path: Path) -> dict[str, Any]:
    """What a file says, its paths not yet found.

    Raises:
        typer.BadParameter: the file is missing, or no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise typer.BadParameter(
            f"{path} cannot be read: {error.strerror}. Give a TOML file, such as the "
            f"{FILE} in a folder that mechsink wrote."
        ) from error
    except ValueError as error:  # no TOML, or no UTF-8
        raise typer.BadParameter(f"{path} is no TOML file: {error}.") from error


def as_defaults(path: Path, command: Any, verb: str) -> dict[str, Any]:
    """A file's options as click's defaults of a verb, by parameter name.

    Raises:
        typer.BadParameter: a key that is no option of this verb (the nearest is
            suggested), a value of another kind, a file of another verb.
    """
    found, keys = read(path), keys_of(command)
    if (other := found.get("verb", verb)) != verb:
        raise typer.BadParameter(
            f"{path} is of `mechsink {other}`, and this is `mechsink {verb}`. Run "
            f"`mechsink {other} --config {path}`, or `mechsink replay {path}`."
        )
    defaults: dict[str, Any] = {}
    for given, value in found.items():
        key = given.replace("_", "-")
        if given in OWN:
            continue
        if key not in keys:
            near = difflib.get_close_matches(key, keys, n=1)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            raise typer.BadParameter(
                f"{path}: {given!r} is no option of `mechsink {verb}`. {hint}Allowed: "
                f"{', '.join(keys)}."
            )
        parameter = keys[key]
        _check_kind(path, given, value, parameter)
        if _takes_several(parameter) and not isinstance(value, list):
            value = [value]
        is_path = parameter.name in _paths(command)
        defaults[parameter.name] = _found_from(path.parent, key, value, is_path)
    return defaults


def _key(parameter: Any) -> str:
    """The long name of an option, the name of an argument."""
    long = [name[2:] for name in parameter.opts if name.startswith("--")]
    return (long[0] if long else parameter.name).replace("_", "-")


def _line(key: str, value: Any) -> list[str]:
    import tomli_w

    if value is None or value == []:
        return [f"# {key}: not given"]
    line = tomli_w.dumps({key: value}).strip()
    try:
        line.encode()
    except UnicodeEncodeError:  # TOML is UTF-8, and a file's name need not be
        return [f"# {key}: {value!a} has no place in TOML; give it as an option"]
    return [line]


def _check_kind(path: Path, key: str, value: Any, parameter: Any) -> None:
    """Raise typer.BadParameter for a table, or a list where one value goes."""
    items = value if isinstance(value, list) else [value]
    several = _takes_several(parameter)
    is_switch = getattr(parameter, "is_flag", False)
    wrong = any(isinstance(item, dict | list) for item in items)
    wrong = wrong or (isinstance(value, list) and not several)
    if wrong or is_switch != isinstance(value, bool):
        kind = "true or false" if is_switch else "a text or number"
        raise typer.BadParameter(
            f"{path}: {key} = {value!r}. Allowed: "
            f"{f'a list, each {kind}' if several else kind}."
        )


def _paths(command: Any) -> frozenset[str]:
    """Names of parameters that are paths, as `verb` notes them."""
    return getattr(command.callback, "path_names", frozenset())


def _takes_several(parameter: Any) -> bool:
    return bool(getattr(parameter, "multiple", False)) or parameter.nargs != 1


def _seen_from(folder: Path, key: str, value: Any, is_path: bool) -> Any:
    """A value for the file in `folder`: paths relative to it, None as it is."""
    if isinstance(value, list | tuple):
        return [_seen_from(folder, key, item, is_path) for item in value]
    if is_path and value is not None:
        return _relative(folder, Path(value))
    if key == "model" and isinstance(value, str) and value not in MODELS:
        kind, place = _taken_apart(value)
        if place.exists():
            return f"{kind}{_relative(folder, place)}"
    if key == "domain" and "=" in str(value):
        name, place = str(value).split("=", 1)
        return f"{name}={_relative(folder, Path(place))}"
    return value


def _found_from(folder: Path, key: str, value: Any, is_path: bool) -> Any:
    """A file's value as on a command line, where texts come in and paths are whole."""
    if isinstance(value, list):
        return [_found_from(folder, key, item, is_path) for item in value]
    if isinstance(value, bool):
        return value
    text = str(value)
    if is_path:
        return str(_whole(folder, Path(text)))
    if key == "model":
        kind, place = _taken_apart(text)
        is_place = text.removeprefix(kind).split("/")[0] in (".", "..")
        return f"{kind}{_whole(folder, place)}" if is_place else text
    if key == "domain" and "=" in text:
        name, place = text.split("=", 1)
        return f"{name}={_whole(folder, Path(place))}"
    return text


def _taken_apart(model: str) -> tuple[str, Path]:
    """ "toy:" or nothing, and the folder that may follow."""
    kind = "toy:" if model.startswith("toy:") else ""
    return kind, Path(model.removeprefix(kind)).expanduser()


def _relative(folder: Path, place: Path) -> str:
    """With a dot before it, so that no folder is taken for a hub id."""
    try:
        found = os.path.relpath(place.expanduser().resolve(), folder.resolve())
    except ValueError:  # another drive
        return str(place.resolve())
    found = Path(found).as_posix()
    return found if found.split("/")[0] in (".", "..") else f"./{found}"


def _whole(folder: Path, place: Path) -> Path:
    return Path(os.path.normpath(folder / place.expanduser()))
