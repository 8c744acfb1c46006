"""The command line: `mechsink VERB`.

Every verb that measures writes a folder (tables as CSV, meta.json, figures, one
report.html) and prints the path of its report.html last. A mistake of the caller
ends in one clear paragraph on stderr and exit code 2, a failure in exit code 1.
May import: all rooms; imports them inside the verbs, so that help is quick.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

if TYPE_CHECKING:
    from collections.abc import Callable

    from mechsink.interventions.places import Direction
    from mechsink.prompt_sets import PromptSet
    from mechsink.prompts import PromptPairs
    from mechsink.report.circuits import Method
    from mechsink.run import Metric, Model
    from toy_tasks.bigram_backcopy import BigramBackcopy
    from toy_tasks.presets import Preset

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


@app.command()
def demo(
    out: Out = Path("demo"),
    seed: Seed = 0,
    steps: Steps = None,
    model: Annotated[
        str, typer.Option(help="Real model to measure, as for `mechsink sinks`.")
    ] = "smollm2",
) -> None:
    """A real model's sinks, and how the same things form in a toy: one report.

    Measures MODEL, trains two Bigram-Backcopy transformers (one layer and three)
    and tells both halves on one page. Minutes on two CPU cores; trained toys are
    kept in OUT and resumed.

    Example: [bold]mechsink demo --out demo[/bold]
    """
    from mechsink.report.folder import output_folder

    with output_folder(out) as stage:
        from mechsink.report.demo import write_demo

        write_demo(stage, model=model, toys=stage.parent, seed=seed, steps=steps)
    _done(out)


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
    _done(out)


@app.command()
def form(
    preset: Annotated[
        str, typer.Argument(help="bb-cpu, bb3-cpu, bb-sgd, bb-relu or bb-paper.")
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
) -> None:
    """Train a toy transformer and report how its sink formed.

    The same command again resumes what it trained, in OUT.

    Example: [bold]mechsink form bb-cpu --seed 1 --out form[/bold]

    Example: [bold]mechsink form --from form/bb-cpu-seed1[/bold]
    """
    from mechsink.report.folder import output_folder

    if from_ is None:
        task, recipe, name = _toy(preset, text, seed, steps)
    with output_folder(out) as stage:
        from mechsink.report.formation import formation_report

        if from_ is None:
            from toy_tasks.training import train

            from_ = train(task, recipe, stage.parent / name, seed).folder
        formation_report(from_).save(stage)
    _done(out)


@app.command()
def patch(
    model: Annotated[
        str, typer.Argument(help="smollm2, a local folder, a hub id, or toy:FOLDER.")
    ],
    pairs: Annotated[
        Path,
        typer.Argument(
            help='One pair a line: {"clean": , "corrupted": , "answer": , "wrong": }.'
        ),
    ],
    site: Annotated[
        list[str] | None,
        typer.Option(
            help="Site to sweep, repeatable. Default: resid_pre, attn_out, mlp_out, z."
        ),
    ] = None,
    direction: Annotated[
        str, typer.Option(help="denoising (is it enough?) or noising (is it needed?).")
    ] = "denoising",
    metric: Annotated[
        str,
        typer.Option(
            help="logit-diff, answer-logprob, or the sink attention of a head: "
            "sink:3.2, or L3H2."
        ),
    ] = "logit-diff",
    out: Out = Path("patch"),
) -> None:
    """Which places of a model carry a behaviour: activation patching over pairs.

    Sites with heads are patched head by head, the others position by position.

    Example: [bold]mechsink patch smollm2 pairs.jsonl --site resid_pre --site z[/bold]
    """
    from mechsink.report.folder import output_folder

    with output_folder(out) as stage:
        from mechsink.models.load import load_model
        from mechsink.progress import waiting
        from mechsink.prompts import PromptPairs
        from mechsink.report.patching import SITES, patch_report

        given = PromptPairs.from_jsonl(pairs)
        measure, way = _metric(metric, "patch"), _direction(direction)
        with waiting(f"loading {model}"):
            loaded = load_model(model)
        report = patch_report(
            loaded, given, measure, sites=site or SITES, direction=way
        )
        report.save(stage)
    _done(out)


@app.command()
def circuit(
    model: Annotated[
        str, typer.Argument(help="smollm2, a local folder, a hub id, or toy:FOLDER.")
    ],
    pairs: Annotated[
        Path | None,
        typer.Argument(
            help='One pair a line: {"clean": , "corrupted": , "answer": , "wrong": }.'
        ),
    ] = None,
    set_: Annotated[
        str | None,
        typer.Option(
            "--set",
            help="A ready prompt set in place of PAIRS: ioi, capitals, sums, "
            "greater_than, induction or multiple_choice.",
        ),
    ] = None,
    prompts: Annotated[int, typer.Option(help="Pairs to make of --set.", min=1)] = 40,
    method: Annotated[
        str,
        typer.Option(
            help="eap, eap-ig, eap-ig-activations, clean-corrupted, or exact (patches "
            "every edge: small models)."
        ),
    ] = "eap-ig",
    steps: Annotated[
        int | None,
        typer.Option(help="Steps of eap-ig, eap-ig-activations. Default: 5.", min=1),
    ] = None,
    edges: Annotated[
        int | None,
        typer.Option("--edges", "-n", help="Edges to choose. Default: 100.", min=1),
    ] = None,
    signed: Annotated[
        bool, typer.Option("--signed", help="Rank by score, not by its size.")
    ] = False,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Choose from the outputs upstream.")
    ] = False,
    metric: Annotated[
        str,
        typer.Option(
            help="logit-diff, answer-logprob, or the sink attention of a head: "
            "sink:3.2, or L3H2."
        ),
    ] = "logit-diff",
    seed: Annotated[
        int, typer.Option(help="Seed of the prompts, split and resamples.", min=0)
    ] = 0,
    out: Out = Path("circuit"),
) -> None:
    """Which edges between components carry a behaviour, and how faithful they are.

    From 20 pairs on, half of them choose the circuit and the others measure it.

    Example: [bold]mechsink circuit smollm2 pairs.jsonl --method eap-ig[/bold]

    Example: [bold]mechsink circuit smollm2 --set ioi --edges 200[/bold]
    """
    from mechsink.report.folder import output_folder

    with output_folder(out) as stage:
        from mechsink.models.load import load_model
        from mechsink.progress import waiting
        from mechsink.report.circuits import edge_report

        pairs_for = _pairs(pairs, set_, prompts, seed)
        measure = _metric(metric, "circuit")
        score = _edge_method(method, steps)
        with waiting(f"loading {model}"):
            loaded = load_model(model)
        report = edge_report(
            loaded,
            pairs_for(loaded),
            measure,
            method=score,
            n=edges,
            signed=signed,
            selection="greedy" if greedy else "top",
            seed=seed,
        )
        report.save(stage)
    _done(out)


@app.command()
def af1(
    model: Annotated[
        str, typer.Argument(help="smollm2, a local folder, a hub id, or toy:FOLDER.")
    ],
    template: Annotated[
        str | None,
        typer.Option(
            help="Prompt with a slot for each operand. Default: one-digit sums with "
            "two examples; a Sums toy's own prompts."
        ),
    ] = None,
    slot: Annotated[
        list[str] | None,
        typer.Option(help="A slot's values, repeatable: A=0-9, or A=red,green,blue."),
    ] = None,
    answer: Annotated[
        str, typer.Option(help="The answer from the slots, with + - * and numbers.")
    ] = "A + B",
    prompts: Annotated[
        int, typer.Option(help="Prompts, drawn at random from all.", min=4)
    ] = 60,
    target: Annotated[
        float, typer.Option(help="Share of right answers to keep.", min=0.01, max=1)
    ] = 0.95,
    seed: Annotated[int, typer.Option(help="Seed of the draw and split.", min=0)] = 0,
    out: Out = Path("af1"),
) -> None:
    """How late, and in how few layers, the last token must look at the others.

    Context-aware mean ablation and attention-based peeking (All for One,
    arXiv:2509.09650), searched over waiting depths and peeking layers.

    Example: [bold]mechsink af1 smollm2 --prompts 40 --target 0.9[/bold]
    """
    from mechsink.report.folder import output_folder

    with output_folder(out) as stage:
        from mechsink.models.load import load_model
        from mechsink.progress import waiting
        from mechsink.report.all_for_one import all_for_one_report
        from mechsink.report.slot_texts import default_prompts, template_prompts

        with waiting(f"loading {model}"):
            loaded = load_model(model)
        if template is None and not slot:
            given = default_prompts(loaded)
        else:
            given = template_prompts(loaded, template, slot or [], answer)
        with waiting("running every waiting depth"):
            some = given.sample(prompts, seed)
            report = all_for_one_report(loaded, some, target=target, seed=seed)
        report.save(stage)
    _done(out)


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


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="mechsink")


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


def _metric(name: str, verb: str) -> "Metric":
    """A metric by name, or a head's sink attention by the head's: sink:3.2, L3H2."""
    import re

    from mechsink import metrics

    known = {"logit-diff": metrics.logit_diff, "answer-logprob": metrics.answer_logprob}
    if (plain := name.replace("_", "-")) in known:
        return known[plain]
    if head := re.fullmatch(r"L(\d+)H(\d+)|sink:(\d+)\.(\d+)", name):
        layer, number = (int(part) for part in head.groups() if part is not None)
        return metrics.sink_attention(layer=layer, head=number)
    raise ValueError(
        f"{verb}: --metric {name} is none. Allowed: {', '.join(known)}, or a head such "
        "as sink:3.2 (layer 3, head 2), whose attention to position 0 is then the "
        "metric."
    )


def _pairs(
    path: Path | None, name: str | None, n: int, seed: int
) -> "Callable[[Model], PromptPairs | PromptSet]":
    """Pairs of a file, read now, or those of a ready set, made for a model."""
    from mechsink.prompt_sets import ALL
    from mechsink.prompts import PromptPairs

    if path is not None and name is None:
        read = PromptPairs.from_jsonl(path)
        return lambda model: read
    if name is None or path is not None:
        raise ValueError(
            "circuit: give PAIRS.jsonl or --set, one of them. Ready sets: "
            f"{', '.join(ALL)}."
        )
    if name not in ALL:
        raise ValueError(f"circuit: --set {name}. Allowed: {', '.join(ALL)}.")
    return lambda model: ALL[name](model, n=n, seed=seed)


def _edge_method(name: str, steps: int | None) -> "Method":
    """What scores the edges, by name; `steps` only where it has some."""
    from functools import partial

    from mechsink.attribution import edges
    from mechsink.attribution.exact import exact_edges

    with_steps = {
        "eap-ig": edges.eap_ig,
        "eap-ig-activations": edges.eap_ig_activations,
    }
    known: dict[str, Any] = {
        "eap": edges.eap,
        **with_steps,
        "clean-corrupted": edges.eap_clean_corrupted,
        "exact": exact_edges,
    }
    if name not in known:
        raise ValueError(f"circuit: --method {name}. Allowed: {', '.join(known)}.")
    if steps is None:
        return known[name]
    if name not in with_steps:
        raise ValueError(
            f"circuit: --steps {steps} means nothing to --method {name}. Leave it "
            f"out, or take {' or '.join(with_steps)}."
        )
    return partial(with_steps[name], steps=steps)


def _direction(name: str) -> "Direction":
    if name == "denoising" or name == "noising":
        return name
    raise ValueError(f"patch: --direction {name}. Allowed: denoising, noising.")


def _complain(message: str) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True)
    console.print(Text.assemble(("mechsink: ", "bold red"), message), soft_wrap=True)


def _done(out: Path) -> None:
    sys.stdout.write(f"{out.expanduser() / 'report.html'}\n")


if __name__ == "__main__":
    main()
