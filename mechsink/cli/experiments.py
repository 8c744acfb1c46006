"""Verbs that run published experiments: `mechsink experiment NAME`."""

from collections.abc import Callable
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from mechsink.cli import numbers
from mechsink.cli.app import ModelName, app, load
from mechsink.cli.choices import (
    BEDS,
    ENGINES,
    KNOBS,
    OPERATORS,
    REMEDIES,
    SETTINGS,
    offer,
)
from mechsink.cli.verbs import Outcome, results, verb

if TYPE_CHECKING:
    from mechsink.experiments.study import Study

experiment = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Published experiments: train, measure, compare with what was to be shown."
    "\n\nEach writes a folder with README.md, tables and figures. Exit code 4 where a "
    "claim does not hold; the folder is written all the same.",
)
app.add_typer(experiment, name="experiment")

Quick = Annotated[
    bool,
    typer.Option(
        "--quick/--no-quick", help="A small form with the main claim, in a minute."
    ),
]
Seeds = Annotated[
    int | None, typer.Option(help="How many seeds, from 0. Default: 5.", min=1)
]
Workers = Annotated[
    int | None, typer.Option(help="Processes. Default: one a core.", min=1)
]
EngineName = Annotated[
    str,
    typer.Option(
        help="Where toys are trained: pool (this machine), here (this process), or "
        "ray.",
        autocompletion=offer(ENGINES),
    ),
]
Address = Annotated[
    str | None,
    typer.Option(help="Of a Ray cluster, or auto. Default: Ray starts here."),
]
Runs = Annotated[
    Path | None,
    typer.Option(help="Where trained toys are kept and resumed. Default: OUT/runs."),
]
Out = Annotated[Path, typer.Option(help="Folder: new, or written by mechsink.")]


@verb(
    experiment,
    "mechsink experiment operators --quick",
    "mechsink experiment operators --operator softmax --operator gate --seeds 3",
)
def operators(
    quick: Quick = False,
    seeds: Seeds = None,
    operator: Annotated[
        list[str] | None,
        typer.Option(
            help="One to train, repeatable. Default: the ten main ones.",
            autocompletion=offer(OPERATORS),
        ),
    ] = None,
    engine: EngineName = "pool",
    workers: Workers = None,
    address: Address = None,
    runs: Runs = None,
    out: Out = Path("operators"),
) -> Outcome:
    """Which attention operators form sinks: a grid of operators and seeds."""

    def run(stage: Path) -> "Study":
        from mechsink.experiments.operators import operator_study
        from toy_tasks.operators import MAIN

        return operator_study(
            stage,
            operator or MAIN,
            seeds=_range(seeds),
            quick=quick,
            engine=engine,
            workers=workers,
            address=address,
        )

    return _write(run, out, runs, "operators", quick)


@verb(
    experiment,
    "mechsink experiment formation --quick",
    "mechsink experiment formation --setting '3 layers' --seeds 3 --workers 2",
)
def formation(
    quick: Quick = False,
    seeds: Seeds = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            help="One to train, repeatable, such as '3 layers'. Default: all.",
            autocompletion=offer(SETTINGS),
        ),
    ] = None,
    engine: EngineName = "pool",
    workers: Workers = None,
    address: Address = None,
    runs: Runs = None,
    out: Out = Path("formation"),
) -> Outcome:
    """Which extreme tokens form in training, and what the sink is for.

    Layers, Adam and SGD, softmax and ReLU, numbers of triggers; then the trained
    model with its attention swapped (Active-Dormant Heads, arXiv:2410.13835).
    """

    def run(stage: Path) -> "Study":
        from mechsink.experiments.formation.study import formation_study

        return formation_study(
            stage,
            settings=setting,
            seeds=_range(seeds),
            quick=quick,
            engine=engine,
            workers=workers,
            address=address,
        )

    return _write(run, out, runs, "formation", quick)


@verb(
    experiment,
    "mechsink experiment mitigation --quick",
    "mechsink experiment mitigation --remedy gate --remedy softmax1 --json",
)
def mitigation(
    quick: Quick = False,
    seeds: Seeds = None,
    remedy: Annotated[
        list[str] | None,
        typer.Option(
            help="One to train, repeatable, such as gate. Default: all.",
            autocompletion=offer(REMEDIES),
        ),
    ] = None,
    engine: EngineName = "pool",
    workers: Workers = None,
    address: Address = None,
    runs: Runs = None,
    out: Out = Path("mitigation"),
) -> Outcome:
    """What keeps sinks from forming: gates, softmax1, key biases, ReLU, SGD, more."""

    def run(stage: Path) -> "Study":
        from mechsink.experiments.mitigation import mitigation_study

        return mitigation_study(
            stage,
            remedies=remedy,
            seeds=_range(seeds),
            quick=quick,
            engine=engine,
            workers=workers,
            address=address,
        )

    return _write(run, out, runs, "mitigation", quick)


