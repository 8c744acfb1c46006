"""Verbs that measure one model: sinks, heads, models."""

from pathlib import Path
from typing import Annotated

import typer

from mechsink.cli.app import Float64, Out, app, done, load


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
    float64: Float64 = False,
) -> None:
    """Attention sinks, value drains and residual peaks of a model.

    Example: [bold]mechsink sinks smollm2 --text notes.txt --out sinks[/bold]
    """
    from mechsink.report.folder import output_folder

    with output_folder(out) as stage:
        from mechsink.report.sinks import sink_report
        from mechsink.report.texts import read_texts

        given = read_texts(text, length, texts) if text else None
        loaded = load(model, float64)
        report = sink_report(
            loaded, given, position=position, length=length, eps=eps, n_texts=texts
        )
        report.save(stage)
    done(out)


@app.command()
def heads(
    model: Annotated[
        str, typer.Argument(help="smollm2, a local folder, a hub id, or toy:FOLDER.")
    ],
    domain: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=PATH, twice or more: a folder with a file a document, or a "
            "text file. Default: prose and code that come with Python."
        ),
    ] = None,
    out: Out = Path("heads"),
    length: Annotated[int, typer.Option(help="Tokens of each text.", min=3)] = 128,
    texts: Annotated[int, typer.Option(help="Most texts a domain.", min=2)] = 50,
    position: Annotated[int, typer.Option(help="The sink's position.", min=0)] = 0,
    confirm: Annotated[
        int, typer.Option(help="Heads to zero, the most different first.", min=0)
    ] = 8,
    seed: Annotated[int, typer.Option(help="Seed of the permutations.", min=0)] = 0,
    float64: Float64 = False,
) -> None:
    """Which heads rest on one kind of text and work on another.

    Example: [bold]mechsink heads smollm2 --domain prose=notes --domain code=src[/bold]
    """
    from mechsink.report.folder import output_folder

    with output_folder(out) as stage:
        from mechsink.progress import waiting
        from mechsink.report.domains import default_domains, read_domains
        from mechsink.report.heads import heads_report

        found, notes = default_domains(texts, length), list[str]()
        if domain:
            found, notes = read_domains(domain, length, texts)
        loaded = load(model, float64)
        with waiting("measuring heads"):
            report = heads_report(
                loaded,
                found,
                notes=notes,
                position=position,
                n_pos=length,
                n_confirm=confirm,
                seed=seed,
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
    from rich.text import Text

    from mechsink.models.catalogue import available_models
    from mechsink.visible import visible

    table = Table()
    for heading in ("name", "what it is", "how to load it", "ready"):
        table.add_column(heading, overflow="fold")
    for row in available_models():
        ready = "yes" if row["ready"] else "no"
        cells = (row["name"], row["what"], row["how"], ready)
        table.add_row(*(Text(visible(cell)) for cell in cells))  # names are no markup
    Console().print(table)
