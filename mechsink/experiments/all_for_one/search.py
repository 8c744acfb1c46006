"""The search for an All-for-One subgraph: how long can it wait, where must it peek?

All waiting depths are tried with peeking everywhere after; at the largest that keeps
enough, the smallest set of peeking layers: all single layers, all pairs, then layers
dropped one by one. Choices rest on some prompts, what is reported on others.

Source: Mamidanna et al. 2025 (arXiv:2509.09650).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from mechsink import plotting
from mechsink.experiments.all_for_one.experiment import (
    AllForOneResult,
    all_for_one,
    outcomes,
    task_tokens,
)
from mechsink.experiments.all_for_one.trials import (
    Trials,
    as_text,
    fewest,
    necessity,
    split,
    tried,
)
from mechsink.interventions.context_mean import means_at
from mechsink.interventions.context_sums import EXACT
from mechsink.models.any_model import any_model
from mechsink.plotting import Axes
from mechsink.progress import bar
from mechsink.provenance import provenance
from mechsink.results import Result
from mechsink.run import Model
from mechsink.slots.prompts import SlotPrompts
from mechsink.slots.tokens import SlotTokens


@dataclass(frozen=True, eq=False)
class AllForOneSearch(Result):
    """How late and how rarely the last token may look, and what that keeps.

    All shares are of the prompts that the full model gets right, with 95 % Wilson
    intervals: train_kept, train_low, train_high where choices were made; kept, low,
    high on prompts that played no part in them.

    `table`: wait, n_peek, the shares; peeking in all layers from `wait` on.
    `peeks`: wait, peek (layers, as text), n_peek, the shares, for every set tried at
    the chosen wait. `necessity`: undone (layers where the last token of the full
    model may not look at others), the shares, logprob (mean of the answer, nats).

    Attributes:
        found: whether a subgraph reached the target.
        target: share of right answers that had to be kept.
        message: what was found, in words.

    Examples:
        >>> model = ms.planted("and").model
        >>> prompts = ms.SlotPrompts(
        ...     "{F} {A} {G} {B} =",
        ...     {"F": "uvwx", "A": "01", "G": "uvwx", "B": "01"},
        ...     lambda F, A, G, B: " yes" if A + B == "11" else " no",
        ... )
        >>> found = ms.search_all_for_one(model, prompts, unseen="prompts")
        >>> found.kept, list(found.table)
        (1.0, ['wait', 'n_peek', 'train_kept', 'train_low', 'train_high', 'kept', 'low',
        'high'])
        >>> ax = found.plot()
    """

    peeks: pd.DataFrame
    necessity: pd.DataFrame
    found: bool
    wait: int | None
    peek: list[int] | None
    target: float
    message: str

    @property
    def kept(self) -> float:
        """What the subgraph found keeps on unseen prompts; NaN if none was found."""
        return self._chosen("kept")

    @property
    def kept_interval(self) -> tuple[float, float]:
        """95 % Wilson interval of `kept`."""
        return self._chosen("low"), self._chosen("high")

    def plot(self, ax: Axes | None = None) -> Axes:
        """What is kept on unseen prompts against the waiting depth.

        Args:
            ax: where to draw; default: a new figure.
        """
        with plotting.theme():
            ax = ax or plotting.new_axes()
            at, (colour, *_) = self.table["wait"], plotting.colours(1)
            low, high = self.table["low"], self.table["high"]
            ax.fill_between(at, low, high, color=colour, alpha=0.2, lw=0)
            label = "peeking in all later layers"
            ax.plot(at, self.table["kept"], color=colour, marker="o", ms=3, label=label)
            if self.wait is not None and self.peek is not None:
                label = f"peeking in {as_text(self.peek)}"
                style: dict[str, Any] = {"ls": "", "marker": "D", "ms": 5}
                ax.plot([self.wait], [self.kept], color="0.1", label=label, **style)
            ax.axhline(self.target, color="0.6", lw=0.8, ls=":", zorder=0)
            ax.set(xlabel="layers waited", ylabel="right answers kept")
            ax.set_ylim(-0.03, 1.03)
            plotting.whole_numbers(ax.xaxis)
            ax.legend()
        return ax

    def _chosen(self, column: str) -> float:
        if self.peek is None:
            return float("nan")
        at = (self.peeks["peek"] == as_text(self.peek)).to_numpy()
        return float(self.peeks[column].to_numpy()[at][0])


@any_model
def search_all_for_one(
    model: Model,
    slot_prompts: SlotPrompts | SlotTokens,
    *,
    target: float = 0.95,
    train_share: float = 0.5,
    unseen: Literal["operands", "prompts"] = "operands",
    exhaustive: int = 2,
    max_sets: int = 500,
    n_samples: int | None = None,
    exact_up_to: int = EXACT,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool | None = None,
) -> AllForOneSearch:
    """Find the largest waiting depth, then the fewest peeking layers, that suffice.

    1. Every depth from the last layer down to 0 is run with peeking in all later
       layers. What is kept need not fall with depth, so none is skipped.
    2. At the largest depth whose train_kept reaches `target`: all sets of 0, 1, 2,
       up to `exhaustive` layers; the best of the smallest size that reaches it wins
       (ties: the higher mean log-probability of the answer). If none does, layers
       are dropped from the full set, the least missed first, while it is reached.
    3. In the full model, each layer's peek is undone in turn.

    Only prompts that the full model gets right take part.

    Args:
        model: a causal model whose attention can be edited.
        slot_prompts: prompts with answers, as for `all_for_one`.
        target: share of right answers that must be kept, 0 to 1.
        train_share: about this share of the prompts serves the choices.
        unseen: "operands": each slot sets values aside, and reported prompts hold at
            least one of them; "prompts": prompts are set aside at random.
        exhaustive: size up to which all sets of peeking layers are tried.
        max_sets: sizes with more sets than this are not tried in full.
        n_samples: contexts drawn for each mean, as in `context_means`.
        exact_up_to: combinations up to which all are run.
        seed: of the split and of sampled contexts.
        batch_size: prompts a pass; None: what fits.
        progress: show bars; default on a terminal only.

    Returns:
        An `AllForOneSearch`; `found` says whether any subgraph reached the target.

    Raises:
        ValueError: numbers out of range, a model that gets too few prompts right to
            split, or what `all_for_one` refuses.

    Source: Mamidanna et al. 2025 (arXiv:2509.09650); search and split are ours.

    Examples:
        >>> model = ms.planted("and").model
        >>> prompts = ms.SlotPrompts(
        ...     "{F} {A} {G} {B} =",
        ...     {"F": "uvwx", "A": "01", "G": "uvwx", "B": "01"},
        ...     lambda F, A, G, B: " yes" if A + B == "11" else " no",
        ... )
        >>> found = ms.search_all_for_one(model, prompts, unseen="prompts")
        >>> found.found, found.wait, found.peek
        (True, 0, [0])
    """
    started = time.perf_counter()
    for name, share in (("target", target), ("train_share", train_share)):
        if not 0 < share <= 1 or (name == "train_share" and share == 1):
            raise ValueError(
                f"search_all_for_one: {name}={share}. Allowed: above 0, up to 1 for "
                "target and below 1 for train_share, such as .95 and .5."
            )
    slots = task_tokens(model, slot_prompts)
    full = outcomes(model, slots, None, batch_size)
    right = slots.rows(full.correct)
    is_train = split(right, train_share, unseen, seed)
    if int(is_train.sum()) < 2 or int((~is_train).sum()) < 2:
        raise ValueError(
            f"search_all_for_one: the full model gets {len(right)} of {len(slots)} "
            f"prompts right; {int(is_train.sum())} of them are to search on and "
            f"{int((~is_train).sum())} to report on, and each needs at least 2. Give "
            'more prompts, an easier task, or unseen="prompts".'
        )
    trial = Trials(model, right, is_train, batch_size, progress)
    sites = model.shape.all_sites("resid_pre")
    trial.means = means_at(
        model,
        slots,
        sites,
        n_samples=n_samples,
        seed=seed,
        batch_size=batch_size,
        exact_up_to=exact_up_to,
    )
    n_layers, curve = model.shape.n_layers, []
    with bar("every waiting depth", n_layers, progress) as advance:
        for wait in range(n_layers):
            shares = trial(wait, range(wait, n_layers))
            curve.append({"wait": wait, "n_peek": n_layers - wait, **shares})
            advance()
    reached = [row["wait"] for row in curve if row["train_kept"] >= target]
    wait = max(reached, default=None)
    peek = None if wait is None else fewest(trial, wait, target, exhaustive, max_sets)
    undone = necessity(trial, peek or [])
    table = pd.DataFrame(curve).drop(columns="logprob")
    meta = provenance(
        model,
        slots.tokens,
        duration=time.perf_counter() - started,
        target=target,
        train_share=train_share,
        unseen=unseen,
        exhaustive=exhaustive,
        n_samples=n_samples,
        seed=seed,
        slots=dict(zip(slots.names, slots.positions, strict=True)),
        values=[values.tolist() for values in slots.values],
        full_accuracy=float(full.correct.double().mean()),
        right=len(right),
        train_prompts=[right.index[i] for i in is_train.nonzero()[:, 0].tolist()],
    )
    return AllForOneSearch(
        table,
        meta,
        tried(trial, wait),
        undone,
        peek is not None,
        wait,
        peek,
        target,
        _message(trial, table, wait, peek, target),
    )


@any_model
def transfer(
    result: AllForOneSearch | AllForOneResult,
    model: Model,
    slot_prompts: SlotPrompts | SlotTokens,
    *,
    batch_size: int | None = None,
) -> AllForOneResult:
    """The same waiting depth and peeking layers on other prompts, or another model.

    Args:
        result: what was found elsewhere.
        model: a causal model whose attention can be edited.
        slot_prompts: prompts with answers, as for `all_for_one`.
        batch_size: prompts a pass; None: what fits.

    Returns:
        An `AllForOneResult`, one row a prompt.

    Raises:
        ValueError: the search found no subgraph, or as `all_for_one`.

    Source: Mamidanna et al. 2025 (arXiv:2509.09650).

    Examples:
        >>> model = ms.planted("and").model
        >>> bits = {"A": "01", "B": "01"}
        >>> def both(A, B):
        ...     return " yes" if A + B == "11" else " no"
        >>> found = ms.all_for_one(
        ...     model, ms.SlotPrompts("x {A} x {B} =", bits, both), wait=0, peek=[0]
        ... )
        >>> other = ms.SlotPrompts("u {A} v {B} =", bits, both)
        >>> ms.transfer(found, model, other).faithfulness
        1.0
    """
    if result.wait is None or result.peek is None:
        raise ValueError(
            "transfer: the search found no subgraph to transfer. Lower its target, or "
            "name layers: all_for_one(model, prompts, wait=..., peek=[...])."
        )
    return all_for_one(
        model,
        slot_prompts,
        wait=result.wait,
        peek=result.peek,
        batch_size=batch_size,
    )


def _message(
    trial: Trials,
    table: pd.DataFrame,
    wait: int | None,
    peek: Sequence[int] | None,
    target: float,
) -> str:
    n = int((~trial.is_train).sum())
    if wait is None or peek is None:
        rows: list[dict[str, Any]] = table.to_dict(orient="records")
        best = max(rows, key=lambda row: (row["train_kept"], row["wait"]))
        return (
            f"No All-for-One subgraph keeps {target:.0%} of the right answers. The "
            f"best waits {best['wait']} layers, peeks in all later ones and keeps "
            f"{best['kept']:.3f} ({best['low']:.3f} to {best['high']:.3f}, 95 %) on "
            f"{n} unseen prompts."
        )
    kept = trial(wait, peek)
    return (
        f"Waits {wait} layers, then peeks in {as_text(peek)}: keeps {kept['kept']:.3f} "
        f"({kept['low']:.3f} to {kept['high']:.3f}, 95 %) of the right answers on {n} "
        f"unseen prompts, {kept['train_kept']:.3f} where it was chosen."
    )