@verb(
    experiment,
    "mechsink experiment emergence --quick",
    "mechsink experiment emergence --bed text --knob 'weight decay' --seeds 2",
)
def emergence(
    quick: Quick = False,
    seeds: Annotated[
        int | None, typer.Option(help="How many seeds, from 0. Default: 3.", min=1)
    ] = None,
    knob: Annotated[
        list[str] | None,
        typer.Option(
            help="One to turn, repeatable, such as steps. Default: all.",
            autocompletion=offer(KNOBS),
        ),
    ] = None,
    bed: Annotated[
        str,
        typer.Option(
            help="What is learnt: bigram, text, or text-gpu, for a GPU.",
            autocompletion=offer(BEDS),
        ),
    ] = "bigram",
    engine: EngineName = "pool",
    workers: Workers = None,
    address: Address = None,
    runs: Runs = None,
    out: Out = Path("emergence"),
) -> Outcome:
    """When do sinks emerge? Ten knobs, each trend beside the published one.

    Learning rate, steps, data, weight decay, first tokens, prefix, window, positions,
    biases and operators of When Attention Sink Emerges (arXiv:2410.10781).
    """

    def run(stage: Path) -> "Study":
        from mechsink.experiments.emergence.study import emergence as study

        return study(
            stage,
            bed=bed,
            knobs=knob,
            seeds=_range(seeds),
            quick=quick,
            engine=engine,
            workers=workers,
            address=address,
        )

    name = "emergence" if bed == "bigram" else f"emergence --bed {bed}"
    name += "".join(f" --knob {quote(one)}" for one in knob or [])
    return _write(run, out, runs, name, quick)


@verb(
    experiment,
    "mechsink experiment dynamics --quick",
    "mechsink experiment dynamics --seeds 3 --out dynamics",
)
def dynamics(
    quick: Quick = False,
    seeds: Seeds = None,
    runs: Runs = None,
    out: Out = Path("dynamics"),
) -> Outcome:
    """Does a sink grow as its reduced dynamics say? Theory beside training."""

    def run(stage: Path) -> "Study":
        from mechsink.experiments.dynamics.study import sink_dynamics

        return sink_dynamics(stage, seeds=_range(seeds), quick=quick)

    return _write(run, out, runs, "dynamics", quick)


@verb(
    experiment,
    "mechsink experiment regression --quick",
    "mechsink experiment regression --seeds 8 --json",
)
def regression(
    quick: Quick = False,
    seeds: Annotated[int, typer.Option(help="How many seeds, from 0.", min=2)] = 5,
    out: Out = Path("regression"),
) -> Outcome:
    """What softmax heads learn of in-context linear regression."""

    def run(stage: Path) -> "Study":
        from mechsink.experiments.regression.experiment import linear_regression

        return linear_regression(seeds=range(seeds), quick=quick)

    return _write(run, out, None, "regression", quick)


@verb(
    experiment,
    "mechsink experiment streaming smollm2 --quick",
    "mechsink experiment streaming smollm2 --text book.txt --cache 256 --sinks 4",
)
def streaming(
    model: ModelName = "smollm2",
    quick: Quick = False,
    text: Annotated[
        Path | None, typer.Option(help="Text file. Default: prose of Python's docs.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens of the text.", min=2)] = 20_000,
    cache: Annotated[int, typer.Option(help="Slots of each cache.", min=2)] = 128,
    sinks: Annotated[int, typer.Option(help="First tokens that stay.", min=1)] = 4,
    out: Out = Path("streaming"),
) -> Outcome:
    """Does a model stream past its cache? Dense, a window, sinks with a window."""

    def run(stage: Path) -> "Study":
        from mechsink.experiments.streaming.experiment import streaming as study

        words = None if text is None else text.read_text(encoding="utf-8")
        loaded = load(model)
        return study(
            loaded, words, n_tokens=tokens, cache=cache, sinks=sinks, quick=quick
        )

    return _write(run, out, None, f"streaming {model}", quick)


def _range(n: int | None) -> range | None:
    return None if n is None else range(n)


def _write(
    run: "Callable[[Path], Study]", out: Path, runs: Path | None, name: str, quick: bool
) -> Outcome:
    """Run a study with its trained toys kept in `runs`, write it, then judge it."""
    with results(out) as stage:
        from mechsink.experiments.study import ClaimFailed
        from mechsink.report.studies import write_study

        study = run(runs or stage.parent / "runs")
        command = f"mechsink experiment {name}" + " --quick" * quick
        write_study(study, stage, command)
    failed: str | None = None
    try:
        study.check()
    except ClaimFailed as error:
        failed = str(error)
    return Outcome(out, numbers.of_study(study), failed)
