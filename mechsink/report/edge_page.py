"""What an edge report says: its page, from headlines to the exact prompts.

May import: sites, run, results, plotting, prompts, attribution, circuits.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pandas as pd

from mechsink.attribution.inference import EXACT_UP_TO
from mechsink.report.circuit_page import circuit_report
from mechsink.report.edge_result import EdgeReport, Estimate
from mechsink.report.html import (
    Headline,
    Page,
    Section,
    TokenText,
    settings_rows,
    show_token,
)
from mechsink.report.paged import Drawn
from mechsink.report.sink_tables import ENOUGH
from mechsink.report.tables import Table, number, to_table

LISTED = 200
"""Pairs in the page's table; all stand in pairs.csv."""
MOST_OF_IT = 0.85
"""Faithfulness at which a circuit is said to have most of the behaviour."""
FOUND = 0.05
"""q-value below which an edge is told from zero."""


def edge_page(report: EdgeReport, drawn: Drawn) -> Page:
    """The whole page."""
    inner = circuit_report(report.circuit).page(drawn)
    diagram, edges = inner.sections
    return replace(
        inner,
        title=f"Circuit of {report.meta['model']} for {report.metric}",
        summary=(*inner.summary, _who_chose(report)),
        headlines=(inner.headlines[0], *_headlines(report)),
        sections=(
            diagram,
            Section(
                "Faithfulness",
                _faithfulness(report),
                figures=(drawn["faithfulness"][1],),
                tables=(_points(report), _means(report)),
            ),
            replace(edges, headlines=(inner.headlines[1], *_told_from_zero(report))),
            Section("Pairs of prompts", _about(report), tables=(_pairs(report),)),
        ),
        texts=tuple(_texts(report)),
        settings=settings_rows(report.meta),
        notes=(*_notes(report), *inner.notes),
    )


def _headlines(report: EdgeReport) -> Iterator[Headline]:
    faith = report.faithfulness
    about = f"{_interval(faith)}; 1 is the whole model, 0 no edge at all"
    yield Headline(_value(faith), "faithfulness of this circuit", about)
    for name, found, best in (
        ("CPR", report.cpr, "more is better"),
        ("CMD", report.cmd, "0 is best"),
    ):
        yield Headline(_value(found), name, f"{_interval(found)}; {best}")
    if report.accuracy[0] is not None:
        shares = [x if x is None else 100 * x for x in report.accuracy]
        about = f"{_interval(shares, ' %')}; chance 50 %"
        value = f"{number(shares[0] or 0)} %"
        yield Headline(value, "answers beat the wrong one", about)


def _told_from_zero(report: EdgeReport) -> Iterator[Headline]:
    q_value: Any = report.table["q_value"]
    if q_value.notna().any():
        n_pairs = len(report.scores.clean)
        about = f"of {len(q_value):,}, tested on {n_pairs} pairs"
        if n_pairs <= EXACT_UP_TO:
            about += f"; no p can be below {number(2.0 ** (1 - n_pairs), 2)}"
        count = f"{(q_value < FOUND).sum():,}"
        yield Headline(count, f"edges with q < {FOUND}", about)


def _who_chose(report: EdgeReport) -> str:
    n, measured = len(report.pairs), len(report.measured)
    if not report.is_split:
        return f"{n} pairs of prompts chose the circuit and measured it."
    return (
        f"{n - measured} of {n} pairs of prompts, drawn at random, chose the circuit; "
        f"all faithfulness is measured on the other {measured}."
    )


def _faithfulness(report: EdgeReport) -> tuple[str, ...]:
    return (
        "Faithfulness is (circuit − no edge) / (whole model − no edge), means over "
        f"pairs of {report.metric}: every edge outside the circuit is cut "
        f"({_ablation(report)}) and all the rest computed anew. CPR is the area under "
        "it over the share of edges, CMD the area under its distance from 1, by "
        "trapezoids from the first share to the last, as in MIB (arXiv:2504.13151).",
        _reached(report),
        f"Settings that these numbers depend on: {report.curve.describe()}.",
    )


def _reached(report: EdgeReport) -> str:
    """The smallest point of the curve that has most of the behaviour."""
    points: Any = report.points
    enough = points[points["faithfulness"] >= MOST_OF_IT]
    if enough.empty:
        return f"No point of the curve reaches {MOST_OF_IT}."
    first = enough.iloc[0]
    return (
        f"The first point of the curve that reaches {MOST_OF_IT} asks for "
        f"{first['edges']:,.0f} edges, {number(100 * first['fraction'])} % of the "
        "model's."
    )


