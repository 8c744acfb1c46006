"""What every edge method asks and answers: checks before, the table after."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechsink.attribution.edge_scores import EdgeScores
from mechsink.attribution.inference import inference
from mechsink.attribution.short_runs import metric_of
from mechsink.attribution.wires import Wires
from mechsink.attribution.writes import outputs, source_sites, written
from mechsink.models.wiring import Wiring, wiring
from mechsink.prompts import PromptPairs, TokenPairs
from mechsink.provenance import provenance
from mechsink.run import Metric, Model
from mechsink.sites import Site

Ends = tuple[Mapping[Site, Tensor], Mapping[Site, Tensor]]
"""What was read in a clean and in a corrupted run."""


@dataclass(frozen=True, eq=False)
class Asked:
    """A checked question: model, graph, prompts; and the metric's values, as runs go.

    `clean` and `corrupted` fill up: the metric of each pair, by its number.
    """

    caller: str
    model: Model
    wires: Wires
    wiring: Wiring
    metric: Metric
    groups: list[TokenPairs]
    outputs: list[str]
    clean: dict[int, float] = field(default_factory=dict)
    corrupted: dict[int, float] = field(default_factory=dict)

    def batches(self, rows_at_once: Callable[[int], int]) -> list[TokenPairs]:
        """The pairs in batches of so many, or as many as `rows_at_once(n_pos)`."""
        found: list[TokenPairs] = []
        for group in self.groups:
            rows = torch.arange(len(group)).split(rows_at_once(group.n_pos))
            found += [group.rows(some) for some in rows]
        return found

    def each_batch(
        self,
        rows_at_once: Callable[[int], int],
        work: Callable[[TokenPairs], None],
    ) -> None:
        """Do `work` for all pairs, as many at once as fit; halved where CUDA overruns.

        Raises:
            MemoryError: not even one pair fits.
        """
        waiting = self.batches(rows_at_once)
        while waiting:
            batch = waiting.pop(0)
            try:
                work(batch)
                continue
            except torch.OutOfMemoryError as error:
                if len(batch) == 1:
                    raise MemoryError(
                        f"{self.caller}: not even one pair of {batch.n_pos} tokens "
                        f"fits on {self.model.device}. Use shorter prompts or a "
                        "smaller dtype."
                    ) from error
            # Outside the handler: its traceback would keep the tensors alive.
            torch.cuda.empty_cache()
            half = len(batch) // 2
            waiting[:0] = [batch.rows(slice(None, half)), batch.rows(slice(half, None))]

    @torch.no_grad()
    def ends(self, batch: TokenPairs) -> Ends:
        """Run both prompts of each pair: what sources write, and the metric.

        Raises:
            ValueError: the metric of a run is NaN or infinite.
        """
        read = source_sites(self.wires)
        caches = []
        for name, tokens, kept in (
            ("clean", batch.clean, self.clean),
            ("corrupted", batch.corrupted, self.corrupted),
        ):
            values, cache = metric_of(
                self.model, self.wiring, tokens, batch, self.metric, read=read
            )
            if not values.isfinite().all():
                bad = torch.tensor(batch.index)[~values.isfinite()]
                raise ValueError(
                    f"{self.caller}: the metric of the {name} run is NaN or infinite "
                    f"for pairs {bad[:8].tolist()}. The model's weights or activations "
                    "hold NaN, or overflow in this dtype: check ms.selfcheck(model), "
                    "or load it with dtype=torch.float32."
                )
            kept.update(zip(batch.index, values.tolist(), strict=True))
            caches.append(cache)
        return caches[0], caches[1]

    def change(self, ends: Ends) -> Float[Tensor, "batch source pos d_model"]:
        """Clean less corrupted write of every source."""
        clean, corrupted = (written(self.wires, self.wiring, end) for end in ends)
        return clean.sub_(corrupted)

    def require_varying(self) -> None:
        """Raise ValueError if the metric had one and the same value in all runs."""
        values = {*self.clean.values(), *self.corrupted.values()}
        if len(values) == 1:
            raise ValueError(
                f"{self.caller}: the metric {self.metric!r} is constant: "
                f"{values.pop():.4g} on every clean and corrupted prompt, so there is "
                "nothing to attribute. Check answers and wrong answers, or corrupt "
                "what the metric depends on."
            )


def asked(caller: str, model: Model, pairs: PromptPairs, metric: Metric) -> Asked:
    """Check model, pairs and metric.

    Raises:
        ValueError: pairs that are all identical, or as `wiring`, `outputs` and
            `PromptPairs.tokens`.
    """
    wires = Wires.of(model.shape)
    known = wiring(model)
    found = outputs(wires, metric, caller)
    groups = pairs.tokens(model)
    if all(torch.equal(group.clean, group.corrupted) for group in groups):
        raise ValueError(
            f"{caller}: the clean and corrupted prompts are identical in all "
            f"{len(pairs)} pairs, so no edge changes. Corrupt them by exchanging the "
            "words that the behaviour depends on."
        )
    return Asked(caller, model, wires, known, metric, groups, found)


def scores_of(
    ask: Asked,
    by_prompt: Mapping[int, Tensor],
    method: str,
    seed: int,
    started: float,
    settings: Mapping[str, int],
    edges: Sequence[tuple[str, str]] | None = None,
    noise: Sequence[float] = (),
) -> EdgeScores:
    """The result, from one [source target] tensor of scores a prompt.

    `edges`: the only ones that were measured; default all. `noise`: the floor of each
    prompt's metric, where scores are differences of it.
    """
    ask.require_varying()
    wires = ask.wires
    chosen = wires.edges if edges is None else edges
    s = np.array([wires.source_index[source] for source, _ in chosen])
    t = np.array([wires.target_index[target] for _, target in chosen])
    rows = torch.stack([by_prompt[i][s, t] for i in range(len(by_prompt))])
    table = pd.DataFrame(
        {
            "source": pd.Series(np.array(wires.sources)[s], dtype="str"),
            "target": pd.Series(np.array(wires.targets)[t], dtype="str"),
        }
    )
    table = pd.concat([table, inference(rows.numpy(), seed)], axis=1)
    meta = provenance(
        ask.model,
        [x for group in ask.groups for x in (group.clean, group.corrupted)],
        duration=time.perf_counter() - started,
        method=method,
        metric=repr(ask.metric),
        seed=seed,
        pairs=len(by_prompt),
        sign="score > 0: corrupting the edge lowers the metric",
        **settings,
    )
    return EdgeScores(
        table,
        meta,
        method,
        repr(ask.metric),
        ask.outputs,
        dataclasses.asdict(wires),
        [ask.clean[i] for i in range(len(by_prompt))],
        [ask.corrupted[i] for i in range(len(by_prompt))],
        list(noise),
    )
