"""`circuit_report`: a circuit on a page that can be asked.

May import: sites, run, results, plotting, attribution, circuits.
"""

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from mechsink import plotting
from mechsink.attribution.wires import Wires
from mechsink.circuits.graph import QUICK, Circuit
from mechsink.report.circuit_diagram import (
    ROWS,
    SCRIPT,
    by_strength,
    circuit_plot,
    scores_of,
)
from mechsink.report.html import (
    Headline,
    Page,
    Section,
    TokenText,
    render,
    settings_rows,
)
from mechsink.report.paged import Drawn, PagedResult
from mechsink.report.tables import number, to_table

SHOWN = 1000
"""Edges in the page's table; all stand in table.csv."""

NAMES = {
    "source": "source",
    "target": "target",
    "score": "score",
    "low": "95 % from",
    "high": "95 % to",
    "p_value": "p",
    "q_value": "q",
    "source_layer": "source layer",
    "target_layer": "target layer",
}


class CircuitPaged(PagedResult):
    """A paged result that holds a circuit, which is saved with it."""

    @property
    def circuit(self) -> Circuit:
        """The circuit itself."""
        raise NotImplementedError

    def save_drawn(self, folder: Path | str, drawn: Drawn) -> Path:
        """Tables, meta.json, circuit.json, circuit.graphml, figures and the page.

        Args:
            folder: new, or to be filled.
            drawn: figures that `draw` made.
        """
        folder = super().save_drawn(folder, drawn)
        circuit = self.circuit
        circuit.save(folder / "circuit.json")
        circuit.save(folder / "circuit.graphml")
        return folder


@dataclass(frozen=True, eq=False)
class CircuitReport(CircuitPaged):
    """A circuit with a page.

    `table`: as `Circuit.table` (source, target, score, source_layer, target_layer; low,
    high, p_value and q_value where known). `nodes`: node, layer, n_in, n_out (edges),
    in_score, out_score (sums of their scores, in the metric's unit; NaN where one has
    none).

    Attributes:
        title: of the page.
        outputs: targets that the metric reads.
        graph: the fields of `Wires`.

    Examples:
        >>> case = ms.planted("and")
        >>> scores = ms.exact_edges(case.model, case.pairs, ms.logit_diff)
        >>> report = ms.circuit_report(ms.top_edges(scores, 5))
        >>> list(report.nodes), report.circuit.n_edges
        (['node', 'layer', 'n_in', 'n_out', 'in_score', 'out_score'], 5)
    """

    nodes: pd.DataFrame
    title: str
    outputs: list[str]
    graph: dict[str, Any]

    @property
    def circuit(self) -> Circuit:
        """The circuit itself."""
        edges = list(zip(self.table["source"], self.table["target"], strict=True))
        wires = Wires(**self.graph)
        return Circuit.of(
            wires, edges, self.table, outputs=self.outputs, meta=self.meta
        )

    def plot(self, ax: plotting.Axes | None = None) -> plotting.Axes:
        """The layered figure, as `Circuit.plot` draws it.

        Args:
            ax: where to draw; a new figure by default.
        """
        return self.circuit.plot(ax)

    def _draws_quickly(self) -> bool:
        return len(self.table) <= QUICK

    def draw(self) -> Drawn:
        """The layered figure; the page shows it as the interactive diagram."""
        import matplotlib.pyplot as plt

        circuit = self.circuit
        figure = plotting.figure_of(circuit.plot())
        plt.close(figure)
        return {"circuit": (figure, circuit_plot(circuit))}

    def page(self, drawn: Drawn | None = None) -> Page:
        """The page: what was chosen, the diagram, its edges and its components.

        Args:
            drawn: figures that `draw` made; default: drawn now.
        """
        circuit = self.circuit
        plot = drawn["circuit"][1] if drawn else circuit_plot(circuit)
        ranked = by_strength(scores_of(circuit))
        place = {edge: row for row, edge in enumerate(circuit.edges)}
        edges = self.table.iloc[[place[edge] for edge in ranked[:SHOWN]]]
        what = self.meta.get("metric") or "the metric"
        tables = (
            to_table(
                edges,
                ROWS,
                names={key: name for key, name in NAMES.items() if key in edges},
                caption=f"The strongest first. Score > 0: corrupting the edge lowers "
                f"{what}. It follows the diagram's controls."
                + (
                    f" {SHOWN} of {circuit.n_edges:,}; all stand in table.csv."
                    if circuit.n_edges > SHOWN
                    else ""
                ),
            ),
            to_table(
                self.nodes,
                "Components",
                names={
                    "node": "component",
                    "layer": "layer",
                    "n_in": "edges in",
                    "n_out": "edges out",
                    "in_score": "scores in, sum",
                    "out_score": "scores out, sum",
                },
                caption="An edge into a key-value head counts for each head that it "
                "feeds. Layer −1: the input.",
            ),
        )
        entries = self.meta.get("tokens") or []
        return Page(
            title=self.title,
            summary=(self._summary(circuit),),
            headlines=self._headlines(circuit, ranked),
            sections=(
                Section("The circuit", figures=(plot,)),
                Section("Edges and components", tables=tables),
            ),
            texts=tuple(
                TokenText.from_meta(f"Prompt {i}", entry)
                for i, entry in enumerate(entries)
            ),
            settings=settings_rows(self.meta),
            notes=self._notes(circuit),
            scripts=(SCRIPT,),
        )

    def _summary(self, circuit: Circuit) -> str:
        meta = self.meta
        text = (
            f"{_counted(circuit.n_edges, 'edge')} between "
            f"{_counted(len(circuit.nodes), 'component')}, out of the "
            f"{len(circuit.wires.edges):,} edges of the model"
        )
        if {"selection", "sign", "n"} <= set(meta):
            rank = "score" if meta["sign"] == "signed" else "|score|"
            how = {
                "top": f"the {meta['n']:,} of the largest {rank} were chosen",
                "greedy": f"{meta['n']:,} were chosen from the outputs upstream, the "
                f"largest {rank} first",
            }.get(meta["selection"], f"chosen by {meta['selection']}")
            text += f"; {how}"
            text += ", then loose ends dropped" if meta.get("pruned") else ""
        if meta.get("method"):
            text += f". Scores: {meta['method']}, metric {meta.get('metric', '–')}"
        return text + "."

    def _headlines(
        self, circuit: Circuit, ranked: list[tuple[str, str]]
    ) -> tuple[Headline, ...]:
        share = circuit.n_edges / len(circuit.wires.edges)
        kinds = Counter(circuit.graph.nodes[name]["kind"] for name in circuit.nodes)
        heads = kinds["head"] + kinds["attention"]
        found = [
            Headline(f"{circuit.n_edges:,}", "edges", f"{share:.2%} of the model's"),
            Headline(
                f"{len(circuit.nodes)}",
                "components",
                f"{_counted(heads, 'head')}, {_counted(kinds['mlp'], 'MLP')}",
            ),
        ]
        scores = scores_of(circuit)
        if ranked and scores[ranked[0]] == scores[ranked[0]]:
            best = ranked[0]
            where = f"{best[0]} → {best[1]}"
            found.append(Headline(number(scores[best]), "strongest edge", where))
            negative = sum(score < 0 for score in scores.values())
            found.append(
                Headline(f"{negative}", "edges below zero", "corrupting one helps")
            )
        return tuple(found)

    def _notes(self, circuit: Circuit) -> tuple[str, ...]:
        notes = []
        if not circuit.n_edges:
            notes.append(
                "The circuit is empty: no chosen edge lies on a way from the input to "
                "an output. Choose more edges, or choose greedily."
            )
        loose = circuit.n_edges - circuit.pruned().n_edges
        if loose:
            notes.append(
                f"{_counted(loose, 'edge')} of {circuit.n_edges:,} lie on no way from "
                "the input to an output; circuit.pruned() drops them."
            )
        return tuple(notes)


