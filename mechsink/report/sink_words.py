"""A sink report in words: its summary, headline numbers and warnings.

Sentences are made of the report's own numbers; none repeats a publication's.
May import: sites, run, results, plotting, sinks.
"""

import math
from typing import Any

from mechsink.report.html import Headline
from mechsink.report.sinks import SinkReport
from mechsink.report.tables import number


def summary(report: SinkReport) -> tuple[str, ...]:
    """What was run, and what was found, in two paragraphs."""
    n_heads, spot = len(report.table), f"position {report.position}"
    lengths = text_lengths(report)
    length = _range(min(lengths), max(lengths))
    peak = _peak(report)
    asked = (
        f"{report.meta['model']} read {_count(len(lengths), 'text')} of {length} "
        f"tokens ({report.meta['settings']['texts']}). The question: how much do its "
        f"{_count(n_heads, 'attention head')} look at {spot}, whatever stands there, "
        "and what else is unusual about that position?"
    )
    found = (
        f"On average over the texts, {report.rate:.0%} of the heads spend more than "
        f"{report.eps:g} of their attention on {spot}. There the value that a head "
        f"reads is {_median_ratio(report)} times as long as the other "
        f"tokens' (median over heads), and the residual norm is at most "
        f"{number(peak['ratio'])} times the other tokens' (entering layer "
        f"{peak['layer']:.0f})."
    )
    return asked, found


def headlines(report: SinkReport) -> tuple[Headline, ...]:
    """Four or five numbers, each with its reference point."""
    length = min(text_lengths(report))
    uniform = uniform_score(length, report.position)
    best: Any = report.table.loc[report.table["score"].idxmax()]
    peak, n_texts = _peak(report), len(report.rates)
    massive: Any = report.massive
    places = massive.groupby(["pos", "dim"]).ngroups
    return (
        Headline(f"{100 * report.rate:.1f} %", "sink rate", _spread(report)),
        Headline(
            f"{best['score']:.2f}",
            f"highest sink score: layer {best['layer']:.0f}, head {best['head']:.0f}",
            f"uniform attention would give {uniform:.3f}",
        ),
        Headline(
            _median_ratio(report),
            f"value norm of position {report.position} over the others'",
            "median over heads; an ordinary token has about 1",
        ),
        Headline(
            f"{number(peak['ratio'])} ×",
            f"largest residual norm of position {report.position} over the others'",
            f"entering layer {peak['layer']:.0f}: {number(peak['norm'])} against "
            f"{number(peak['others'])}",
        ),
        Headline(
            str(places),
            "massive activations (position and dimension)",
            f"in {int(massive['layer'].nunique())} of {len(report.residual)} residual "
            f"streams; {_count(n_texts, 'text')}",
        ),
    )


def notes(report: SinkReport) -> tuple[str, ...]:
    """Warnings that belong before the numbers."""
    note = report.meta["model_info"].get("weights_note")
    return (str(note),) if note else ()


def uniform_score(length: int, position: int = 0) -> float:
    """Sink score of a head with uniform causal attention, H(T)/T at position 0."""
    return math.fsum(1 / (i + 1) for i in range(position, length)) / (length - position)


def _spread(report: SinkReport) -> str:
    """The interval over texts, or every value where they are few."""
    about = f"heads above {report.eps:g} at position {report.position}, all texts"
    interval = report.rate_interval
    if interval is not None:
        low, high = (100 * end for end in interval)
        return f"{about}; {low:.1f} to {high:.1f} % (95 %, bootstrap over texts)"
    rates: Any = 100 * report.rates["rate"]
    if len(rates) > 8:
        return f"{about}; single texts: {rates.min():.0f} to {rates.max():.0f} %"
    return f"{about}; by text: {', '.join(f'{rate:.0f}' for rate in rates)} %"


def _peak(report: SinkReport) -> dict[str, float]:
    row: Any = report.residual.loc[report.residual["ratio"].idxmax()]
    return {str(key): float(value) for key, value in row.items()}


def text_lengths(report: SinkReport) -> list[int]:
    """Tokens of each text."""
    return [len(entry["ids"]) for entry in report.meta["tokens"]]


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}" + ("" if n == 1 else "s")


def _range(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"


def _median_ratio(report: SinkReport) -> str:
    ratios: Any = report.table["ratio"]
    return number(float(ratios.median()), 2)
