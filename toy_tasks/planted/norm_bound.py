"""How far a patched edge can move a norm's divisor in a planted model."""

import copy
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from toy_tasks.transformer import ToyTransformer


def norm_change(
    model: ToyTransformer,
    const: int,
    clean: Int[Tensor, "prompt pos"],
    corrupted: Int[Tensor, "prompt pos"],
) -> float:
    """Largest relative change of an RMSNorm's divisor when one edge is patched.

    The divisor is sqrt((c^2 + |x|^2) / d_model), c the constant that every token
    writes in dimension `const`, x the rest of the residual. Taking a source's change d
    into x moves it by at most (2 |x| |d| + |d|^2) / (2 c^2) of itself, with the
    largest |x| and |d| that these prompts show.
    """
    double = copy.deepcopy(model).double()
    size, ours = _writes(double, const, clean)
    other_size, theirs = _writes(double, const, corrupted)
    size = max(size, other_size)
    changes = [(a - b).norm(dim=-1).max() for a, b in zip(ours, theirs, strict=True)]
    d = max(change.item() for change in changes)
    return (2 * size * d + d * d) / (2 * double.W_E[0, const].item() ** 2)


def _writes(
    model: ToyTransformer, const: int, tokens: Int[Tensor, "prompt pos"]
) -> tuple[float, list[Float[Tensor, "prompt pos d_model"]]]:
    """Largest |x| at any place, and what the input, each head and each MLP write."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda module, inputs, out: seen.update({name: out})

    blocks: list[Any] = list(model.blocks)
    hooks = []
    for n, block in enumerate(blocks):
        places = {"pre": block.hook_resid_pre, "mid": block.hook_resid_mid}
        places |= {"post": block.hook_resid_post, "mlp": block.hook_mlp_out}
        places["z"] = block.attn.hook_z
        for name, place in places.items():
            hooks.append(place.register_forward_hook(keep(f"{name}{n}")))
    model(tokens)
    for hook in hooks:
        hook.remove()

    sources = [model.embed(tokens)]
    for n, block in enumerate(blocks):
        heads = torch.einsum("bphd,hdm->hbpm", seen[f"z{n}"], block.attn.W_O)
        sources += [*heads, seen[f"mlp{n}"]]
    rest = torch.arange(model.config.d_model) != const
    residuals = [out for name, out in seen.items() if name[0] == "p" or "mid" in name]
    return max(r[..., rest].norm(dim=-1).max().item() for r in residuals), sources
