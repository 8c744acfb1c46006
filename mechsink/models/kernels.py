"""Flash attention that also tells the logsumexp of every query's scores.

The kernels are torch's own, but not of its public names, and differ by device and type:
each is shown right on a short text before it is used, else attention goes in chunks.
"""

import functools
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Kernel = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]
"""Queries, keys and values [batch head pos d_head] and a scale, plainly causal, to the
heads' output and the logsumexp of their scores, [batch head pos]."""

N_PROBE = 37  # no multiple of a kernel's blocks, whose last one may be padded


def flash_cpu(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The CPU's."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return flash(q, k, v, 0.0, True, scale=scale)


def flash_cuda(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """FlashAttention 2, in half precision alone."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention
    out, lse = flash(q, k, v, 0.0, True, False, scale=scale)[:2]
    return out, lse[..., : q.shape[2]]


def efficient_cuda(
    q: Tensor, k: Tensor, v: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """The memory-efficient one, in float32 too; its logsumexp may be padded."""
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    out, lse = efficient(q, k, v, None, True, 0.0, True, scale=scale)[:2]
    return out, lse[..., : q.shape[2]]


KERNELS: dict[str, tuple[Kernel, ...]] = {
    "cpu": (flash_cpu,),
    "cuda": (flash_cuda, efficient_cuda),
}
"""By kind of device, in the order in which they are tried."""


def kernel_for(q: Float[Tensor, "batch head pos d_head"]) -> Kernel | None:
    """The first kernel that is right for such tensors; None for no such kernel."""
    return _kernel(q.device, q.dtype, q.shape[-1])


@functools.cache
def _kernel(device: torch.device, dtype: torch.dtype, d_head: int) -> Kernel | None:
    for kernel in KERNELS.get(device.type, ()):
        if is_right(kernel, device, dtype, d_head):
            return kernel
    return None


@torch.no_grad()
def is_right(
    kernel: Kernel, device: torch.device, dtype: torch.dtype, d_head: int
) -> bool:
    """Whether a kernel gives causal attention and its logsumexp, tried on noise."""
    generator = torch.Generator().manual_seed(0)
    shape = (3, 1, 2, N_PROBE, d_head)
    q, k, v = torch.randn(shape, generator=generator).to(device, dtype)
    scale = 2 * d_head**-0.5  # not the usual one, which a kernel could take by itself
    try:
        out, lse = kernel(q, k, v, scale)
    except RuntimeError:  # made for other types or sizes
        return False
    wide = torch.promote_types(dtype, torch.float32)
    scores = q.to(wide) @ k.to(wide).mT * scale
    seen = torch.ones(N_PROBE, N_PROBE, dtype=torch.bool, device=device).tril()
    scores = scores.masked_fill(~seen, -torch.inf)
    allowed = max(2e-5, 4 * torch.finfo(dtype).eps)
    pairs = ((lse, scores.logsumexp(-1)), (out, scores.softmax(-1) @ v.to(wide)))
    return all(
        got.shape == want.shape
        and bool((got.to(wide) - want).abs().max() <= allowed * want.abs().max())
        for got, want in pairs
    )
