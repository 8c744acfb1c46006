"""What every source writes to the residual stream, and who reads what a metric reads.

May import: rooms up to models, wires.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from mechsink.attribution.wires import LOGITS, Wires
from mechsink.models.wiring import Wiring
from mechsink.run import Metric
from mechsink.sites import Site

INSIDE = {"q": "q", "k": "k", "v": "v", "attn_scores": "qk", "pattern": "qk",
          "z": "qkv", "attn_out": "qkv"}  # fmt: skip
"""Site of an attention layer to the ports that it is computed from."""
MLP = ("mlp_normed", "mlp_post", "mlp_out")


def source_sites(wires: Wires) -> list[Site]:
    """Sites to read for `written`."""
    sites = [Site("resid_pre", 0)]
    for layer in range(wires.n_layers):
        if wires.has_attention:
            sites.append(Site("z", layer))
        if wires.has_mlp:
            sites.append(Site("mlp_out", layer))
    return sites


def written(
    wires: Wires, wiring: Wiring, cache: Mapping[Site, Tensor]
) -> Float[Tensor, "batch source pos d_model"]:
    """Every source's write in one run; float32 at least.

    Biases belong to no source: they are the same in every run.
    """
    first = cache[Site("resid_pre", 0)]
    batch, n_pos, d_model = first.shape
    dtype = torch.promote_types(first.dtype, torch.float32)
    out = first.new_empty((batch, len(wires.sources), n_pos, d_model), dtype=dtype)
    out[:, 0] = first
    at = 1
    for layer in range(wires.n_layers):
        if wires.has_attention:
            n = len(wires.attention_sources(layer))
            parts = wiring.attention_write(layer).parts(cache[Site("z", layer)])
            out[:, at : at + n] = parts.transpose(1, 2)
            at += n
        if wires.has_mlp:
            out[:, at] = cache[Site("mlp_out", layer)]
            at += 1
    return out


def outputs(wires: Wires, metric: Metric, caller: str) -> list[str]:
    """The targets where circuits of a metric end: the logits, or what it reads.

    Raises:
        ValueError: it reads the residual stream itself, where no edge ends.
    """
    found: dict[str, None] = {}
    if getattr(metric, "logits_read", "all") != "none":
        found[LOGITS] = None
    group = wires.n_heads // wires.n_kv_heads
    for site in sorted(metric.reads):
        if site.name in MLP:
            found[f"m{site.layer}"] = None
        elif site.name in INSIDE:
            for target in wires.attention_targets(site.layer):
                place = wires.site(target)
                assert place is not None
                mine = place.name in INSIDE[site.name]
                if site.head is not None:
                    mine &= site.head in (
                        (place.head,)
                        if place.head is not None
                        else range(
                            (place.kv_head or 0) * group,
                            (place.kv_head or 0) * group + group,
                        )
                    )
                if site.kv_head is not None:
                    mine &= site.kv_head == place.kv_head
                if mine:
                    found[target] = None
        else:
            raise ValueError(
                f"{caller}: the metric reads {site}, the residual stream itself, and "
                "edges end at heads, MLPs and the logits. Use a metric of logits, "
                "patterns or outputs, or ask nodes instead: ms.attribution_patching."
            )
    return list(found)
