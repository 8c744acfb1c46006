"""Verbs that measure one model: sinks, heads, models."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from mechsink.cli import numbers
from mechsink.cli.app import Float64, ModelName, Out, app, load
from mechsink.cli.verbs import Outcome, is_json, results, verb


@verb(
    app,
    "mechsink sinks smollm2",
    "mechsink sinks smollm2 --text notes.txt --length 128 --out sinks",
    "mechsink sinks ./my-model --eps 0.2 --position 1 --json",
)
def sinks(
    model: ModelName,
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
) -> Outcome:
    """Attention sinks, value drains and residual peaks of a model."""
    with results(out) as stage:
        from mechsink.report.sinks import sink_report
        from mechsink.report.texts import read_texts

        given = read_texts(text, length, texts) if text else None
        loaded = load(model, float64)
        report = sink_report(
            loaded, given, position=position, length=length, eps=eps, n_texts=texts
        )
        report.save(stage)
    return Outcome(out, numbers.of_sinks(report))


@verb(
    app,
    "mechsink heads smollm2",
    "mechsink heads smollm2 --domain prose=notes --domain code=src --texts 100",
    "mechsink heads ./my-model --domain a=a.txt --domain b=b.txt --confirm 0 --json",
)
def heads(
    model: ModelName,
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
) -> Outcome:
    """Which heads rest on one kind of text and work on another."""
    with results(out) as stage:
        from mechsink.report.domains import default_domains, read_domains
        from mechsink.report.heads import heads_report

        found, notes = default_domains(texts, length), list[str]()
        if domain:
            found, notes = read_domains(domain, length, texts)
        loaded = load(model, float64)
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
    return Outcome(out, numbers.of_heads(report))


@verb(app, "mechsink models", "mechsink models --json", has_settings=False)
def models() -> Outcome:
    """What can be loaded here, and how.

    On a terminal a table, else one line a model: name, what, how, ready.
    """
    from mechsink.models.catalogue import available_models

    rows = available_models()
    if not is_json():
        _show(rows)
    return Outcome(more={"models": rows})


def _show(rows: list[dict]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from mechsink.visible import visible

    names = ("name", "what", "how", "ready")
    cells = [
        [visible(str(row[name])) if name != "ready" else "yes" if row[name] else "no"
         for name in names]
        for row in rows
    ]  # fmt: skip
    if not sys.stdout.isatty():
        for line in cells:
            sys.stdout.write("\t".join(" ".join(cell.split()) for cell in line) + "\n")
        return
    table = Table()
    for heading in ("name", "what it is", "how to load it", "ready"):
        table.add_column(heading, overflow="fold")
    for line in cells:
        table.add_row(*map(Text, line))  # names are no markup
    Console().print(table)
