"""Trials of All-for-One subgraphs: what each keeps, and the smallest that suffices."""

import itertools
import math
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pandas as pd
import torch
from jaxtyping import Bool
from torch import Tensor

from mechsink.experiments.all_for_one.experiment import Outcomes, af1_edits, outcomes
from mechsink.intervals import wilson
from mechsink.interventions.context_mean import ContextMeans
from mechsink.interventions.peeking import hide, last_sees_self
from mechsink.progress import Advance, bar
from mechsink.run import Model
from mechsink.sites import Site
from mechsink.slots.tokens import SlotTokens

T = TypeVar("T")

SHARES = ["train_kept", "train_low", "train_high", "kept", "low", "high"]
"""Shares of right answers kept, with 95 % Wilson ends: where chosen, where reported."""


@dataclass  # not frozen: it remembers
class Trials:
    """Runs subgraphs on the right prompts, and remembers what each kept."""

    model: Model
    slots: SlotTokens
    is_train: Bool[Tensor, " prompt"]
    batch_size: int | None
    progress: bool | None = None  # bars; None: on a terminal
    means: dict[Site, ContextMeans] = field(default_factory=dict)
    known: dict[tuple[int, tuple[int, ...]], dict[str, Any]] = field(
        default_factory=dict
    )

    def __call__(self, wait: int, peek: Iterable[int]) -> dict[str, Any]:
        """The shares of one subgraph, and its mean log-probability on train prompts."""
        layers = tuple(sorted(peek))
        if (wait, layers) not in self.known:
            means = self.means[Site("resid_pre", wait)]
            edits = af1_edits(self.model, self.slots, wait, layers, means)
            self.known[wait, layers] = self.shares(edits)
        return self.known[wait, layers]

    def shares(self, edits: Callable[..., Any]) -> dict[str, Any]:
        """The same of any edits."""
        found: Outcomes = outcomes(self.model, self.slots, edits, self.batch_size)
        correct = found.correct.cpu()
        numbers: list[float] = []
        for part in (self.is_train, ~self.is_train):
            n, n_kept = int(part.sum()), int(correct[part].sum())
            numbers += [n_kept / n, *wilson(n_kept, n)]
        logprob = float(found.logprob.cpu()[self.is_train].double().mean())
        return {**dict(zip(SHARES, numbers, strict=True)), "logprob": logprob}


def fewest(
    trial: Trials, wait: int, target: float, exhaustive: int, max_sets: int
) -> list[int]:
    """The smallest set of peeking layers that reaches the target, as documented."""
    layers = list(range(wait, trial.model.shape.n_layers))

    def merit(peek: Sequence[int]) -> tuple[float, float]:
        found = trial(wait, peek)
        return found["train_kept"], found["logprob"]

    for size in range(min(exhaustive, len(layers) - 1) + 1):
        if math.comb(len(layers), size) > max_sets:
            break
        n_sets = math.comb(len(layers), size)
        with bar(f"sets of {size} peeking layers", n_sets, trial.progress) as advance:
            best = max(_told(itertools.combinations(layers, size), advance), key=merit)
        if merit(best)[0] >= target:
            return list(best)
    kept = list(layers)
    with bar("dropping peeking layers", 2 * len(layers), trial.progress) as advance:
        missed = {n: merit(_without(layers, n)) for n in _told(layers, advance)}
        # The layer that is missed least goes first.
        order = sorted(layers, key=lambda n: missed[n], reverse=True)
        for layer in _told(order, advance):
            if len(kept) > 1 and merit(_without(kept, layer))[0] >= target:
                kept = _without(kept, layer)
    return kept


def necessity(trial: Trials, peek: Collection[int]) -> pd.DataFrame:
    """The full model with the last token's look at others undone."""
    seen = last_sees_self(trial.slots.n_pos)
    sets = [[layer] for layer in range(trial.model.shape.n_layers)]
    if len(peek) > 1:
        sets.append(sorted(peek))
    rows = []
    with bar("peeks undone", len(sets), trial.progress) as advance:
        for undone in _told(sets, advance):
            edits = hide(trial.model, dict.fromkeys(undone, seen))
            shares = trial.shares(lambda tokens, edits=edits: edits)
            rows.append({"undone": as_text(undone), **shares})
    return pd.DataFrame(rows)


def tried(trial: Trials, wait: int | None) -> pd.DataFrame:
    """All sets of peeking layers tried at the chosen depth, smallest first."""
    rows = [
        {"wait": wait, "peek": as_text(peek), "n_peek": len(peek), **shares}
        for (at, peek), shares in trial.known.items()
        if at == wait
    ]
    rows.sort(key=lambda row: (row["n_peek"], -row["train_kept"]))
    columns = ["wait", "peek", "n_peek", *SHARES, "logprob"]
    return pd.DataFrame(rows, columns=columns)


def split(
    slots: SlotTokens, train_share: float, unseen: str, seed: int
) -> Bool[Tensor, " prompt"]:
    """Which prompts the search may see."""
    draw = random.Random(seed)
    if unseen == "prompts":
        n_train = round(train_share * len(slots))
        chosen = torch.zeros(len(slots), dtype=torch.bool)
        chosen[draw.sample(range(len(slots)), n_train)] = True
        return chosen
    picks = slots.picks(slots.tokens).cpu()
    seen = torch.ones(len(slots), dtype=torch.bool)
    each = train_share ** (1 / len(slots.names))  # shares of slots multiply
    for slot, values in enumerate(slots.values):
        n_seen = min(max(1, round(each * len(values))), len(values) - 1)
        kept = torch.tensor(draw.sample(range(len(values)), n_seen))
        seen &= torch.isin(picks[:, slot], kept)
    return seen


def _told(items: Iterable[T], advance: Advance) -> Iterator[T]:
    """The items, each told to a bar when the next is asked for."""
    for item in items:
        yield item
        advance()


def _without(layers: Sequence[int], layer: int) -> list[int]:
    return [other for other in layers if other != layer]


def as_text(layers: Iterable[int]) -> str:
    """Layers as the tables write them: "14 15", or "none"."""
    return " ".join(map(str, layers)) or "none"
