"""The command itself: its options for all verbs, and mistakes told in words."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

if TYPE_CHECKING:
    from mechsink.run import Model

BAD_INPUT, FAILURE, STOPPED = 2, 1, 130
"""Exit codes beside 0; they stand in the help text too."""

_INPUT_ERRORS = (ValueError, FileNotFoundError, PermissionError, NotADirectoryError)
_INPUT_ERRORS += (IsADirectoryError, FileExistsError)

_UsageError: Any = typer.BadParameter.mro()[1]  # of click, or of typer's copy of it


class _Verbs(typer.core.TyperGroup):
    """The verbs, with errors told in words: no traceback unless --debug."""

    def invoke(self, ctx: Any) -> Any:
        os.environ.setdefault("MPLBACKEND", "agg")  # figures go to files
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, _UsageError):
            raise
        except KeyboardInterrupt:
            _complain("stopped. What was trained so far is kept and resumed next time.")
            raise typer.Exit(STOPPED) from None
        except Exception as error:
            if ctx.params.get("debug"):
                raise
            _complain(_explain(error))
            is_input = isinstance(error, _INPUT_ERRORS)
            raise typer.Exit(BAD_INPUT if is_input else FAILURE) from None


def _explain(error: Exception) -> str:
    """One paragraph: our own messages as they are, what we did not expect by name."""
    if isinstance(error, ImportError):
        return f"{error}. Install what is missing, then run the same command again."
    if isinstance(error, MemoryError):
        return "out of memory. Give fewer or shorter texts, or a smaller model."
    if isinstance(error, ValueError | OSError | RuntimeError) and str(error):
        return str(error)
    return (
        f"unexpected {type(error).__name__}: {error}. This is a fault of mechsink: run "
        "again as `mechsink --debug ...` and report what that shows."
    )


app = typer.Typer(
    cls=_Verbs,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Attention sinks and circuits of transformers: measure, train a toy, report."
    "\n\nEach verb writes a folder with tables, figures and one report.html that opens "
    "offline. Exit codes: 0 done, 1 failure, 2 bad input, 130 stopped.",
)

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
        "--float64",
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


def load(model: str, float64: bool) -> "Model":
    """The model to measure, with a line on the screen while it loads."""
    from mechsink.models.load import load_model
    from mechsink.progress import waiting

    with waiting(f"loading {model}"):
        loaded = load_model(model)
        if not float64:
            return loaded
        from mechsink.models.float64 import in_float64

        return in_float64(loaded)


def done(out: Path, name: str = "report.html") -> None:
    """Print the path of what was written, last."""
    from mechsink.visible import visible

    sys.stdout.write(f"{visible(str(out.expanduser() / name))}\n")


def _complain(message: str) -> None:
    from rich.console import Console
    from rich.text import Text

    from mechsink.visible import visible

    console = Console(stderr=True)
    said = Text.assemble(("mechsink: ", "bold red"), visible(message))
    console.print(said, soft_wrap=True)
