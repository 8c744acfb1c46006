"""The page of a sink report: figures with captions, tables, tokens, settings.

May import: sites, run, results, plotting, sinks.
"""

from dataclasses import replace
from typing import Any

from markupsafe import Markup

from mechsink import plotting
from mechsink.plotting import Figure
from mechsink.report import figures as draw
from mechsink.report.html import (
    Page,
    Plot,
    Section,
    TokenText,
    settings_rows,
)
from mechsink.report.maps import Maps
from mechsink.report.paged import Drawn
from mechsink.report.pattern_maps import head_patterns
from mechsink.report.sink_maps import drain_maps, score_maps
from mechsink.report.sink_words import (
    headlines,
    notes,
    summary,
    text_lengths,
    uniform_score,
)
from mechsink.report.sinks import SinkReport
from mechsink.report.svg import inline_svg
from mechsink.report.tables import Table, to_table

STRONGEST = "The strongest sink head"
WEAKEST = "The head that looks least at the sink"


def sink_page(report: SinkReport, drawn: Drawn | None = None) -> Page:
    """The whole page of one report."""
    return Page(
        title=f"Attention sinks of {report.meta['model']}",
        summary=summary(report),
        headlines=headlines(report),
        sections=sections(report, drawn),
        texts=texts(report),
        settings=settings_rows(report.meta),
        notes=notes(report),
    )


def figures(report: SinkReport) -> dict[str, tuple[Figure, Plot]]:
    """All figures of the report, drawn once for files and page."""
    import matplotlib.pyplot as plt

    spot = f"position {report.position}"
    eps = report.eps
    out: dict[str, tuple[Figure, Plot]] = {}

    def add(
        name: str,
        ax: plotting.Axes,
        title: str,
        caption: str,
        maps: Maps | None = None,
    ) -> None:
        figure = plotting.figure_of(ax)
        plt.close(figure)  # it can still be saved, and no notebook shows it twice
        svg = inline_svg(figure, name)
        out[name] = figure, Plot(svg, title, caption, maps=maps)

    add(
        "sink-scores",
        draw.score_map(report),
        "Sink score of every head",
        f"Share of attention that a head pays to {spot}, averaged over later queries "
        "and over texts; 1 is all of it.",
        score_maps(report),
    )
    add(
        "positions",
        draw.positions(report),
        "Which position is the sink",
        f"Share of heads, over layers and texts, with a sink score above {eps:g}, at "
        "each of the first positions.",
    )
    add(
        "value-ratio",
        draw.drain_map(report),
        "Value drains",
        f"Norm of what a head would write if it attended to {spot} alone, over the "
        "same for the other tokens, as a power of two: 0 is an ordinary token, −3 an "
        "eighth.",
        drain_maps(report),
    )
    add(
        "value-by-score",
        draw.drains_by_score(report),
        "Do heads that rest on the sink read little there",
        f"One dot a head. Dashed: sink score {eps:g}; dotted: an ordinary value.",
    )
    add(
        "residual-norm",
        draw.residual_peak(report),
        "Residual norm by layer",
        f"Mean over texts for {spot}; median and middle 80 % of all other tokens. "
        "Layer l is the input of block l.",
    )
    add(
        "massive",
        draw.massive(report),
        "Largest entries of the residual stream",
        "Three largest |values| of a text, and the median |value|, by layer; means "
        "over texts.",
    )
    for kind, layer, head in _examples(report):
        key = f"attention-l{layer}h{head}"
        add(
            key,
            draw.attention(report, layer, head),
            f"{kind}: layer {layer}, head {head}",
            "First tokens of the first text: each row is a query, its attention adds "
            "up to 1 over the keys to its left.",
        )
        if kind == STRONGEST:
            figure, plot = out[key]
            maps = head_patterns(
                report.attention, draw.example_tokens(report), (layer, head)
            )
            out[key] = figure, replace(plot, maps=maps)
    return out


def _examples(report: SinkReport) -> list[tuple[str, int, int]]:
    """Kind, layer and head of the two heads to be drawn; one head alone comes once."""
    attention: Any = report.attention
    known = set(zip(attention["layer"], attention["head"], strict=True))
    ranked: Any = report.table.sort_values("score", ascending=False)
    places = zip(ranked["layer"], ranked["head"], strict=True)
    named = [
        (int(layer), int(head)) for layer, head in places if (layer, head) in known
    ]
    ends = zip((STRONGEST, WEAKEST), dict.fromkeys((*named[:1], *named[-1:])))  # noqa: B905
    return [(kind, layer, head) for kind, (layer, head) in ends]


