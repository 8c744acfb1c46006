"""The page of a formation report: what the run learned, and when.

Sentences are made of the report's own numbers; none repeats a publication's.
May import: sites, run, results, plotting, sinks, experiments.
"""

import math
import re
from dataclasses import replace
from typing import Any

from mechsink import plotting
from mechsink.experiments.formation.moment import MEASURES
from mechsink.plotting import Figure
from mechsink.report import formation_figures as draw
from mechsink.report.formation import FormationReport
from mechsink.report.formation_maps import head_steps
from mechsink.report.html import (
    Headline,
    Page,
    Plot,
    Section,
    TokenText,
    settings_rows,
    show_token,
)
from mechsink.report.paged import Drawn
from mechsink.report.pattern_maps import step_patterns
from mechsink.report.svg import inline_svg
from mechsink.report.tables import number, to_table


def formation_page(report: FormationReport, drawn: Drawn | None = None) -> Page:
    """The whole page of one report."""
    tokens = tuple(
        TokenText.from_meta(f"Sequence {i}", entry)
        for i, entry in enumerate(report.meta["tokens"])
    )
    return Page(
        title=f"How the sink of {name(report)} formed",
        summary=summary(report),
        headlines=headlines(report),
        sections=sections(report, drawn),
        texts=tokens,
        settings=settings_rows(report.meta),
        notes=notes(report),
    )


def summary(report: FormationReport) -> tuple[str, ...]:
    """What was trained and measured, and what came of it."""
    steps, layer = report.formation.steps, report.sink_layer
    n = report.meta["n_prompts"]
    asked = (
        f"{len(steps)} checkpoints of {name(report)}, from step {steps[0]:,} "
        f"to step {steps[-1]:,}, were measured on the same {n} sequences."
    )
    if not report.has_task:
        return (
            asked,
            f"At the end, heads of layer {layer} give "
            f"{report.value('sink_score', layer):.2f} of their attention to the sink.",
        )
    triggers = report.meta.get("training", {}).get("triggers")
    named = f" ({', '.join(show_token(t) for t in triggers)})" if triggers else ""
    task = (
        f"The task: after a trigger character{named} the next character is the one "
        "before the trigger; everywhere else it follows a bigram table. So a head "
        "has work to do on triggers only."
    )
    when = half_way(report, "bos_markov", layer)
    found = (
        f"After step {steps[-1]:,}, layer {layer} gives "
        f"{report.value('bos_markov', layer):.3f} of its attention to <s> where there "
        f"is no trigger and {report.value('bos_trigger', layer):.3f} where there is; "
        f"there it gives {report.value('previous_trigger', layer):.3f} to the token "
        "before."
    )
    if when is not None and report.value("bos_markov", layer) > 0.3:
        found += (
            " Attention to <s> outside triggers had passed half of its final value by "
            f"step {when:,}."
        )
    return task, f"{asked} {found}"


def headlines(report: FormationReport) -> tuple[Headline, ...]:
    """Three to five numbers after the last step, each with its reference point."""
    layer = report.sink_layer
    at = f"layer {layer}" if _n_layers(report) > 1 else "its one layer"
    ratios: Any = report.final[report.final["measure"] == "resid_ratio"]
    peak = ratios.loc[ratios["value"].idxmax()]
    is_output = int(peak["layer"]) == ratios["layer"].max()
    place = "at the output" if is_output else f"entering layer {peak['layer']:.0f}"
    common = (
        Headline(
            number(report.value("value_ratio", layer), 2),
            "value norm of the sink over the others'",
            f"{at}; an ordinary token has about 1",
        ),
        Headline(
            f"{number(peak['value'], 2)} ×",
            "largest residual norm of the sink over the others'",
            f"{place}; an ordinary token has about 1",
        ),
    )
    if not report.has_task:
        score = Headline(
            f"{report.value('sink_score', layer):.2f}", "sink score", f"mean, {at}"
        )
        return (score, *common)
    return (
        Headline(
            f"{report.value('bos_markov', layer):.3f}",
            "attention to <s>, no trigger",
            f"{at}; on triggers: {report.value('bos_trigger', layer):.3f}",
        ),
        Headline(
            f"{report.value('previous_trigger', layer):.3f}",
            "attention to the token before, on triggers",
            f"{at}; all of it would be 1",
        ),
        *common,
        Headline(
            number(report.value("markov_excess"), 2),
            "excess risk away from triggers, nats",
            f"after triggers: {number(report.value('trigger_excess'), 2)}; the best "
            "possible model has 0",
        ),
    )


