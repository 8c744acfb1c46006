"""Verbs that train toys: demo, form."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mechsink.cli import numbers
from mechsink.cli.app import Out, Seed, Steps, app
from mechsink.cli.choices import PRESETS, model_names, offer
from mechsink.cli.verbs import Outcome, results, verb

if TYPE_CHECKING:
    from toy_tasks.bigram_backcopy import BigramBackcopy
    from toy_tasks.presets import Preset


@verb(
    app,
    "mechsink demo",
    "mechsink demo --out demo --steps 300",
    "mechsink demo --model ./my-model --seed 1 --json",
)
def demo(
    out: Out = Path("demo"),
    seed: Seed = 0,
    steps: Steps = None,
    model: Annotated[
        str,
        typer.Option(
            help="Real model to measure, as for `mechsink sinks`.",
            autocompletion=model_names,
        ),
    ] = "smollm2",
) -> Outcome:
    """A real model's sinks, and how the same things form in a toy: one report.

    Measures MODEL, trains two Bigram-Backcopy transformers (one layer and three)
    and tells both halves on one page. Minutes on two CPU cores; trained toys are
    kept in OUT and resumed.
    """
    with results(out) as stage:
        from mechsink.report.demo import write_demo

        page = write_demo(stage, model=model, toys=stage.parent, seed=seed, steps=steps)
    return Outcome(out, numbers.of_page(page))


@verb(
    app,
    "mechsink form bb-cpu --seed 1 --out form",
    "mechsink form bb3-cpu --text notes.txt --steps 500",
    "mechsink form --from form/bb-cpu-seed1 --out again --json",
)
def form(
    preset: Annotated[
        str,
        typer.Argument(
            help="bb-cpu, bb3-cpu, bb-sgd, bb-relu or bb-paper.",
            autocompletion=offer(PRESETS),
        ),
    ] = "bb-cpu",
    text: Annotated[
        Path | None, typer.Option(help="Text for the bigrams. Default: prose.")
    ] = None,
    from_: Annotated[
        Path | None,
        typer.Option("--from", help="Report on this trained run instead."),
    ] = None,
    seed: Seed = 0,
    steps: Steps = None,
    out: Out = Path("form"),
) -> Outcome:
    """Train a toy transformer and report how its sink formed.

    The same command again resumes what it trained, in OUT.
    """
    if from_ is None:
        task, recipe, name = _toy(preset, text, seed, steps)
    with results(out) as stage:
        from mechsink.report.formation import formation_report

        if from_ is None:
            from toy_tasks.training import train

            from_ = train(task, recipe, stage.parent / name, seed).folder
        report = formation_report(from_)
        report.save(stage)
    return Outcome(out, numbers.of_formation(report))


def _toy(
    preset: str, text: Path | None, seed: int, steps: int | None
) -> "tuple[BigramBackcopy, Preset, str]":
    """Task, recipe and folder name of a toy run, or a clear refusal."""
    import difflib
    import hashlib
    from dataclasses import replace

    from toy_tasks.bigram_backcopy import BigramBackcopy
    from toy_tasks.presets import PRESETS

    presets = [name for name in PRESETS if name.startswith("bb")]  # this task's
    if preset not in presets:
        near = difflib.get_close_matches(preset, presets, n=1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"form: no preset is called {preset!r}. {hint}Allowed: "
            f"{', '.join(presets)}."
        )
    words, digest = None, ""
    if text is not None:
        try:
            words = text.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"form: {text} is not UTF-8 text. Give a text file."
            ) from error
        digest = "-text" + hashlib.sha256(words.encode()).hexdigest()[:8]
    recipe = PRESETS[preset]
    if steps is not None:
        recipe = replace(recipe, steps=steps)
        digest += f"-{steps}steps"
    return BigramBackcopy.from_text(words), recipe, f"{preset}-seed{seed}{digest}"
