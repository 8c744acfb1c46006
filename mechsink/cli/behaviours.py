"""Verbs that ask what carries a behaviour: patch, circuit, af1."""

from pathlib import Path
from shutil import rmtree
from typing import Annotated, Any

import typer

from mechsink.cli import numbers
from mechsink.cli.app import Float64, ModelName, Out, app, load
from mechsink.cli.choices import (
    DIRECTIONS,
    METHODS,
    METRICS,
    SETS,
    SITES,
    offer,
)
from mechsink.cli.engines import Address, EngineName, Workers, spreading
from mechsink.cli.verbs import Outcome, results, verb
from mechsink.cli.words import by_direction, by_method, by_metric, by_pairs

SkipBad = Annotated[
    bool,
    typer.Option(
        "--skip-bad/--no-skip-bad",
        help="Leave out lines that are no pairs, and count them; `patch --engine` "
        "also pairs that give an error, such as those of unequal length.",
    ),
]


@verb(
    app,
    "mechsink patch smollm2 pairs.jsonl --site resid_pre --site z",
    "mechsink patch smollm2 pairs.jsonl --direction noising --metric sink:3.2 --json",
    "mechsink patch smollm2 many.jsonl --engine ray --address auto --skip-bad",
)
def patch(
    model: ModelName,
    pairs: Annotated[
        Path,
        typer.Argument(
            help='One pair a line: {"clean": , "corrupted": , "answer": , "wrong": }.'
        ),
    ],
    site: Annotated[
        list[str] | None,
        typer.Option(
            help="Site to sweep, repeatable. Default: resid_pre, attn_out, mlp_out, z.",
            autocompletion=offer(SITES),
        ),
    ] = None,
    direction: Annotated[
        str,
        typer.Option(
            help="denoising (is it enough?) or noising (is it needed?).",
            autocompletion=offer(DIRECTIONS),
        ),
    ] = "denoising",
    metric: Annotated[
        str,
        typer.Option(
            help="logit-diff, answer-logprob, or the sink attention of a head: "
            "sink:3.2, or L3H2.",
            autocompletion=offer(METRICS),
        ),
    ] = "logit-diff",
    skip_bad: SkipBad = False,
    engine: EngineName = None,
    workers: Workers = None,
    address: Address = None,
    out: Out = Path("patch"),
    float64: Float64 = False,
) -> Outcome:
    """Which places of a model carry a behaviour: activation patching over pairs.

    Sites with heads are patched head by head, the others position by position.
    """
    with results(out) as stage:
        from mechsink.interventions.patching import patch_sweep
        from mechsink.prompts import PromptPairs
        from mechsink.report.patching import SITES, patch_report

        given = PromptPairs.from_jsonl(pairs, skip_bad=skip_bad)
        measure, way = by_metric(metric, "patch"), by_direction(direction)
        over = spreading(engine, workers, address, skip_bad)
        loaded = load(model, float64)
        parts = stage.parent / "parts"
        sent = loaded if float64 else model

        def sweep(*args: Any, site: str, **options: Any) -> Any:
            if over is None:
                return patch_sweep(*args, site=site, **options)
            spread = over(patch_sweep, sent, parts / site)
            return spread(*args, site=site, **options)

        report = patch_report(
            loaded, given, measure, sites=site or SITES, direction=way, sweep=sweep
        )
        report.save(stage)
        rmtree(parts, ignore_errors=True)
    return Outcome(out, numbers.of_patching(report))


@verb(
    app,
    "mechsink circuit smollm2 pairs.jsonl --method eap-ig --steps 5",
    "mechsink circuit smollm2 --set ioi --edges 200 --greedy",
    "mechsink circuit toy:runs/bb --set induction --method exact --json",
)
def circuit(
    model: ModelName,
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
            autocompletion=offer(SETS),
        ),
    ] = None,
    prompts: Annotated[int, typer.Option(help="Pairs to make of --set.", min=1)] = 40,
    method: Annotated[
        str,
        typer.Option(
            help="eap, eap-ig, eap-ig-activations, clean-corrupted, or exact (patches "
            "every edge: small models).",
            autocompletion=offer(METHODS),
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
        bool,
        typer.Option("--signed/--no-signed", help="Rank by score, not by its size."),
    ] = False,
    greedy: Annotated[
        bool,
        typer.Option("--greedy/--no-greedy", help="Choose from the outputs upstream."),
    ] = False,
    metric: Annotated[
        str,
        typer.Option(
            help="logit-diff, answer-logprob, or the sink attention of a head: "
            "sink:3.2, or L3H2.",
            autocompletion=offer(METRICS),
        ),
    ] = "logit-diff",
    seed: Annotated[
        int, typer.Option(help="Seed of the prompts, split and resamples.", min=0)
    ] = 0,
    skip_bad: SkipBad = False,
    engine: EngineName = None,
    workers: Workers = None,
    address: Address = None,
    out: Out = Path("circuit"),
    float64: Float64 = False,
) -> Outcome:
    """Which edges between components carry a behaviour, and how faithful they are.

    From 20 pairs on, half of them choose the circuit and the others measure it.
    """
    with results(out) as stage:
        from mechsink.report.circuits import edge_report

        pairs_for = by_pairs(pairs, set_, prompts, seed, skip_bad)
        measure = by_metric(metric, "circuit")
        score = by_method(method, steps)
        over = spreading(engine, workers, address, skip_failed=False)
        loaded = load(model, float64)
        parts = stage.parent / "parts"
        if over is not None:
            score = over(score, loaded if float64 else model, parts / "edges")
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
        rmtree(parts, ignore_errors=True)
    return Outcome(out, numbers.of_circuit(report))


@verb(
    app,
    "mechsink af1 smollm2 --prompts 40 --target 0.9",
    "mechsink af1 smollm2 --template '{A} plus {B} is' --slot A=0-9 --slot B=1,2,5",
)
def af1(
    model: ModelName,
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
) -> Outcome:
    """How late, and in how few layers, the last token must look at the others.

    Context-aware mean ablation and attention-based peeking (All for One,
    arXiv:2509.09650), searched over waiting depths and peeking layers.
    """
    with results(out) as stage:
        from mechsink.report.all_for_one import all_for_one_report
        from mechsink.report.slot_texts import default_prompts, template_prompts

        loaded = load(model)
        if template is None and not slot:
            given = default_prompts(loaded)
        else:
            given = template_prompts(loaded, template, slot or [], answer)
        some = given.sample(prompts, seed)
        report = all_for_one_report(loaded, some, target=target, seed=seed)
        report.save(stage)
    return Outcome(out, numbers.of_all_for_one(report))
