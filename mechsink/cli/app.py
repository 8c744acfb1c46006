"""The command itself: its options for all verbs, and mistakes told in words."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from mechsink.cli.choices import model_names
from mechsink.cli.exits import BAD_INPUT, CODES, code_of, explain

if TYPE_CHECKING:
    from mechsink.run import Model

AS_JSON, VERB = "mechsink.json", "mechsink.verb"
"""Names in a context's `meta`: whether --json was given, and the verb's name."""

_UsageError: Any = typer.BadParameter.mro()[1]  # of click, or of typer's copy of it


class _Verbs(typer.core.TyperGroup):
    """The verbs, with errors told in words: no traceback unless --debug."""

    def make_context(self, info_name: Any, args: Any, *rest: Any, **extra: Any) -> Any:
        as_json = "--json" in (args[: args.index("--")] if "--" in args else args)
        try:
            context = super().make_context(info_name, args, *rest, **extra)
        except _UsageError as error:
            if as_json:
                write_failure(None, BAD_INPUT, error.format_message())
            raise
        context.meta[AS_JSON] = as_json
        return context

    def invoke(self, ctx: Any) -> Any:
        os.environ.setdefault("MPLBACKEND", "agg")  # figures go to files
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except _UsageError as error:
            if ctx.meta[AS_JSON]:
                write_failure(_verb(ctx), BAD_INPUT, error.format_message())
            raise
        except (Exception, KeyboardInterrupt) as error:
            if ctx.params.get("debug"):
                raise
            code, message = code_of(error), explain(error)
            complain(message)
            if ctx.meta[AS_JSON]:
                write_failure(_verb(ctx), code, message)
            raise typer.Exit(code) from None


_MEANINGS = "\n\n".join(f"{code}: {meaning}" for code, meaning in CODES.items())

app = typer.Typer(
    cls=_Verbs,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Attention sinks and circuits of transformers: measure, train a toy, report."
    "\n\nEach verb writes a folder with tables, figures, one report.html that opens "
    "offline, and run.toml, which repeats the run: mechsink replay FOLDER/run.toml. "
    "With --json a verb prints one JSON object, errors included.",
    epilog=f"[bold]Exit codes[/bold]\n\n{_MEANINGS}",
)

ModelName = Annotated[
    str,
    typer.Argument(
        help="smollm2, a local folder, a hub id, or toy:FOLDER.",
        autocompletion=model_names,
    ),
]
Out = Annotated[
    Path, typer.Option(help="Folder for the results: new, or written by mechsink.")
]
Seed = Annotated[int, typer.Option(help="Seed of the toy's weights and data.", min=0)]
Steps = Annotated[
    int | None, typer.Option(help="Training steps, instead of the preset's.", min=1)
]
Float64 = Annotated[
    bool,
    typer.Option(
        "--float64/--no-float64",
        help="Measure a float64 copy of the model, on the CPU: what then goes away was "
        "rounding. Eight bytes a weight, several times slower.",
    ),
]


def _print_versions(asked: bool) -> bool:
    if asked:
        from importlib.metadata import version

        names = ("mechsink", "torch", "transformers", "transformer-lens")
        typer.echo(", ".join(f"{name} {version(name)}" for name in names))
        raise typer.Exit
    return asked


Version = Annotated[
    bool,
    typer.Option(
        "--version", callback=_print_versions, is_eager=True, help="Print versions."
    ),
]


@app.callback()
def _options(
    version: Version = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    pass


def load(model: str, float64: bool = False) -> "Model":
    """The model to measure, with a line on the screen while it loads."""
    from mechsink.models.load import load_model
    from mechsink.progress import waiting

    with waiting(f"loading {model}"):
        loaded = load_model(model)
        if not float64:
            return loaded
        from mechsink.models.float64 import in_float64

        return in_float64(loaded)


def write_failure(verb: str | None, code: int, message: str) -> None:
    """The JSON object of a verb that failed."""
    write_json({"verb": verb, "ok": False, "exit_code": code, "error": message})


def write_json(found: dict[str, Any]) -> None:
    """One JSON object on stdout, in ASCII, whatever the terminal's encoding is."""
    import json

    sys.stdout.write(json.dumps(found, allow_nan=False) + "\n")


def complain(message: str) -> None:
    """A sentence on stderr, no markup and no control character in it."""
    from rich.console import Console
    from rich.text import Text

    from mechsink.visible import visible

    console = Console(stderr=True)
    said = Text.assemble(("mechsink: ", "bold red"), visible(message))
    console.print(said, soft_wrap=True)


def _verb(ctx: Any) -> str | None:
    return ctx.meta.get(VERB) or ctx.invoked_subcommand
