"""Where the sites lie in the modules of a Hugging Face block.

Found by what a block is made of, not by a table of families: an attention with an
output projection, an MLP with a down projection, norms after them where a family has
those. What was found is proved by selfcheck.py before it is used.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

ATTENTION = ("self_attn", "self_attention", "attention", "attn")
OUT = ("o_proj", "out_proj", "dense", "c_proj")
DOWN = ("down_proj", "fc_out", "dense_4h_to_h", "c_proj", "fc2")
FUSED = ("c_attn", "query_key_value", "qkv_proj")
POST_NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")

Side = Literal["input", "output"]
Get = Callable[[Tensor], Tensor]
Put = Callable[[Tensor, Tensor], Tensor]  # of the whole and the site's new value


@dataclass(frozen=True, eq=False)
class Part:
    """One site's share of a module's tensor."""

    get: Get
    put: Put


@dataclass(frozen=True, eq=False)
class Place:
    """A tensor of the module tree, and the sites that it holds.

    `path`: attribute names from the block on; "source" goes into a module's code, as
    nnsight spells it.
    """

    path: tuple[str, ...]
    side: Side
    parts: Mapping[str, Part]


@dataclass(frozen=True)
class Heads:
    """Numbers of heads, and their size."""

    n: int
    n_kv: int
    d: int


WHOLE = Part(lambda x: x, lambda x, new: new)


def places(block: nn.Module, heads: Heads, factor: float = 1.0) -> list[Place]:
    """The places of a block's sites but scores and pattern, in the order of its run.

    Args:
        block: any of the model's blocks; all are alike.
        heads: of its attention.
        factor: what the block multiplies attention and MLP by before it adds them.

    Raises:
        ValueError: the block is built in a way that is not known here.
    """
    path, attention = attention_of(block)
    out, _ = _child(attention, OUT)
    out_path = (*path, out)
    scaled = WHOLE if factor == 1 else _scaled(factor)
    after_attention, after_mlp = _post_norms(block)
    found = [Place((), "input", {"resid_pre": WHOLE})]
    found += _projections(path, attention, heads)
    found.append(Place(out_path, "input", {"z": _heads(heads.n, heads.d)}))
    wrote = after_attention or out_path
    found.append(Place(wrote, "output", {"attn_out": scaled}))
    mlp_path = ("mlp",) if hasattr(block, "mlp") else ()
    holder = getattr(block, "mlp", block)
    down = next((name for name in DOWN if hasattr(holder, name)), None)
    if mlp_path or hasattr(block, "fc1"):
        normed = mlp_path or ("fc1",)
        found.append(Place(normed, "input", {"mlp_normed": WHOLE}))
    if down is not None:
        found.append(Place((*mlp_path, down), "input", {"mlp_post": WHOLE}))
    end = after_mlp or ((*mlp_path, down) if down is not None else mlp_path)
    if type(block).__name__.startswith("Falcon"):  # adds attention to it in place
        scaled = Part(lambda x: x.clone(), lambda x, new: new.clone())
    found.append(Place(end, "output", {"mlp_out": scaled}))
    found.append(Place((), "output", {"resid_post": WHOLE}))
    return found


def attention_of(block: nn.Module) -> tuple[tuple[str, ...], nn.Module]:
    """The attention module that has the projections, and its path."""
    name, module = _child(block, ATTENTION)
    inner = getattr(module, "attention", None)  # GPT-Neo wraps it once more
    if isinstance(inner, nn.Module):
        return (name, "attention"), inner
    return (name,), module


def out_projection(block: nn.Module) -> nn.Module:
    """The matrix that the heads' outputs pass through."""
    return _child(attention_of(block)[1], OUT)[1]


def down_projection(block: nn.Module) -> nn.Module | None:
    """The MLP's last matrix; None where it has several, one an expert."""
    holder = getattr(block, "mlp", block)
    return next((getattr(holder, name) for name in DOWN if hasattr(holder, name)), None)


