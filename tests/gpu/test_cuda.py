"""What a GPU must do as the CPU does, and where half precision ends.

On another device that is asked for (conftest.py) the same code runs.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

import mechsink as ms
from mechsink.models import kernels
from mechsink.models.attention import FlashAttention
from mechsink.models.bridge import BridgeModel
from mechsink.models.toy import ToyModel
from mechsink.models.trace import TraceModel
from mechsink.sites import AXES
from tests.gpu.measurements import EDITED, LD, MEASUREMENTS, PAIRS, RUNS, TOKENS
from tests.models.families import tiny
from toy_tasks import PRESETS, BigramBackcopy, ToyConfig, ToyTransformer, train

pytestmark = pytest.mark.gpu
SMALL = {"d_vocab": 80, "n_layers": 3, "d_model": 32, "d_head": 8, "n_heads": 4}
BACKENDS = ["transformer_lens", "nnsight", "toy"]
_made: dict[Any, Any] = {}


def model_on(backend: str, device: Any, dtype: Any = torch.float32) -> Any:
    key = backend, str(device), dtype
    if key not in _made:
        if backend == "toy":
            own = ToyTransformer(ToyConfig(**SMALL)).eval().to(device, dtype)
            _made[key] = ToyModel(own, name="m")
        else:
            kind = TraceModel if backend == "nnsight" else BridgeModel
            _made[key] = kind(tiny("llama").to(device, dtype), name="m")
    return _made[key]


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_site_is_that_of_the_cpu(backend: str, device: torch.device) -> None:
    here, there = model_on(backend, "cpu"), model_on(backend, device)
    assert there.device == device and there.shape == here.shape
    assert ms.selfcheck(there).ok
    sites = [s for n in AXES if n in here.shape.sites for s in here.shape.all_sites(n)]
    want, got = (m.run(TOKENS, read=sites) for m in (here, there))
    for name, a, b in [
        ("logits", got.logits, want.logits),
        *((str(s), got.cache[s], want.cache[s]) for s in sites),
    ]:
        assert a.device == device, name
        shown = b > -1e4
        off = (a.cpu() - b)[shown].abs().max() / b[shown].abs().max()
        assert off <= 1e-4, (name, float(off))


@pytest.mark.parametrize("name", [*MEASUREMENTS, *RUNS, *EDITED])
def test_every_measurement_is_that_of_the_cpu(name: str, device: torch.device) -> None:
    measure = (MEASUREMENTS | RUNS | EDITED)[name]
    here, there = (model_on("transformer_lens", d) for d in ("cpu", device))
    want, got = (getattr(measure(m), "table", None) for m in (here, there))
    if not isinstance(want, pd.DataFrame) or not isinstance(got, pd.DataFrame):
        return
    assert list(got.columns) == list(want.columns) and len(got) == len(want)
    numbers = want.select_dtypes("number").columns
    a, b = (torch.tensor(t[numbers].to_numpy(dtype=float)) for t in (got, want))
    torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3, equal_nan=True)


EXPECTED = {
    ("cuda", torch.float32): kernels.efficient_cuda,
    ("cuda", torch.float16): kernels.flash_cuda,
    ("cuda", torch.bfloat16): kernels.flash_cuda,
    ("cpu", torch.float32): kernels.flash_cpu,
    ("cpu", torch.float16): kernels.flash_cpu,
    ("cpu", torch.bfloat16): kernels.flash_cpu,
}
PATHS = ("kernel", "window", "soft cap", "sink logit", "last queries")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("path", PATHS)
def test_each_attention_path_gives_the_pattern(
    path: str, dtype: torch.dtype, device: torch.device
) -> None:
    generator = torch.Generator().manual_seed(1)
    n, d_head = 300, 64
    q = torch.randn(2, 4, n, d_head, generator=generator).to(device, dtype)
    k, v = torch.randn(2, 2, 2, n, d_head, generator=generator).to(device, dtype)
    seen = torch.ones(n, n, dtype=torch.bool, device=device).tril()
    options: dict[str, Any] = {}
    if path == "kernel":
        assert kernels.kernel_for(q) is EXPECTED[device.type, dtype]
    elif path == "window":
        seen = seen & ~seen.tril(-40)
        options["mask"] = seen[None, None]
    elif path == "soft cap":
        options["softcap"] = 5.0
    elif path == "sink logit":
        options["sink_logit"] = torch.arange(4.0, device=device)
    else:
        q, seen = q[:, :, -7:], seen[-7:]
    scale = d_head**-0.5
    attention = FlashAttention(0, q, k, v, scale, **options)

    wide_k, wide_v = (x.double().repeat_interleave(2, 1) for x in (k, v))
    scores = q.double() @ wide_k.mT * scale
    if path == "soft cap":
        scores = 5 * (scores / 5).tanh()
    scores = scores.masked_fill(~seen, -torch.inf)
    total = scores.logsumexp(-1)
    if path == "sink logit":
        total = torch.logaddexp(total, torch.arange(4.0, device=device)[:, None])
    pattern = (scores - total[..., None]).exp()
    eps = torch.finfo(dtype).eps
    allowed = 2e-5 if dtype == torch.float32 else 4 * eps
    got = attention.columns([0, 5]).double()
    assert (got - pattern[..., [0, 5]]).abs().max() <= allowed
    out = attention.out.double()
    assert (out - pattern @ wide_v).abs().max() <= allowed * wide_v.abs().max()
    assert attention.out.dtype == dtype and attention.out.device == device


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_killed_training_goes_on_to_the_same_bits(
    dtype: Any, device: torch.device, tmp_path: Path
) -> None:
    preset = replace(
        PRESETS["bb-cpu"], steps=30, batch=8, checkpoints=(10, 20, 30), warmup=0,
        dtype=dtype,
    )  # fmt: skip
    task = BigramBackcopy.from_text()

    def killed(step: int, model: Any, task: Any) -> None:
        if step == 20:
            raise InterruptedError

    straight = train(task, preset, tmp_path / "a", device=device, progress=False)
    with pytest.raises(InterruptedError):
        train(
            task, preset, tmp_path / "b", device=device, progress=False,
            callbacks=[killed],
        )  # fmt: skip
    resumed = train(task, preset, tmp_path / "b", device=device, progress=False)
    for one, other in zip(
        straight.model().parameters(), resumed.model().parameters(), strict=True
    ):
        assert one.isfinite().all() and torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision_differs_from_float32_by_its_noise(
    backend: str, dtype: torch.dtype, device: torch.device
) -> None:
    """Rounding the weights is one more rounding: within a few noise floors.

    The floor knows the activations' rounding alone; weights are rounded once, by as
    much. Four floors bound both.
    """
    wide, half = (model_on(backend, device, d) for d in (torch.float32, dtype))
    for metric in (LD, ms.sink_attention(layer=2, head=1)):
        floor = ms.noise_floor(half, PAIRS, metric).table
        values = ms.noise_floor(wide, PAIRS, metric).table["value"]
        off = (floor["value"] - values).abs()
        assert (floor["floor"] > 0).all()
        assert (off <= 4 * floor["floor"] + 1e-3).all(), (off, floor)
    scores = (ms.sink_scores(m, TOKENS).table["score"] for m in (wide, half))
    one, other = (torch.tensor(s.to_numpy()) for s in scores)
    assert (one - other).abs().max() <= 16 * torch.finfo(dtype).eps


def test_a_chunk_that_does_not_fit_is_halved(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An overrun on the device shrinks the batches and changes no number."""
    model = model_on("transformer_lens", device)
    want = ms.patch_sweep(model, PAIRS, LD, engine="cells", progress=False).table
    run, failures = model.run, []

    def once(tokens: Tensor, **options: Any) -> Any:
        if len(tokens) > 4 and len(failures) < 1:
            failures.append(len(tokens))
            raise torch.OutOfMemoryError("asked for too much")
        return run(tokens, **options)

    monkeypatch.setattr(model, "run", once)
    got = ms.patch_sweep(model, PAIRS, LD, engine="cells", progress=False).table
    assert failures
    torch.testing.assert_close(
        torch.tensor(got["value"].to_numpy()), torch.tensor(want["value"].to_numpy()),
        rtol=1e-4, atol=1e-4,
    )  # fmt: skip
