"""What each component adds to some logits of one position, all norm scales frozen.

A logit is linear in the residual stream once its norm's scale is held, so its
direction is pulled back through the norms and every part is a dot product with it.
May import: rooms up to models.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechsink.models.wiring import Norm, Wiring, Write
from mechsink.run import Edit, Model, Run
from mechsink.sites import Site

NAMES = ("component", "layer", "head", "neuron", "pos")
Where = int | Sequence[int] | None
"""One position, several, or all."""
Piece = tuple[dict[str, object], Tensor]
"""What rows are of, and their values, [batch] and an axis for each None."""


@dataclass(frozen=True, eq=False)
class Wanted:
    """Logits to take apart: of each prompt, `weights` times the logits of `tokens`.

    `position`: where they are read, from 0. `neurons`: MLPs neuron by neuron.
    `by_position`: heads by the position that they read.
    """

    tokens: Int[Tensor, "batch token"]
    weights: Float[Tensor, "batch token"]
    position: int
    neurons: bool = False
    by_position: bool = False


@dataclass(frozen=True, eq=False)
class Parts:
    """The parts of some logits, in logits, the logit scale applied.

    `rows`: one line a part: component, layer, head, neuron, pos; NaN where it has
    none. `whole`: what they sum to, before a soft cap; `own`: the model's, after it.
    """

    rows: pd.DataFrame
    values: Float[Tensor, "batch row"]
    whole: Float[Tensor, " batch"]
    own: Float[Tensor, " batch"]


@torch.no_grad()
def contributions(
    model: Model, wiring: Wiring, prompts: Int[Tensor, "batch pos"], wanted: Wanted
) -> Parts:
    """Run prompts and take their logits apart.

    Raises:
        ValueError: a head's output is not its pattern times its values, where
            `wanted.by_position` rests on that.
    """
    at = wanted.position
    seen = run_at(model, prompts, _sites(model, wiring, wanted))
    cache = {site: at_least_float32(value) for site, value in seen.cache.items()}
    last = cache[Site("resid_post", model.shape.n_layers - 1)]
    unembed = wiring.unembed
    weights = wanted.weights.to(last)
    columns = at_least_float32(unembed.weight[:, wanted.tokens.flatten()])
    columns = columns.unflatten(1, tuple(wanted.tokens.shape))
    read = torch.einsum("mbt,bt->bm", columns, weights) * unembed.scale
    into = _pulled(read, unembed.norm, last)
    pieces: list[Piece] = [
        ({"component": "input"}, _dot(cache[Site("resid_pre", 0)], into))
    ]
    for layer in range(model.shape.n_layers):
        pieces += _of_layer(model, wiring, cache, layer, into, wanted)
    if unembed.norm is not None and unembed.norm.bias is not None:
        value = _dot(at_least_float32(unembed.norm.bias).expand_as(read), read)
        pieces.append(({"component": "norm_bias"}, value))
    if unembed.bias is not None:
        bias = at_least_float32(unembed.bias)[wanted.tokens] * weights * unembed.scale
        pieces.append(({"component": "unembed_bias"}, bias.double().sum(-1)))
    rows = pd.concat([_frame(*piece) for piece in pieces], ignore_index=True)
    values = torch.cat(
        [value.reshape(len(prompts), -1).double() for _, value in pieces], dim=1
    )
    logits = seen.logits[:, at].double().gather(1, wanted.tokens.to(last.device))
    own = whole = (logits * weights).sum(-1)
    if unembed.cap is not None:
        x = last if unembed.norm is None else unembed.norm(last)
        logits = torch.einsum("bm,mbt->bt", x.double(), columns.double())
        if unembed.bias is not None:
            logits = logits + unembed.bias[wanted.tokens]
        whole = (logits * weights).sum(-1) * unembed.scale
    return Parts(rows, values.cpu(), whole.cpu(), own.cpu())


def run_at(
    model: Model, prompts: Int[Tensor, "batch pos"], sites: Mapping[Site, Where]
) -> Run:
    """A run that keeps of each site only some positions (queries, of a pattern).

    Where a site is needed at one position, the axis is dropped. A whole pattern of
    every layer may not fit into memory.
    """
    cache: dict[Site, Tensor] = {}

    def kept(site: Site, x: Tensor) -> Tensor:
        where = sites[site]
        index = torch.as_tensor(where if where is not None else range(x.shape[1]))
        axis = 2 if "query" in site.axes else 1
        found = x.detach().index_select(axis, index.reshape(-1).to(x.device))
        return found.squeeze(axis) if isinstance(where, int) else found

    def keeping(site: Site) -> Edit:
        def edit(x: Tensor) -> Tensor:
            cache[site] = kept(site, x)
            return x

        return edit

    fixed = {site for site in sites if site.name in model.shape.read_only}
    edits = {site: keeping(site) for site in sites if site not in fixed}
    run = model.run(prompts, read=fixed, edit=edits)
    cache |= {site: kept(site, run.cache[site]) for site in fixed}
    return Run(run.tokens, run.logits, cache)


def at_least_float32(x: Tensor) -> Tensor:
    """`x`, but half precision as float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _sites(model: Model, wiring: Wiring, wanted: Wanted) -> dict[Site, Where]:
    """Sites to read, and where."""
    layers = range(model.shape.n_layers)
    names: dict[str, Where] = {}
    at = wanted.position
    if wiring.has_attention:
        names["z"] = at
        if wanted.by_position:
            names |= {"pattern": at, "v": None}
    if wiring.has_mlp:
        names["mlp_post" if wanted.neurons else "mlp_out"] = at
        writes = [wiring.mlp_write(layer) for layer in layers]
        if any(w.post is not None and w.weight is not None for w in writes):
            names["mlp_post"] = at  # for the scale that its output is divided by
    sites = {Site(name, n): where for name, where in names.items() for n in layers}
    last = Site("resid_post", model.shape.n_layers - 1)
    return {Site("resid_pre", 0): at, last: at, **sites}


