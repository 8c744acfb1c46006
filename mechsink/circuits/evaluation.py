"""The metric of a circuit: every edge outside it cut, all the rest computed.

A cut edge carries what the corrupted run writes ("patch"), nothing ("zero") or a mean
over reference prompts ("mean"). This is edge patching itself, no estimate.
May import: rooms up to attribution.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechsink.attribution.ask import Asked, asked
from mechsink.attribution.edge_patching import cut_metric, cut_rows
from mechsink.attribution.short_runs import metric_of
from mechsink.attribution.wires import Wires
from mechsink.attribution.writes import outputs, source_sites, written
from mechsink.circuits.graph import Circuit, Edge
from mechsink.circuits.pruning import mask_of
from mechsink.models.any_model import any_model
from mechsink.models.memory import free_bytes
from mechsink.models.wiring import wiring
from mechsink.prompts import PromptPairs, Texts, TokenPairs
from mechsink.run import Metric, Model

Ablation = Literal["patch", "zero", "mean"]
ABLATIONS = ("patch", "zero", "mean")
Edges = Circuit | Collection[Edge]
References = Texts | Int[Tensor, "reference _"] | Sequence[Int[Tensor, " _"]]


@any_model
def circuit_metric(
    model: Model,
    circuit: Edges,
    pairs: PromptPairs,
    metric: Metric,
    *,
    ablation: Ablation = "patch",
    reference: References | None = None,
) -> Float[np.ndarray, " prompt"]:
    """Run the clean prompts with a circuit alone.

    Args:
        model: any model whose wiring is known (`mechsink.models.wiring`).
        circuit: a circuit, or its edges as (source, target). All edges: the clean run;
            none: every target reads ablated values alone.
        pairs: clean and corrupted prompts; only "patch" needs the corrupted ones.
        metric: a run to one number per prompt; may read sites.
        ablation: what every edge outside the circuit carries: "patch" the corrupted
            run's write, as MIB always has it; "zero" nothing, so that biases alone are
            left; "mean" the mean write over `reference`.
        reference: prompts for "mean": texts, Int[prompt pos] tokens or a list of
            Int[pos]. Position by position where these and the pairs all have one
            length, else over all their tokens.

    Returns:
        The metric of each pair, in the metric's unit, float64.

    Raises:
        ValueError: a circuit of another model, edges that this model has not, an
            unknown ablation, references missing or out of place, identical prompts
            under "patch", or a run whose metric is NaN or infinite.

    Source: EAP-IG's `evaluate_graph` (Hanna et al. 2024, arXiv:2403.17806), as MIB
    uses it.

    Examples:
        >>> case = ms.planted("and")
        >>> found = ms.circuit_metric(
        ...     case.model, list(case.edges), case.pairs, ms.logit_diff
        ... )
        >>> found[:2].round(1)
        array([4., 4.])
    """
    runs = CircuitRuns.of("circuit_metric", model, pairs, metric, ablation, reference)
    return runs.values(runs.mask(circuit)[None])[0]


@dataclass(frozen=True, eq=False)
class CircuitRuns:
    """Prompts at the ready, to be run with any circuits of one model.

    What cut edges carry is computed once for all circuits where it fits in memory.
    """

    ask: Asked
    ablation: Ablation
    means: Float[Tensor, "source _ d_model"] | None  # the second axis is 1 or pos
    by_position: bool | None  # of the means; None where there are none
    batches: list[TokenPairs]
    kept: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        caller: str,
        model: Model,
        pairs: PromptPairs,
        metric: Metric,
        ablation: Ablation = "patch",
        reference: References | None = None,
    ) -> "CircuitRuns":
        """Check what was asked; nothing is run yet but the references.

        Raises:
            ValueError: as `circuit_metric`.
        """
        _check(caller, ablation, reference)
        if ablation == "patch":
            ask = asked(caller, model, pairs, metric)
        else:  # the corrupted prompts play no part
            groups = replace(pairs, corrupted=pairs.clean).tokens(model)
            wires = Wires.of(model.shape)
            ends = outputs(wires, metric, caller)
            ask = Asked(caller, model, wires, wiring(model), metric, groups, ends)
        means, by_position = None, None
        if reference is not None:
            means, by_position = _means(ask, reference)
        batches = ask.batches(
            lambda n_pos: max(1, cut_rows(model, ask.wires, n_pos) // 4)
        )
        return cls(ask, ablation, means, by_position, batches)

    @property
    def n_prompts(self) -> int:
        """Pairs of prompts."""
        return sum(len(batch) for batch in self.batches)

    @property
    def at_once(self) -> int:
        """Circuits that fit in one pass of the largest batch."""
        fits = [
            cut_rows(self.ask.model, self.ask.wires, each.n_pos) // len(each)
            for each in self.batches
        ]
        return max(1, min(fits))

    @property
    def settings(self) -> dict[str, Any]:
        """What to store beside every number."""
        found: dict[str, Any] = {"ablation": self.ablation}
        if self.by_position is not None:
            over = "prompts" if self.by_position else "prompts and positions"
            found["mean_over"] = over
        return found

    def mask(self, circuit: Edges) -> Bool[np.ndarray, "source target"]:
        """The edges of a circuit of this very model.

        Raises:
            ValueError: it is of another model, or has an edge that this one has not.
        """
        wires, caller = self.ask.wires, self.ask.caller
        if isinstance(circuit, Circuit):
            check_wires(circuit.wires, wires, caller, "circuit")
            edges = list(circuit.edges)
        else:
            edges = list(circuit)
        wires.check(edges, caller)
        return mask_of(wires, edges)

    def values(
        self, keep: Bool[np.ndarray, "circuit source target"]
    ) -> Float[np.ndarray, "circuit prompt"]:
        """The metric of every prompt under every circuit.

        Raises:
            ValueError: it is NaN or infinite somewhere.
        """
        out = np.empty((len(keep), self.n_prompts))
        cut = torch.from_numpy(self.ask.wires.real & ~keep)
        for number, batch in enumerate(self.batches):
            reference = self._reference(number, batch)
            at_once = max(
                1, cut_rows(self.ask.model, self.ask.wires, batch.n_pos) // len(batch)
            )
            for first in range(0, len(keep), at_once):
                some = cut[first : first + at_once]
                value = self._run(batch, reference, some)
                out[first : first + at_once, batch.index] = value
        return out

    def ends(self) -> Float[np.ndarray, "2 prompt"]:
        """The metric of the full model, then with every edge cut."""
        real = self.ask.wires.real
        # Apart: with nothing cut, nothing is computed anew: the clean run to the bit.
        each = [self.values(mask[None]) for mask in (real, np.zeros_like(real))]
        return np.concatenate(each)

    def _run(self, batch: TokenPairs, reference: Tensor, cut: Tensor) -> np.ndarray:
        ask, n = self.ask, len(batch)
        rows = torch.arange(n, device=batch.clean.device).repeat(len(cut))
        value = cut_metric(
            ask.model, ask.wires, ask.wiring, batch.rows(rows), ask.metric,
            cut.to(reference.device).repeat_interleave(n, dim=0),
            reference.repeat(len(cut), 1, 1, 1),
        ).reshape(len(cut), n)  # fmt: skip
        self._require_finite(value, batch, "a run with edges cut")
        return value.numpy()

    def _reference(self, number: int, batch: TokenPairs) -> Tensor:
        """What cut edges carry in one batch, [prompt source pos d_model]."""
        if number in self.kept:
            return self.kept[number]
        ask = self.ask
        if self.ablation == "patch":
            values, cache = metric_of(
                ask.model, ask.wiring, batch.corrupted, batch, ask.metric,
                read=source_sites(ask.wires),
            )  # fmt: skip
            self._require_finite(values, batch, "the corrupted run")
            found = written(ask.wires, ask.wiring, cache).detach()
        else:
            shape = ask.model.shape
            dtype = torch.promote_types(ask.model.dtype, torch.float32)
            size = (len(batch), len(ask.wires.sources), batch.n_pos, shape.d_model)
            if self.means is None:
                return torch.zeros(size, dtype=dtype, device=ask.model.device)
            return self.means.to(dtype).expand(size)
        used = sum(each.nbytes for each in self.kept.values())
        if used + found.nbytes <= min(2**30, 0.2 * free_bytes(ask.model.device)):
            self.kept[number] = found
        return found

    def _require_finite(self, value: Tensor, batch: TokenPairs, what: str) -> None:
        bad = ~value.isfinite().reshape(-1, len(batch)).all(0)
        if bad.any():
            pairs = [i for i, wrong in zip(batch.index, bad, strict=True) if wrong]
            raise ValueError(
                f"{self.ask.caller}: the metric of {what} is NaN or infinite for pairs "
                f"{pairs[:8]}. The model's weights or activations hold NaN, or "
                "overflow in this dtype: check ms.selfcheck(model), or load it with "
                "dtype=torch.float32."
            )


def check_wires(given: Wires, wires: Wires, caller: str, what: str) -> None:
    """Raise ValueError unless a circuit or scores are of this model's graph."""
    if given != wires:
        raise ValueError(
            f"{caller}: this {what} is of another graph than this model's: {given}, "
            f"here {wires}. Give one that was found on this model."
        )


