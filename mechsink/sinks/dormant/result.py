"""`ActiveDormant`: which heads rest on one domain and work on another."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mechsink import plotting
from mechsink.plotting import Axes
from mechsink.results import Result

Head = tuple[int, int]  # layer, head
LABELS = 8  # as many heads as can be named in a figure


@dataclass(frozen=True, eq=False)
class ActiveDormant(Result):
    """Dormancy of every head by domain, its contrast, and what the head is worth.

    `table`: layer, head, one column a domain (mean dormancy: attention to the sink, 0
    to 1), difference (first domain minus second), low, high (its 95 % interval over
    texts), q_value (Benjamini-Hochberg over all heads), zeroed_NAME (change of the
    domain's loss when the head is zeroed, nats a token; NaN where not measured),
    p_value, effect_size (Hedges' g). With more than two domains there is one row a
    head and domain, named in a column `domain` after head; difference is that domain
    minus the mean of the others' means.

    `confirmation`: one row a tested head and edit: layer, head, (domain), edit
    ("zeroed", "moved" to the sink), active (where the head is less dormant; "others"
    for the other domains), one column a domain (change of its loss, nats a token),
    difference (active minus dormant), low, high, p_value, q_value (over the tested
    heads of that edit), is_confirmed (interval and q-value both say above 0).

    `texts`: domain, text, layer, head, dormancy. `losses`: domain, text, layer, head,
    edit, full, edited; mean loss of a text's predicted tokens, nats.

    Attributes:
        domains: in the order given.
        position: of the sink.

    Examples:
        >>> from toy_tasks.planted.dormant import dormant_head
        >>> case = dormant_head()
        >>> texts = {name: case.sample(name, 40, seed=1) for name in ("rest", "work")}
        >>> model = ms.load_model(case.model)
        >>> found = ms.active_dormant(model, texts, n_pos=16, confirm="none")
        >>> found.rows_of().nlargest(1, "difference")[["layer", "head"]].values.tolist()
        [[0, 2]]
        >>> ax = found.plot()
    """

    confirmation: pd.DataFrame
    texts: pd.DataFrame
    losses: pd.DataFrame
    domains: list[str]
    position: int

    def heads(
        self,
        q: float = 0.05,
        min_difference: float = 0.0,
        *,
        domain: str | None = None,
        confirmed: bool = False,
    ) -> list[Head]:
        """(layer, head) whose dormancy differs by domain, the largest difference first.

        Args:
            q: expected share of false ones among them.
            min_difference: least |difference|, a share of attention.
            domain: with more than two, the one that must differ from the others;
                default: any.
            confirmed: only those that `confirmation` confirms by zeroing.
        """
        table: Any = self.rows_of(domain) if domain else self.table
        size = table["difference"].abs()
        found = table[(table["q_value"] < q) & (size >= min_difference)]
        found = found.iloc[np.argsort(-found["difference"].abs(), kind="stable")]
        pairs = list(dict.fromkeys(_pairs(found)))
        kept = set(self.confirmed(domain)) if confirmed else set(pairs)
        return [head for head in pairs if head in kept]

    def confirmed(self, domain: str | None = None) -> list[Head]:
        """(layer, head) of which zeroing costs more where the head is active.

        Args:
            domain: with more than two, the one that is asked about; default: any.
        """
        found: Any = self.confirmation
        found = found[(found["edit"] == "zeroed") & found["is_confirmed"]]
        if domain is not None and "domain" in found:
            found = found[found["domain"] == domain]
        return list(dict.fromkeys(_pairs(found)))

    def rows_of(self, domain: str | None = None) -> pd.DataFrame:
        """One row a head: the contrast of `domain`; of two domains there is only one.

        Args:
            domain: with more than two, whose contrast; default: the first.

        Raises:
            ValueError: an unknown domain.
        """
        if domain is not None and domain not in self.domains:
            raise ValueError(
                f"ActiveDormant: domain={domain!r}. Allowed: {', '.join(self.domains)}."
            )
        if "domain" not in self.table:
            return self.table
        table: Any = self.table
        return table[table["domain"] == (domain or self.domains[0])]

    def even_head(self) -> float:
        """Dormancy of a head that attends evenly to all it sees."""
        n_pos = int(self.meta["settings"]["n_pos"])
        return float(np.mean([1 / (i + 1) for i in range(self.position + 1, n_pos)]))

    def plot(
        self, ax: Axes | None = None, *, domain: str | None = None, q: float = 0.05
    ) -> Axes:
        """One dot a head: dormancy in one domain against the other.

        Heads on the diagonal do not care. Flagged heads (q-value under `q`) are
        coloured, confirmed ones filled; the largest differences that
        have room are named. The cross
        is a head that attends evenly. With more than two domains: `domain`, the first
        by default, against the mean of the others.

        Args:
            ax: where to draw; default: a new figure.
        """
        table: Any = self.rows_of(domain)
        first = domain if domain and len(self.domains) > 2 else self.domains[0]
        others = [name for name in self.domains if name != first]
        x, y = table[first].to_numpy(), table[others].mean(axis=1).to_numpy()
        flagged = (table["q_value"] < q).to_numpy()
        sure = set(self.confirmed(domain))
        filled = np.array([head in sure for head in _pairs(table)], bool) & flagged
        with plotting.theme():
            ax = ax or plotting.new_axes(height=plotting.WIDTH)
            _, colour, other = plotting.colours(3)
            ax.plot([0, 1], [0, 1], color="0.6", lw=0.8, zorder=0)
            even = self.even_head()
            ax.plot(even, even, marker="+", ls="", color="0.3", label="even head")
            ax.scatter(*_at(x, y, ~flagged), s=6, color="0.65", lw=0, label="others")
            ring = {"s": 16, "facecolors": "none", "lw": 0.9, "label": f"q < {q:g}"}
            ax.scatter(*_at(x, y, flagged & ~filled), edgecolors=colour, **ring)
            dots: dict[str, Any] = {"s": 16, "lw": 0, "label": "confirmed"}
            ax.scatter(*_at(x, y, filled), color=other, **dots)
            named: list[tuple[float, float]] = []
            for layer, head in self.heads(q, domain=domain):
                here = (table["layer"] == layer) & (table["head"] == head)
                spot = (float(x[here.to_numpy()][0]), float(y[here.to_numpy()][0]))
                if any(_overlap(spot, other) for other in named):
                    continue
                named.append(spot)
                ax.annotate(
                    f"L{layer}H{head}",
                    spot,
                    xytext=(3, 3),
                    textcoords="offset points",
                    fontsize="x-small",
                )
                if len(named) == LABELS:
                    break
            what = f"attention to position {self.position}"
            second = others[0] if len(others) == 1 else "mean of the others"
            ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
            one, two = plotting.literal(first), plotting.literal(second)
            ax.set(xlabel=f"{what}, {one}", ylabel=f"{what}, {two}")
            ax.legend(loc="upper left", fontsize="x-small")
        return ax

    def describe(self, q: float = 0.05, most: int = 10) -> str:
        """What was found, in a few lines of plain text.

        Args:
            q: q-value under which a head is named.
            most: heads that are named.
        """
        settings = self.meta["settings"]
        counts = settings["n_texts"]
        texts = ", ".join(f"{counts[name]} {name}" for name in self.domains)
        n_heads = len(self.table[["layer", "head"]].drop_duplicates())
        flagged = self.heads(q)
        tested = self.confirmation[["layer", "head"]].drop_duplicates()
        lines = [
            f"{self.meta['model']}: {n_heads} heads on {texts} texts of "
            f"{settings['n_pos']} tokens; attention to position {self.position}, "
            f"even head {self.even_head():.3f}.",
            f"{len(flagged)} heads differ by domain (q < {q:g}); of {len(tested)} "
            f"tested by zeroing, {len(self.confirmed())} are confirmed.",
        ]
        table: Any = self.table
        table = table[table["q_value"] < q]
        order = np.argsort(-table["difference"].abs(), kind="stable")
        sure = set(self.confirmed())
        for row in table.iloc[order].head(most).to_dict("records"):
            head = row["layer"], row["head"]
            means = ", ".join(f"{name} {row[name]:.3f}" for name in self.domains)
            of = f" ({row['domain']})" if "domain" in row else ""
            lines.append(
                f"  L{head[0]}H{head[1]}{of}: {means}; difference "
                f"{row['difference']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})"
                f"{', confirmed' if head in sure else ''}"
            )
        return "\n".join([*lines, *self.meta["notes"]])


def _pairs(table: Any) -> list[Head]:
    pairs = zip(table["layer"], table["head"], strict=True)
    return [(int(layer), int(head)) for layer, head in pairs]


def _at(x: np.ndarray, y: np.ndarray, where: np.ndarray) -> Sequence[np.ndarray]:
    return x[where], y[where]


def _overlap(spot: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether two names, each about .12 wide and .04 high, would cover each other."""
    return abs(spot[0] - other[0]) < 0.12 and abs(spot[1] - other[1]) < 0.04