def _ablation(report: EdgeReport) -> str:
    return {
        "patch": "it carries what the corrupted run writes",
        "zero": "it carries nothing",
        "mean": "it carries a mean over reference prompts",
    }[report.ablation]


def _points(report: EdgeReport) -> Table:
    return to_table(
        report.points,
        "Points of the curve",
        names={
            "fraction": "share",
            "edges": "edges asked for",
            "kept": "edges kept",
            "value": report.metric,
            "faithfulness": "faithfulness",
            "low": "95 % from",
            "high": "95 % to",
        },
        caption="Kept: without loose ends, which lie on no way from input to output.",
    )


def _means(report: EdgeReport) -> Table:
    measured: Any = report.measured
    names = {"full": "whole model", "circuit": "this circuit", "ablated": "no edge"}
    rows = pd.DataFrame({"run": list(names.values())})
    for what in ("mean", "min", "max"):
        rows[what] = [float(getattr(measured[name], what)()) for name in names]
    return to_table(
        rows,
        f"{report.metric}, each run",
        names={"run": "run", "mean": "mean", "min": "lowest", "max": "highest"},
        caption=f"Over {len(measured)} pairs, in the metric's unit.",
    )


def _about(report: EdgeReport) -> tuple[str, ...]:
    made = report.meta["settings"].get("prompt_set")
    if made is None:
        return ()
    dropped = made["dropped"]
    why = "".join(f"; {count}: {reason}" for reason, count in dropped.items())
    return (
        f"Ready prompt set {made['prompt_set']}: {len(report.pairs)} pairs made, "
        f"{sum(dropped.values())} candidates dropped because they did not fit this "
        f"tokenizer{why}.",
    )


def _pairs(report: EdgeReport) -> Table:
    table = report.pairs.head(LISTED)
    names = {
        "pair": "pair",
        "part": "used to",
        "full": "whole model",
        "circuit": "this circuit",
        "ablated": "no edge",
        "answer": "answer",
        "wrong": "wrong answer",
        "beats_wrong": "answer beats it",
        "is_top": "answer is likeliest",
    }
    shown: Any = {name: words for name, words in names.items() if name in table}
    for name in {"answer", "wrong"} & {*shown}:
        table = table.assign(**{name: [show_token(text) for text in table[name]]})
    if not report.is_split:
        del shown["part"]
    captions = []
    if report.is_split:
        captions.append("Pairs that chose the circuit are not measured with it.")
    if len(report.pairs) > LISTED:
        captions.append(f"{LISTED} of {len(report.pairs):,}; all are in pairs.csv.")
    title = f"{report.metric}, pair by pair"
    return to_table(table, title, names=shown, caption=" ".join(captions))


def _texts(report: EdgeReport) -> Iterator[TokenText]:
    """Clean and corrupted prompt of each pair, one after the other."""
    for place, entry in enumerate(report.meta["tokens"]):
        pair, is_corrupted = divmod(place, 2)
        title = f"Pair {pair}, {'corrupted' if is_corrupted else 'clean'}"
        yield TokenText.from_meta(title, entry)


def _notes(report: EdgeReport) -> Iterator[str]:
    n = len(report.measured)
    if not report.is_split:
        yield (
            f"The circuit was chosen and measured on the same {_counted(n, 'pair')}, "
            "which flatters it. Give 20 pairs or more: half of them then choose, and "
            "the others measure."
        )
    value = report.faithfulness[0]
    if value is not None and value < 0.5:
        yield (
            f"The circuit shown keeps {number(value)} of the effect: it does not "
            f"explain the behaviour. {_reached(report)}"
        )
    if report.repeated:
        yield (
            f"{_counted(report.repeated, 'measured pair')} of {n} also stand among "
            "those that chose: the halves are not independent."
        )
    if report.faithfulness[1] is None:
        yield (
            "No interval: one pair alone, or a whole model and no edge that are told "
            "apart too weakly. Give more pairs, or a corruption that changes more."
        )
    elif n < ENOUGH:
        yield (
            f"Bootstrap intervals over {n} pairs are rough, mostly too narrow: they "
            "are calibrated from 100 on."
        )
    if note := report.meta["model_info"].get("weights_note"):
        yield f"Weights: {note}"


def _value(found: Estimate) -> str:
    return "–" if found[0] is None else number(found[0])


def _interval(found: Estimate, unit: str = "") -> str:
    _, low, high = found
    if low is None or high is None:
        return "no interval"
    return f"95 %: {number(low)} to {number(high)}{unit}"


def _counted(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"
