"""Verbs that measure one model: sinks, models."""

from pathlib import Path
from typing import Annotated

import typer

from mechsink.cli.app import Out, app, done


@app.command()
def sinks(
    model: Annotated[
        str, typer.Argument(help="smollm2, a local folder, a hub id, or toy:FOLDER.")
    ],
    text: Annotated[
        list[Path] | None,
        typer.Option(help="Text file to measure on, repeatable. Default: prose."),
    ] = None,
    out: Out = Path("sinks"),
    length: Annotated[int, typer.Option(help="Tokens of each text.", min=2)] = 64,
    texts: Annotated[
        int, typer.Option(help="Texts, cut from the files or the prose.", min=1)
    ] = 100,
    position: Annotated[
        int, typer.Option(help="Position whose sink is measured, from 0.", min=0)
    ] = 0,
    eps: Annotated[
        float, typer.Option(help="Sink score above which a head counts.", min=0, max=1)
    ] = 0.3,
) -> None:
    """Attention sinks, value drains and residual peaks of a model.

    Example: [bold]mechsink sinks smollm2 --text notes.txt --out sinks[/bold]
    """
    from mechsink.report.folder import output_folder

    with output_folder(out) as stage:
        from mechsink.models.load import load_model
        from mechsink.progress import waiting
        from mechsink.report.sinks import sink_report
        from mechsink.report.texts import read_texts

        given = read_texts(text, length, texts) if text else None
        with waiting(f"loading {model}"):
            loaded = load_model(model)
        report = sink_report(
            loaded, given, position=position, length=length, eps=eps, n_texts=texts
        )
        report.save(stage)
    done(out)


@app.command()
def models() -> None:
    """What can be loaded here, and how.

    Example: [bold]mechsink models[/bold]
    """
    from rich.console import Console
    from rich.table import Table

    from mechsink.models.load import available_models

    table = Table()
    for heading in ("name", "what it is", "how to load it", "ready"):
        table.add_column(heading, overflow="fold")
    for row in available_models():
        ready = "yes" if row["ready"] else "no"
        table.add_row(row["name"], row["what"], row["how"], ready)
    Console().print(table)
