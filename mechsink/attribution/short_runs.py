"""Runs that go no further than a metric reads.

A metric of the last position's logits needs no other logits, and one of a pattern
needs no layer above it: the pass is left where all is seen. At 20 tokens of SmolLM2
the unembedding of every position alone is a fifth of a pass.
"""

import contextlib
from collections.abc import Collection, Mapping

from jaxtyping import Float, Int
from torch import Tensor

from mechsink.interventions.reading import Reading
from mechsink.models.wiring import Wiring
from mechsink.prompts import TokenPairs
from mechsink.run import Edit, Metric, Model, Run
from mechsink.sites import Site

ORDER = ("resid_pre", "q", "k", "v", "attn_scores", "pattern", "z", "attn_out",
         "resid_mid", "mlp_normed", "mlp_post", "mlp_out", "resid_post")  # fmt: skip
"""Sites of a block, as a forward pass meets them; parallel blocks may differ."""


class _Seen(Exception):
    """The pass was left on purpose: all that is wanted has been seen."""


def metric_of(
    model: Model,
    wiring: Wiring,
    tokens: Int[Tensor, "batch pos"],
    pairs: TokenPairs,
    metric: Metric,
    *,
    read: Collection[Site] = (),
    edit: Mapping[Site, Edit] | None = None,
    grad: bool = False,
) -> tuple[Float[Tensor, " batch"], dict[Site, Tensor]]:
    """The metric of a run, and what was read in it, as `metric(model.run(...))`.

    Args:
        model, wiring: of one another.
        tokens: what is run.
        pairs: handed to the metric, one row a prompt.
        metric: a run to one number per prompt.
        read, edit, grad: as in `Model.run`.

    Returns:
        The metric, in float64 on the CPU, with its graph if `grad`; and the cache.
    """
    wanted = {*read, *metric.reads}
    reading = Reading.of(metric, pairs)
    shape = model.shape
    reads_some = reading.logits == "last" or wanted
    can_stop = not any(site.name in shape.read_only for site in wanted)
    if reading.logits == "all" or not (reads_some and can_stop):
        run = model.run(tokens, read=wanted, edit=edit, grad=grad)
        return metric(run, pairs).double().cpu(), dict(run.cache)

    seen: dict[Site, Tensor] = {}
    wholes = {site.whole for site in wanted}
    last = Site("resid_post", shape.n_layers - 1)
    if reading.logits == "last":
        wholes.add(last)
    end = max(wholes, key=lambda site: (site.layer, ORDER.index(site.name)))
    if "resid_mid" not in shape.sites and end != last:
        end = Site("resid_post", end.layer)  # parallel: attention and MLP in any order
        wholes.add(end)

    def watched(whole: Site) -> Edit:
        given = [(s, e) for s, e in (edit or {}).items() if s.whole == whole]

        def at(x: Tensor) -> Tensor:
            for site, change in given:
                if site == whole:
                    x = change(x)
                else:
                    x = x.clone()
                    x[site.index] = change(x[site.index]).to(x.dtype)
            seen[whole] = x
            if whole == end:
                raise _Seen
            return x

        return at

    edits = {s: e for s, e in (edit or {}).items() if s.whole not in wholes}
    edits |= {whole: watched(whole) for whole in wholes}
    with contextlib.suppress(_Seen):
        model.run(tokens, edit=edits, grad=grad)
    if reading.logits == "last":
        tokens = tokens[:, -1:]
        logits = wiring.unembed.of(seen[last][:, -1:], reading.vocabulary)
    else:
        logits = seen[end].new_zeros(*tokens.shape, 0)
    cache = {site: seen[site.whole][site.index] for site in wanted}
    if not grad:
        cache = {site: value.detach() for site, value in cache.items()}
    values = reading.value(Run(tokens, logits, cache), pairs)
    return values, cache
