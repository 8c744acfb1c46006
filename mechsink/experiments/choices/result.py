"""What `multiple_choice` found: the nodes that say the label, and their figure.

Source: Lieberum et al. 2023 (arXiv:2307.09458).
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from mechsink import plotting
from mechsink.experiments.choices.nodes import Node
from mechsink.plotting import Axes
from mechsink.results import Result


@dataclass(frozen=True, eq=False)
class MultipleChoiceResult(Result):
    """Which nodes say the right label, what they look at, and what they need.

    The margin is the right label's logit less the mean of the other labels'. Every
    row has `labels`: "given", or "other" for the prompts of `generalise`.

    `table`, one row a head or MLP: labels, layer, component; direct: its part of the
      margin (`logit_attribution`); is_output: among the largest |direct| of its
      prompts. For the output nodes of the given prompts also, NaN elsewhere:
      patched_direct and total: how much the margin falls, directly and in all, when
      the node has its value of another question; category, with the attention of the
      last token behind it (head_categories.py); category is "MLP" for MLPs and ""
      where not measured: to_labels (all labels), to_last (itself), then shares of the
      attention to labels: to_correct, follows (how often the right one has the most),
      to_one (the most that a label has where it is not right), uneven (largest
      distance from an equal share), all 0 to 1. direct, patched_direct and total have
      NAME_low and NAME_high, 95 % bootstrap intervals over prompts.
    `low_rank`, of the correct-letter heads, as in `LowRank`: queries cut at the last
      position, keys and values at the labels. Directions of "other" are those fitted
      on the given prompts. Empty where no head is of that kind.
    `accuracy`: labels, n, accuracy (the right label's logit is the largest of the
      labels'), low, high (Wilson), margin, margin_low, margin_high, error (largest
      relative error of the sum of parts).

    Examples:
        >>> from toy_tasks.planted import LABEL_POSITIONS
        >>> case = ms.planted("letter", n_prompts=24)
        >>> pairs = case.pairs
        >>> choices = ms.Choices.at(pairs.clean, LABEL_POSITIONS, pairs.answers)
        >>> found = ms.multiple_choice(case.model, choices, n_nodes=2)
        >>> found.outputs[["layer", "component", "category"]].values.tolist()
        [[1, 'h0', 'correct letter'], [0, 'h0', 'single letter']]
        >>> ax = found.plot()
    """

    low_rank: pd.DataFrame
    accuracy: pd.DataFrame

    @property
    def outputs(self) -> pd.DataFrame:
        """Output nodes of the given prompts, the largest |direct| first.

        `confirmed`: the total effect has the sign of `direct`, interval and all.
        """
        chosen = self.table["is_output"] & (self.table["labels"] == "given")
        rows = self.table.loc[chosen]
        order = np.argsort(-rows["direct"].abs().to_numpy(dtype=float), kind="stable")
        rows = rows.iloc[order]
        up = (rows["direct"] > 0) & (rows["total_low"] > 0)
        down = (rows["direct"] < 0) & (rows["total_high"] < 0)
        return rows.assign(confirmed=up | down)

    def heads(self, kind: str) -> list[tuple[int, int]]:
        """Output heads of a category, as (layer, head).

        Args:
            kind: "correct letter", "single letter", "uniform", "amplification" or
                "other".
        """
        rows = self.outputs
        rows = rows.loc[rows["category"] == kind]
        pairs = zip(rows["layer"], rows["component"], strict=True)
        return [(int(layer), int(name[1:])) for layer, name in pairs]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Output nodes: direct part of the margin, coloured by category.

        Args:
            ax: where to draw; default: a new figure.
        """
        from matplotlib.patches import Patch

        rows = self.outputs.iloc[::-1]
        kinds = list(dict.fromkeys(self.outputs["category"]))
        colours = dict(zip(kinds, plotting.colours(len(kinds)), strict=True))
        with plotting.theme():
            ax = ax or plotting.new_axes(height=0.8 + 0.18 * len(rows))
            names = [
                _name((int(layer), component))
                for layer, component in zip(
                    rows["layer"], rows["component"], strict=True
                )
            ]
            values = rows[["direct_low", "direct", "direct_high"]].to_numpy(dtype=float)
            around = np.abs(np.diff(values, axis=1)).T
            ax.barh(
                names,
                values[:, 1],
                xerr=np.nan_to_num(around),
                color=[colours[kind] for kind in rows["category"]],
                error_kw={"elinewidth": 0.6},
            )
            shown = [
                Patch(color=colour, label=kind) for kind, colour in colours.items()
            ]
            ax.axvline(0, color="0.6", lw=0.6)
            ax.set(xlabel="direct part of the margin, logits")
            ax.legend(handles=shown, loc="upper left", bbox_to_anchor=(1.0, 1.0))
            return ax


def _name(node: Node) -> str:
    layer, component = node
    return f"m{layer}" if component == "mlp" else f"a{layer}.{component}"
