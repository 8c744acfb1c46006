"""Attention kernels are believed after they are tried."""

import pytest
import torch
from torch import Tensor

from mechsink.models import kernels
from mechsink.models.attention import FlashAttention

CPU = torch.device("cpu")
TYPES = [torch.float32, torch.float64, torch.bfloat16]


@pytest.mark.parametrize("dtype", TYPES)
def test_the_cpus_kernel_is_right(dtype: torch.dtype) -> None:
    assert kernels.kernel_for(torch.zeros(1, 1, 5, 16, dtype=dtype)) is (
        kernels.flash_cpu
    )


def broken(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    raise RuntimeError("No available kernel")


def shifted(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    out, lse = kernels.flash_cpu(q, k, v, scale)
    return out, lse + 1e-3


def own_scale(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return kernels.flash_cpu(q, k, v, q.shape[-1] ** -0.5)


def padded(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    out, lse = kernels.flash_cpu(q, k, v, scale)
    return out, torch.nn.functional.pad(lse, (0, 27))


@pytest.mark.parametrize("wrong", [broken, shifted, own_scale, padded])
def test_a_wrong_kernel_is_left_for_chunks(wrong, monkeypatch) -> None:
    monkeypatch.setitem(kernels.KERNELS, "cpu", (wrong,))
    kernels._kernel.cache_clear()
    try:
        assert kernels.kernel_for(torch.zeros(1, 2, 5, 8)) is None
        q, k, v = torch.randn(3, 1, 2, 9, 8)
        chunked = FlashAttention(0, q, k, v, 0.5)
    finally:
        kernels._kernel.cache_clear()
    monkeypatch.undo()
    flash = FlashAttention(0, q, k, v, 0.5)
    torch.testing.assert_close(chunked.lse, flash.lse)
    torch.testing.assert_close(chunked.out, flash.out)