def _of_layer(
    model: Model,
    wiring: Wiring,
    cache: Mapping[Site, Tensor],
    layer: int,
    into: Float[Tensor, "batch d_model"],
    wanted: Wanted,
) -> Iterator[Piece]:
    """Heads, their bias, MLP or neurons, their bias."""
    here: dict[str, object] = {"layer": layer}
    if wiring.has_attention:
        write = wiring.attention_write(layer)
        z = cache[Site("z", layer)]
        inside = _inside(write, z, into)
        weight = at_least_float32(_known(write))
        by_z = torch.einsum("hdm,bm->bhd", weight, inside)  # a head's logit, in z
        heads = _dot(z, by_z)
        if wanted.by_position:
            row = {"component": "head", **here, "head": None, "pos": None}
            yield row, _by_key(model, cache, layer, by_z, heads)
        else:
            yield {"component": "head", **here, "head": None}, heads
        yield from _bias({"component": "attn_bias", **here}, write, inside, into)
    if wiring.has_mlp:
        write = wiring.mlp_write(layer)
        if write.weight is None:  # experts: only their output is known
            whole = _dot(cache[Site("mlp_out", layer)], into)
            yield {"component": "mlp", **here}, whole
            return
        post = cache.get(Site("mlp_post", layer))
        inside = _inside(write, post, into)
        biases = list(_bias({"component": "mlp_bias", **here}, write, inside, into))
        if wanted.neurons:
            assert post is not None
            neurons = post * (inside @ at_least_float32(write.weight).T)
            yield {"component": "neuron", **here, "neuron": None}, neurons
        else:
            whole = _dot(cache[Site("mlp_out", layer)], into)
            yield (
                {"component": "mlp", **here},
                whole - sum(value for _, value in biases),
            )
        yield from biases


def _inside(
    write: Write, parts: Tensor | None, into: Float[Tensor, "batch d_model"]
) -> Float[Tensor, "batch d_model"]:
    """A direction in the stream, as one of what a write has before its post-norm."""
    into = into * write.factor
    if write.post is None:
        return into
    assert parts is not None
    whole = parts.flatten(1) @ at_least_float32(_known(write)).flatten(0, -2)
    if write.bias is not None:
        whole = whole + write.bias
    return _pulled(into, write.post, whole)


def _pulled(
    direction: Float[Tensor, "batch d_model"],
    norm: Norm | None,
    x: Float[Tensor, "batch d_model"],
) -> Float[Tensor, "batch d_model"]:
    """A direction after a norm of `x`, as one before it, the scale held."""
    if norm is None:
        return direction
    # Centring is its own transpose.
    return norm.centred(direction * norm.gain) / norm.scale(x)


def _bias(
    row: dict[str, object], write: Write, inside: Tensor, into: Tensor
) -> Iterator[Piece]:
    """What no head or neuron writes: the bias, and that of a post-norm."""
    value = None
    if write.bias is not None:
        value = _dot(at_least_float32(write.bias).expand_as(inside), inside)
    if write.post is not None and write.post.bias is not None:
        own = _dot(at_least_float32(write.post.bias).expand_as(into), into)
        value = own * write.factor + (0 if value is None else value)
    if value is not None:
        yield row, value


def _by_key(
    model: Model,
    cache: Mapping[Site, Tensor],
    layer: int,
    by_z: Float[Tensor, "batch head d_head"],
    heads: Float[Tensor, "batch head"],
) -> Float[Tensor, "batch head key"]:
    """Heads' values by the position they read: pattern times value."""
    v = cache[Site("v", layer)]
    group = model.shape.n_heads // model.shape.n_kv_heads
    v = v.repeat_interleave(group, dim=2)
    carried = torch.einsum("bkhd,bhd->bhk", v, by_z)
    found = cache[Site("pattern", layer)] * carried
    off = (found.double().sum(-1) - heads).abs()
    allowed = 2000 * torch.finfo(model.dtype).eps
    if not (off <= allowed * found.double().abs().sum(-1) + 1e-30).all():
        raise ValueError(
            f"logit_attribution: in {model.name}, heads of layer {layer} write more "
            f"than pattern times values (off by {float(off.max()):.1e} logits), so "
            "they can't be split over the positions they read. Leave by_position= out."
        )
    return found


def _known(write: Write) -> Tensor:
    assert write.weight is not None
    return write.weight


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """Sum over the last axis, in float64."""
    return (x.double() * y.double()).sum(-1)


def _frame(row: dict[str, object], value: Tensor) -> pd.DataFrame:
    """Rows of one piece; axes set to None count its values, in their order."""
    counted = [name for name, given in row.items() if given is None]
    lengths = [range(n) for n in value.shape[1:]]
    assert len(counted) == len(lengths)
    if counted:
        frame = pd.MultiIndex.from_product(lengths, names=counted).to_frame(index=False)
    else:
        frame = pd.DataFrame(index=range(1))
    for name, given in row.items():
        if given is not None:
            frame[name] = given
    return frame.reindex(columns=list(NAMES)).astype(
        {"component": "str", **dict.fromkeys(NAMES[1:], "float64")}
    )
