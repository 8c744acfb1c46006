"""The verb that repeats a run from its run.toml."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mechsink.cli import settings
from mechsink.cli.app import app
from mechsink.cli.verbs import REPLAYED, takes_context

_EXAMPLES = (
    "mechsink replay sinks/run.toml",
    "mechsink replay patch/run.toml --out again --json",
    "mechsink replay form/run.toml --seed 3 --out other-seed",
)


@app.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    epilog="\n\n".join(["Examples:", *(f"[bold]{one}[/bold]" for one in _EXAMPLES)]),
)
@takes_context
def replay(
    context: Any,
    path: Annotated[Path, typer.Argument(metavar="RUN.toml", help="Of any verb.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Default: the folder of the file, -replayed after its name."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, as the verb does.")
    ] = False,
) -> None:
    """Repeat a run from the run.toml beside its results, and compare the tables.

    Options of the verb, given after the file, win over it.
    """
    words = _words(path)
    command: Any = context.parent.command if context.parent else None
    for word in words:
        command = getattr(command, "commands", {}).get(word)
    if command is None or hasattr(command, "commands") or words == ["replay"]:
        raise typer.BadParameter(
            f"{path}: mechsink has no verb {' '.join(words)!r}. `mechsink --help` "
            "names them."
        )
    folder = path.expanduser().resolve().parent
    target = out or folder.with_name(f"{folder.name}-replayed")
    args = ["--config", str(path), "--out", str(target), *context.args]
    args += ["--json"] if as_json else []
    sub = command.make_context(" ".join(words), args, parent=context.parent)
    if (folder / ".mechsink").is_file():
        sub.meta[REPLAYED] = folder
    with sub:
        sub.command.invoke(sub)


def _words(path: Path) -> list[str]:
    found = settings.read(path)
    verb = found.get("verb")
    if not isinstance(verb, str) or not verb:
        raise typer.BadParameter(
            f'{path} names no verb. Write one, such as verb = "patch", or run '
            f"`mechsink VERB --config {path}`."
        )
    written, here = found.get("mechsink"), _version()
    if written not in (None, here):
        typer.echo(
            f"mechsink: {path} was written by mechsink {written}; this is {here}.",
            err=True,
        )
    return verb.split()


def _version() -> str:
    from importlib.metadata import version

    return version("mechsink")