def circuit_report(circuit: Circuit, *, title: str | None = None) -> CircuitReport:
    """A circuit with its components' sums and a page.

    Args:
        circuit: any; from 400 edges on the strongest are drawn, all are saved.
        title: of the page; by default it names the model.

    Returns:
        A `CircuitReport`: `.save(folder)` writes tables, the circuit as JSON and
        GraphML, figures and report.html.

    Examples:
        >>> case = ms.planted("and")
        >>> scores = ms.exact_edges(case.model, case.pairs, ms.logit_diff)
        >>> report = ms.circuit_report(ms.top_edges(scores, 5), title="An AND gate")
        >>> report.nodes[["node", "n_in", "n_out"]].values.tolist()
        [['input', 0, 2], ['a0.h0', 1, 1], ['a0.h1', 1, 1], ['m0', 2, 1], ['logits', 1,
        0]]
    """
    model = circuit.meta.get("model")
    title = title or (f"Circuit of {model}" if model else "Circuit")
    return CircuitReport(
        circuit.table,
        circuit.meta,
        _nodes(circuit),
        title,
        circuit.outputs,
        asdict(circuit.wires),
    )


def circuit_page(circuit: Circuit, *, title: str | None = None) -> str:
    """One HTML page that loads nothing: `circuit_report(circuit).to_html` as text.

    Args:
        circuit: any.
        title: of the page; by default it names the model.

    Returns:
        The page's HTML.

    Examples:
        >>> case = ms.planted("and")
        >>> scores = ms.exact_edges(case.model, case.pairs, ms.logit_diff)
        >>> page = ms.circuit_page(ms.top_edges(scores, 5), title="An AND gate")
        >>> "An AND gate" in page
        True
    """
    return render(circuit_report(circuit, title=title).page())


def _nodes(circuit: Circuit) -> pd.DataFrame:
    """One row a component, from the input up."""
    scores, wires, graph = scores_of(circuit), circuit.wires, circuit.graph
    rows = []
    for name in circuit.nodes:
        ports = {name, *(wires.ports(name) if name in wires.source_index else ())}
        into = [score for (_, target), score in scores.items() if target in ports]
        out = [score for (source, _), score in scores.items() if source == name]
        row = {"node": name, "layer": graph.nodes[name]["layer"]}
        row |= {"n_in": len(into), "n_out": len(out)}
        rows.append({**row, "in_score": sum(into), "out_score": sum(out)})
    columns = ["node", "layer", "n_in", "n_out", "in_score", "out_score"]
    kinds = dict(zip(columns, ["str", *["int64"] * 3, *["float64"] * 2], strict=True))
    table = pd.DataFrame(rows, columns=columns)
    return table.astype(kinds)  # type: ignore[arg-type]


def _counted(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"
