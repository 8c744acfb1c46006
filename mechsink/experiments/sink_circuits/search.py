"""`sink_circuit`: which components make a position a sink, and which write its peak.

Nothing is corrupted by other tokens: whatever stands first becomes a sink in most
language models, so exchanging it removes nothing (the row "rotated" of `confirmation`
measures that). The question is put to the position itself: what if this component
wrote there what it writes elsewhere?
May import: rooms up to circuits.
"""

import time
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechsink.attribution.inference import inference
from mechsink.attribution.writes import outputs
from mechsink.experiments.sink_circuits.ask import Question, question
from mechsink.experiments.sink_circuits.confirm import confirmed, head_table
from mechsink.experiments.sink_circuits.gradients import attributed
from mechsink.experiments.sink_circuits.metrics import SinkAttentionOf
from mechsink.experiments.sink_circuits.peak import peak_layer, peak_tables
from mechsink.experiments.sink_circuits.result import SinkCircuit
from mechsink.experiments.sink_circuits.runs import Ends, Reference
from mechsink.experiments.sink_circuits.tables import (
    add_effects,
    edge_table,
    node_table,
    to_ablate,
)
from mechsink.models.any_model import any_model
from mechsink.progress import bar
from mechsink.provenance import provenance
from mechsink.run import Metric, Model


@any_model
def sink_circuit(
    model: Model,
    texts: str | Sequence[str] | Int[Tensor, "text pos"],
    *,
    heads: Sequence[tuple[int, int]] | None = None,
    position: int = 0,
    reference: Reference = "mean",
    metric: Metric | None = None,
    length: int = 32,
    layers: Sequence[int] | None = None,
    steps: int = 8,
    top: int = 12,
    together: int = 4,
    draws: int = 5,
    top_edges: int = 10,
    seed: int = 0,
    progress: bool | None = None,
) -> SinkCircuit:
    """Attribute a sink to components and edges, and confirm by ablation.

    A component (the input, a head, an MLP) is ablated at the position alone: its write
    there is replaced by the mean of its writes at the later positions of the same text
    (or by nothing), as if the position were one like any other. What it does at other
    positions, such as a head's paying attention, stays and is no part of the answer.

    score = (write - reference) . gradient of the metric. Of the input and of each MLP
    (and of a layer's only head) the gradient is averaged over `steps` runs that move it
    from reference to write: at the untouched run a peak 150 times the rest of the
    stream has almost no gradient behind a norm, though all depends on it. Of heads it
    is the untouched run's. `effect` is the truth, by ablation, of the input, of every
    MLP and of the `top` heads by |score|.

    Args:
        model: any model whose wiring is known (`mechsink.models.wiring`).
        texts: texts, of at least `length` tokens each, or tokens, taken whole.
        heads: sinks to explain, (layer, head); default those whose attention to the
            position is above .3 on average over these very texts.
        position: of the sink, 0 for the first token; two later tokens at least.
        reference: "mean" of the later positions' writes, or "zero".
        metric: to explain instead of the attention of heads, such as
            `resid_norm(12)`, whatever reads the position. Edges end at heads, MLPs
            and the logits: a metric that reads the stream gets none.
        length: tokens that texts are cut to.
        layers: whose heads and MLPs are asked about, beside the input; default all.
        steps: runs of each integrated gradient.
        top: heads that are ablated one by one, as the input and the MLPs are.
        together: most nodes that are ablated together to confirm them: those with
            the largest effect above 0.
        draws: random sets of as many other nodes, of the same kinds where there are
            enough, for comparison.
        top_edges: edges that are cut one by one, those of the largest |score|; 0
            leaves edges out. Only edges out of the `top` nodes by |effect| are scored.
        seed: of random sets, intervals and tests.
        progress: show a bar; default: on terminals, in notebooks.

    Returns:
        A `SinkCircuit`, one row a component.

    Raises:
        ValueError: texts too short, a position, head or number out of range, no head
            that sinks, a metric that is NaN or depends on no component, a
            family whose wiring is its own.

    Sources: threshold, Gu et al. 2024 (arXiv:2410.10781); residual peaks, Guo et al.
    2024 (arXiv:2410.13835); integrated gradients, Sundararajan et al. 2017
    (arXiv:1703.01365), Hanna et al. 2024 (arXiv:2403.17806).

    Examples:
        >>> case = ms.planted("backcopy")
        >>> found = ms.sink_circuit(case.model, case.pairs.clean, heads=[(0, 0)])
        >>> best = found.table.nlargest(1, "effect")
        >>> best.component.tolist(), best.effect.round(2).tolist()
        (['input'], [0.63])
    """
    started = time.perf_counter()
    numbers = {"steps": steps, "top": top, "together": together, "draws": draws}
    ask = question(
        model, texts, heads, position, reference, metric, length, layers, numbers,
        top_edges,
    )  # fmt: skip
    what, tokens = ask.what, ask.tokens
    names = what.names
    ends_at = _outputs(ask) if top_edges else []
    every = what.batches(tokens, steps)
    work = 3 + (top_edges > 0)
    with bar("sink circuit", work, progress) as advance:
        ends = [what.ends(pairs) for pairs in every]
        clean = _per_text(ask, ends, [])
        nodes = node_table(what, inference(_attributed(ask, ends, steps), seed))
        advance()
        chosen = to_ablate(nodes, top)
        single = [clean - _per_text(ask, ends, [names[i]]) for i in chosen]
        effects = np.stack(single, axis=1)
        add_effects(nodes, chosen, effects, seed)
        largest = chosen[np.argsort(-abs(effects.mean(0)), kind="stable")[:top]]
        strongest = [names[i] for i in largest]
        advance()
        edges = edge_table(
            ask, ends, clean, steps, top_edges, strongest if ends_at else [], seed
        )
        advance(top_edges > 0)
        writes, residual = peak_tables(what, every, seed)
        confirmation = confirmed(ask, ends, nodes, clean, together, draws, seed)
        gone = confirmation.loc[confirmation["nodes"] == "top", "components"].item()
        by_head = head_table(ask, ends, gone.split())
        everything = _per_text(ask, ends, names)
        advance()
    meta = provenance(
        model,
        tokens,
        duration=time.perf_counter() - started,
        heads=ask.metric.heads if isinstance(ask.metric, SinkAttentionOf) else None,
        position=position,
        reference=reference,
        metric=repr(ask.metric),
        layers=None if layers is None else list(layers),
        top_edges=top_edges,
        seed=seed,
        sign="score, effect > 0: replacing the write lowers the metric",
        **numbers,
    )
    uniform = None
    if isinstance(ask.metric, SinkAttentionOf):
        uniform = ask.metric.uniform(tokens.shape[1])
    return SinkCircuit(
        nodes, meta, edges, writes, residual, confirmation, by_head, repr(ask.metric),
        position, peak_layer(residual), uniform, ends_at, ask.graph,
        clean.tolist(), everything.tolist(),
    )  # fmt: skip