def _check(caller: str, ablation: str, reference: References | None) -> None:
    if ablation not in ABLATIONS:
        raise ValueError(
            f"{caller}: ablation={ablation!r}. Allowed: {', '.join(ABLATIONS)}."
        )
    if (ablation == "mean") != (reference is not None):
        raise ValueError(
            f"{caller}: ablation={ablation!r} with reference="
            + ("None" if reference is None else "prompts")
            + '. Only "mean" takes reference prompts, and it needs them: for example '
            "reference=pairs.corrupted."
        )


@torch.no_grad()
def _means(ask: Asked, reference: References) -> tuple[Tensor, bool]:
    """Mean write of every source over all reference prompts, and if by position."""
    if len(reference) == 0:
        raise ValueError(
            f"{ask.caller}: reference has no prompts. Give at least one for the mean."
        )
    groups = PromptPairs(reference, reference).tokens(ask.model)
    lengths = {group.n_pos for group in (*groups, *ask.groups)}
    by_position = len(lengths) == 1
    total: Any = 0.0
    weight = 0
    for group in groups:
        size = max(1, cut_rows(ask.model, ask.wires, group.n_pos))
        for first in range(0, len(group), size):
            tokens = group.clean[first : first + size]
            cache = ask.model.run(tokens, read=source_sites(ask.wires)).cache
            part = written(ask.wires, ask.wiring, cache).double().sum(0)
            total = total + (part if by_position else part.sum(1, keepdim=True))
            weight += len(tokens) * (1 if by_position else group.n_pos)
    return total / weight, by_position