def weight_of(projection: Any) -> Tensor:
    """Its matrix as [inputs, outputs], whichever way it is stored."""
    return inputs_first(projection, projection.weight.detach())


def inputs_first(projection: nn.Module, weight: Tensor) -> Tensor:
    """A weight stored as the projection stores its own, as [inputs, outputs]."""
    is_transposed = type(projection).__name__ == "Conv1D"  # GPT-2's stores it so
    return weight if is_transposed else weight.T


def _projections(
    path: tuple[str, ...], attention: nn.Module, heads: Heads
) -> list[Place]:
    if hasattr(attention, "q_proj"):
        parts = {"q": heads.n, "k": heads.n_kv, "v": heads.n_kv}
        return [
            Place((*path, f"{name}_proj"), "output", {name: _heads(n, heads.d)})
            for name, n in parts.items()
        ]
    name, _ = _child(attention, FUSED)
    # Falcon-7B's one key and value stand behind all queries, as GPT-2's do.
    is_grouped = name == "query_key_value" and (
        not getattr(attention, "multi_query", False)
        or getattr(attention, "new_decoder_architecture", False)
    )
    parts = _grouped(heads) if is_grouped else _side_by_side(heads)
    return [Place((*path, name), "output", parts)]


def _heads(n: int, d: int) -> Part:
    def put(whole: Tensor, new: Tensor) -> Tensor:
        return new.reshape(whole.shape)

    return Part(lambda x: x.unflatten(-1, (n, d)), put)


def _side_by_side(heads: Heads) -> dict[str, Part]:
    """All queries, then all keys, then all values."""
    # Functions here may be sent elsewhere: they hold numbers, not our classes.
    d, sizes = heads.d, [n * heads.d for n in (heads.n, heads.n_kv, heads.n_kv)]

    def part(index: int, n: int) -> Part:
        def put(whole: Tensor, new: Tensor) -> Tensor:
            pieces = list(whole.split(sizes, dim=-1))
            pieces[index] = new.flatten(-2)
            return torch.cat(pieces, dim=-1)

        return Part(lambda x: x.split(sizes, dim=-1)[index].unflatten(-1, (n, d)), put)

    return {"q": part(0, heads.n), "k": part(1, heads.n_kv), "v": part(2, heads.n_kv)}


def _grouped(heads: Heads) -> dict[str, Part]:
    """Key-value head by key-value head: its queries, its key, its value."""
    group = heads.n // heads.n_kv
    n_kv = heads.n_kv
    shape = (n_kv, group + 2, heads.d)

    def part(start: int, end: int) -> Part:
        def get(x: Tensor) -> Tensor:
            return x.unflatten(-1, shape)[..., start:end, :].flatten(-3, -2)

        def put(whole: Tensor, new: Tensor) -> Tensor:
            every = whole.unflatten(-1, shape)
            middle = new.unflatten(-2, (n_kv, end - start))
            pieces = [every[..., :start, :], middle, every[..., end:, :]]
            return torch.cat(pieces, dim=-2).flatten(-3)

        return Part(get, put)

    return {
        "q": part(0, group),
        "k": part(group, group + 1),
        "v": part(group + 1, group + 2),
    }


def _scaled(factor: float) -> Part:
    return Part(lambda x: x * factor, lambda whole, new: new / factor)


def _post_norms(
    block: nn.Module,
) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    """Norms of what attention and MLP write, where a family has both of them.

    Llama's post_attention_layernorm alone is the one before the MLP.
    """
    if all(hasattr(block, name) for name in POST_NORMS):
        return (POST_NORMS[0],), (POST_NORMS[1],)
    return None, None


def _child(module: nn.Module, names: tuple[str, ...]) -> tuple[str, nn.Module]:
    for name in names:
        child = getattr(module, name, None)
        if isinstance(child, nn.Module):
            return name, child
    raise ValueError(
        f"nnsight backend: a {type(module).__name__} has none of {', '.join(names)}, "
        "so its sites are not known. Load the model with "
        'backend="transformer_lens".'
    )