def figures(report: FormationReport) -> dict[str, tuple[Figure, Plot]]:
    """All figures, drawn once for files and page."""
    import matplotlib.pyplot as plt

    out: dict[str, tuple[Figure, Plot]] = {}
    # ids of several toys on one page must not clash
    prefix = re.sub(r"\W+", "-", f"toy-{name(report)}-")
    measured = set(report.table["measure"])

    def add(key: str, ax: plotting.Axes, title: str, caption: str) -> None:
        figure = plotting.figure_of(ax)
        plt.close(figure)  # it can still be saved, and no notebook shows it twice
        out[key] = figure, Plot(inline_svg(figure, prefix + key), title, caption)

    if report.has_task:
        for layer in range(_n_layers(report)):
            more = f", layer {layer}" if _n_layers(report) > 1 else ""
            add(
                f"attention-layer-{layer}",
                draw.attention_by_query(report, layer),
                f"Where the head looks{more}",
                "Mean attention by kind of query: trigger characters, and all others.",
            )
    else:
        ax = draw.by_layer(report, "sink_score", "sink score")
        add("sink-score", ax, "Sink score", "Mean over heads and texts.")
    measured_heads: Any = report.table[["layer", "head"]]
    if len(measured_heads.dropna().drop_duplicates()) > 1:
        add(
            "sink-by-head",
            draw.head_map(report),
            "Attention to the sink, head by head",
            "Move the slider to see it form. On paper: after the last step.",
        )
        figure, plot = out["sink-by-head"]
        out["sink-by-head"] = figure, replace(plot, maps=head_steps(report))
    panels = {
        "sink_logit": (
            "sink logit (nats)",
            "Sink logit",
            "Score of the sink before softmax, minus the mean score of the query's "
            "other keys; on non-trigger queries where the task has triggers.",
            {"reference": 0.0},
        ),
        "value_ratio": (
            "value norm / others",
            "Value drain",
            "Norm of what the head would write if it attended to the sink alone, over "
            "the same for the other tokens; 1 is an ordinary token.",
            {"log": True, "reference": 1.0},
        ),
        "resid_ratio": (
            "residual norm / others",
            "Residual norm",
            "Norm of the residual stream at the sink over that at the other tokens, "
            "entering each layer and at the output; 1 is an ordinary token.",
            {"log": True, "reference": 1.0},
        ),
    }
    for measure, (label, title, caption, look) in panels.items():
        if measure in measured:
            ax = draw.by_layer(report, measure, label, **look)
            add(measure.replace("_", "-"), ax, title, caption)
    if report.has_task:
        add(
            "excess-risk",
            draw.excess_risk(report),
            "Excess risk",
            "Mean loss minus the loss of the exact oracle, after triggers and "
            "elsewhere; a perfect model has 0.",
        )
    for layer in sorted(set(report.attention["layer"])):
        key = f"example-layer-{layer}"
        add(
            key,
            draw.example_attention(report, layer),
            f"Attention on one short sequence, layer {layer}",
            "Rows are queries, triggers are marked. On paper: head 0 after the last "
            "step.",
        )
        figure, plot = out[key]
        flags: Any = report.example["is_trigger"]
        marked = flags.to_numpy(dtype=bool).nonzero()[0]
        tokens = report.example["token"].tolist()
        maps = step_patterns(report.attention, tokens, layer, tuple(map(int, marked)))
        out[key] = figure, replace(plot, maps=maps)
    return out


def sections(
    report: FormationReport, drawn: Drawn | None = None
) -> tuple[Section, ...]:
    """Body of the page: attention, norms, loss, examples."""
    plots = {name: plot for name, (_, plot) in (drawn or figures(report)).items()}

    def some(*starts: str) -> tuple[Plot, ...]:
        return tuple(p for name, p in plots.items() if name.startswith(starts))

    final: Any = report.final.assign(
        measure=[MEASURES.get(name, name) for name in report.final["measure"]]
    )
    return (
        Section(
            "Attention to the sink",
            (
                "Training steps run to the right on a logarithmic axis, with step 0, "
                "before training, at its left end.",
            ),
            figures=some("attention", "sink-score", "sink-by", "sink-log"),
        ),
        Section(
            "Value drain and residual norm",
            (
                "What attending to the sink adds to the residual stream, and how long "
                "the residual stream itself is there, each against the other tokens.",
            ),
            figures=some("value", "resid"),
        ),
        *([Section("Loss", figures=some("excess"))] if report.has_task else []),
        *(
            [
                Section(
                    "Attention, token by token",
                    ("Move the slider to see where a head looked at each checkpoint.",),
                    figures=some("example"),
                )
            ]
            if some("example")
            else []
        ),
        Section(
            "After the last step",
            tables=(
                to_table(
                    final[["measure", "layer", "value"]],
                    "Every measure",
                    caption="Means over heads; residual layers count from the input of "
                    "layer 0, the last one is the output.",
                ),
            ),
        ),
    )


def notes(report: FormationReport) -> tuple[str, ...]:
    """Warnings that belong before the numbers."""
    training = report.meta.get("training", {})
    if training and not training["finished"]:
        return (
            "Training has not reached its last step; the report covers what is there.",
        )
    if training:
        return (
            f"One training run with one seed ({training['seed']}): what varies between "
            "seeds does not show here.",
        )
    return ()


def half_way(report: FormationReport, measure: str, layer: int) -> int | None:
    """First measured step at which a rising measure passed half its final value."""
    here: Any = report.table[report.table["measure"] == measure]
    line = here[here["layer"] == layer].groupby("step")["value"].mean()
    reached = line.index[line >= line.iloc[-1] / 2]
    return None if math.isnan(line.iloc[-1]) else int(reached[0])


def name(report: FormationReport) -> str:
    """What the sentences call the model: a toy by its preset."""
    training = report.meta.get("training")
    if training is None:
        return str(report.meta["model"])
    return f"the toy {training['preset']['name']}"


def _n_layers(report: FormationReport) -> int:
    measures: Any = report.final[report.final["measure"] == "sink_score"]
    return int(measures["layer"].max()) + 1
