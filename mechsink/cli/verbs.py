"""What every verb has: examples in its help, --json, --config, run.toml, one last line.

A verb is a plain function of its options, registered by `verb`. It works within
`results(out)` and returns an `Outcome`.
"""

import functools
import hashlib
import inspect
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import typer

from mechsink.cli import settings
from mechsink.cli.app import AS_JSON, VERB, complain, write_json
from mechsink.cli.exits import CLAIM, DONE

REPLAYED = "mechsink.replayed"
"""Name in a context's `meta`: the folder whose run is repeated."""

_PAGES = ("report.html", "README.md")
F = TypeVar("F", bound=Callable[..., Any])
_context: ContextVar[Any] = ContextVar("context", default=None)


@dataclass(frozen=True)
class Outcome:
    """What a verb found; `numbers` and `more` are for --json."""

    folder: Path | None = None
    numbers: Mapping[str, Any] = field(default_factory=dict)
    failed: str | None = None  # a claim, although all is written
    more: Mapping[str, Any] = field(default_factory=dict)


def verb(
    group: typer.Typer, *examples: str, has_settings: bool = True
) -> Callable[[Callable[..., Outcome]], Callable[..., Outcome]]:
    """Register a function as a verb.

    Args:
        group: the command that it is a verb of.
        examples: whole command lines; they end the verb's help, and tests parse them.
        has_settings: whether it takes --config and writes run.toml.
    """

    def register(function: Callable[..., Outcome]) -> Callable[..., Outcome]:
        @functools.wraps(function)
        def run(context: Any, **options: Any) -> None:
            options.pop("as_json")
            options.pop("config", None)
            _run(context, function, options)

        signature = inspect.signature(function, eval_str=True)
        common = [_option("context", typer.Context), *signature.parameters.values()]
        common.append(_option("as_json", _AsJson, default=False))
        if has_settings:
            common.append(_option("config", _Config, default=None))
        _sign(run, common)
        run.path_names = frozenset(  # type: ignore[attr-defined]
            one.name
            for one in signature.parameters.values()
            if _has_path(one.annotation)
        )
        lines = [f"[bold]{example}[/bold]" for example in examples]
        heading = "Examples" if len(examples) > 1 else "Example"
        group.command(epilog="\n\n".join([f"{heading}:", *lines]))(run)
        return function

    return register


def takes_context(function: F) -> F:
    """The function, whose `context` typer fills in.

    It asks for that with a type of its own, which its contexts are not of.
    """
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    given = [
        _option("context", typer.Context) if one.name == "context" else one
        for one in parameters
    ]
    _sign(function, given)
    return function


@contextmanager
def results(out: Path) -> Iterator[Path]:
    """`output_folder`, which gets run.toml with the rest."""
    from mechsink.report.folder import output_folder

    context, folder = _context.get(), out.expanduser()
    with output_folder(out) as stage:
        yield stage
        text = settings.written(context, context.meta[VERB], folder)
        (stage / settings.FILE).write_text(text, encoding="utf-8")


def is_json() -> bool:
    """Whether the verb that runs was given --json."""
    return bool(_context.get().meta.get(AS_JSON))


def name_of(context: Any) -> str:
    """A verb's name as typed, "experiment operators"."""
    words: list[str] = []
    while context.parent is not None:
        words.insert(0, context.info_name)
        context = context.parent
    return " ".join(words)


def _run(context: Any, function: Callable[..., Outcome], options: Any) -> None:
    started = time.perf_counter()
    context.meta[VERB] = name_of(context)
    as_json = context.meta.get(AS_JSON, False)
    token = _context.set(context)
    try:
        # What a library prints has no place beside the one object.
        with redirect_stdout(sys.stderr) if as_json else nullcontext():
            outcome = function(**options)
    finally:
        _context.reset(token)
    found = _found(context, outcome, round(time.perf_counter() - started, 3))
    if as_json:
        write_json(found)
    elif outcome.folder is not None:
        _tell(found)
    if outcome.failed is not None:
        complain(outcome.failed)
        raise typer.Exit(CLAIM)


def _found(context: Any, outcome: Outcome, seconds: float) -> dict[str, Any]:
    """All that --json says."""
    from mechsink.files import plain

    code = DONE if outcome.failed is None else CLAIM
    found: dict[str, Any] = {"verb": context.meta[VERB], "ok": code == DONE}
    found["exit_code"] = code
    if outcome.failed is not None:
        found["error"] = outcome.failed
    if outcome.folder is not None:
        folder = outcome.folder.expanduser()
        tables = _tables(folder)
        pages = [folder / name for name in _PAGES if (folder / name).is_file()]
        found["folder"] = str(folder)
        found["page"] = str(pages[0]) if pages else None
        found["settings"] = str(folder / settings.FILE)
        found["tables"] = {name: str(path) for name, path in tables.items()}
        if (before := context.meta.get(REPLAYED)) is not None:
            found["replay_of"] = str(before)
            found["changed_tables"] = _changed(tables, _tables(before))
    found["numbers"] = plain(outcome.numbers)
    return {**found, **plain(outcome.more), "seconds": seconds}


def _tell(found: Mapping[str, Any]) -> None:
    """What was written, in lines of text; the page comes last."""
    from mechsink.visible import visible

    if (before := found.get("replay_of")) is not None:
        changed = found["changed_tables"]
        said = f"not as in {before}: {', '.join(changed)}"
        said = said if changed else f"every table is as in {before}"
        sys.stdout.write(f"{visible(said)}\n")
    sys.stdout.write(f"{visible(found['page'] or found['folder'])}\n")


def _tables(folder: Path) -> dict[str, Path]:
    """Tables of a folder's results by name; those of runs that lie there are not."""
    from mechsink.report.folder import MARKER

    names = (folder / MARKER).read_text(encoding="utf-8").splitlines()
    found: dict[str, Path] = {}
    for place in (folder / name for name in names):
        for path in sorted([place, *place.rglob("*")]):
            if path.suffix in (".csv", ".parquet") and path.is_file():
                found[path.relative_to(folder).with_suffix("").as_posix()] = path
    return found


def _changed(tables: Mapping[str, Path], before: Mapping[str, Path]) -> list[str]:
    """Names of tables that differ in any byte, or that one folder lacks."""

    def digest(path: Path | None) -> str | None:
        return None if path is None else hashlib.sha256(path.read_bytes()).hexdigest()

    names = sorted({*tables, *before})
    return [n for n in names if digest(tables.get(n)) != digest(before.get(n))]


def _take_config(context: Any, path: Path | None) -> Path | None:
    if path is not None and not context.resilient_parsing:
        made = settings.as_defaults(path, context.command, name_of(context))
        context.default_map = {**(context.default_map or {}), **made}
    return path


def _has_path(annotation: Any) -> bool:
    return annotation is Path or any(map(_has_path, get_args(annotation)))


def _sign(function: Any, parameters: Sequence[inspect.Parameter]) -> None:
    """Give a function the parameters that typer makes options of."""
    function.__signature__ = inspect.Signature(parameters)
    function.__annotations__ = {one.name: one.annotation for one in parameters}


def _option(name: str, annotation: Any, **default: Any) -> inspect.Parameter:
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return inspect.Parameter(name, kind, annotation=annotation, **default)


takes_context(_take_config)
_AsJson = Annotated[
    bool,
    typer.Option(
        "--json", help="Print one JSON object: folder, numbers, tables, page, seconds."
    ),
]
_Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="TOML file with options, such as a run.toml; those given here win.",
        is_eager=True,
        callback=_take_config,
    ),
]