def _outputs(ask: Question) -> list[str]:
    """Targets of the metric's circuit; none for a metric of the residual stream."""
    streams = ("resid_pre", "resid_mid", "resid_post")
    if any(site.name in streams for site in ask.metric.reads):
        return []
    return outputs(ask.what.wires, ask.metric, "sink_circuit")


def _per_text(
    ask: Question, ends: Sequence[Ends], names: Sequence[str]
) -> Float[np.ndarray, " text"]:
    """The metric without some components, one a text."""
    found = [ask.what.without(end, ask.metric, names) for end in ends]
    values = torch.cat(found).numpy()
    if not np.isfinite(values).all():
        raise ValueError(
            f"sink_circuit: the metric {ask.metric!r} is NaN or infinite for texts "
            f"{np.flatnonzero(~np.isfinite(values))[:8].tolist()}"
            f"{f' without {list(names)[:6]}' if names else ''}. Weights or activations "
            "hold NaN or overflow in this dtype: check ms.selfcheck(model), or load "
            "it with dtype=torch.float32."
        )
    return values


def _attributed(
    ask: Question, ends: Sequence[Ends], steps: int
) -> Float[np.ndarray, "text component"]:
    found = [attributed(ask.what, end, ask.metric, steps) for end in ends]
    if not any(depends for _, depends in found):
        raise ValueError(
            f"sink_circuit: the metric {ask.metric!r} depends on no component's write "
            f"at position {ask.what.position}. Give a metric of what later layers do "
            "with it, or more layers."
        )
    return torch.cat([scores for scores, _ in found]).numpy()