def sections(report: SinkReport, drawn: Drawn | None = None) -> tuple[Section, ...]:
    """Body of the page: sinks, drains, residual stream, examples."""
    plots = {name: plot for name, (_, plot) in (drawn or figures(report)).items()}
    spot = f"position {report.position}"
    lengths = text_lengths(report)
    uniform = uniform_score(min(lengths), report.position)
    examples = tuple(p for n, p in plots.items() if n.startswith("attention-"))
    head_names = {
        "layer": "layer",
        "head": "head",
        "score": "sink score",
        **({"low": "95 % from", "high": "95 % to"} if report.rate_interval else {}),
        "share": f"texts above {report.eps:g}",
        "logit": "sink logit, nats",
        "norm": "value norm",
        "others": "others' value norm",
        "ratio": "value norm / others",
    }
    return (
        Section(
            "Attention sinks",
            (
                f"The sink score of a head is its mean attention to {spot} over the "
                f"queries from there on. A head with uniform attention scores "
                f"{uniform:.3f} on texts of {min(lengths)} tokens; that, not 0, is "
                "the reference.",
            ),
            figures=(plots["sink-scores"], plots["positions"]),
            tables=(_rates_table(report),) if len(report.rates) < 50 else (),
        ),
        Section(
            "Value drains",
            (
                f"A head that rests on {spot} adds its value there to the residual "
                "stream. The norm of that value, through the head's output weights, "
                "tells how much.",
            ),
            figures=(plots["value-ratio"], plots["value-by-score"]),
            tables=(
                to_table(
                    report.table.sort_values("score", ascending=False),
                    "Every head",
                    names=head_names,
                    caption="Means over texts. The sink logit is the score before "
                    f"softmax of {spot} minus the mean of the query's other keys; "
                    "norms are in units of the residual stream.",
                ),
            ),
        ),
        Section(
            "Residual norms and massive activations",
            (
                "An entry of the residual stream counts as massive if its size is "
                "above 100 and at least a thousand times the median size of the "
                "layer's entries.",
            ),
            figures=(plots["residual-norm"], plots["massive"]),
            tables=(_residual_table(report), _massive_table(report)),
        ),
        *([_attention_section(examples)] if examples else []),
    )


def _attention_section(examples: tuple[Plot, ...]) -> Section:
    text = (
        "Choose a layer and a head to see where it looks; the strongest sink head is "
        "shown first."
    )
    return Section("Attention, token by token", (text,), figures=examples)


def texts(report: SinkReport) -> tuple[TokenText, ...]:
    """The exact tokens of every text."""
    entries = enumerate(report.meta["tokens"])
    return tuple(TokenText.from_meta(f"Text {i}", entry) for i, entry in entries)


def snippet(report: SinkReport) -> str:
    """A short view for notebooks: summary and numbers."""
    rows = Markup("").join(
        Markup("<tr><td><b>{}</b></td><td>{}</td><td>{}</td></tr>").format(
            item.value, item.label, item.note
        )
        for item in headlines(report)
    )
    text = Markup("").join(Markup("<p>{}</p>").format(t) for t in summary(report))
    notice = Markup("").join(
        Markup("<p><i>{}</i></p>").format(n) for n in notes(report)
    )
    return str(Markup("<div>{}{}<table>{}</table></div>").format(text, notice, rows))


def _rates_table(report: SinkReport) -> Table:
    return to_table(
        report.rates,
        "Sink rate of each text",
        names={"batch": "text", "rate": "share of heads above"},
        caption=f"Share of heads with a sink score above {report.eps:g}.",
    )


def _residual_table(report: SinkReport) -> Table:
    return to_table(
        report.residual,
        "Residual norm by layer",
        names={
            "layer": "layer",
            "norm": f"position {report.position}, mean",
            "others": "others, mean",
            "low": "others, 10 %",
            "median": "others, median",
            "high": "others, 90 %",
            "ratio": "ratio",
        },
        caption="Units of the residual stream; ratio: mean over texts of position "
        f"{report.position} over the text's other tokens.",
    )


def _massive_table(report: SinkReport) -> Table:
    return to_table(
        report.massive,
        "Massive activations",
        names={
            "layer": "layer",
            "pos": "position",
            "dim": "dimension",
            "value": "value, mean",
            "ratio": "|value| / median",
            "texts": "texts that have it",
        },
        caption="" if len(report.massive) else "None passed both thresholds.",
    )
