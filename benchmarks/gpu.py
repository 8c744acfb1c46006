"""Times of a GPU, in seconds: sinks, sweeps, attribution, generation and training.

    python benchmarks/gpu.py [--device cuda] [--quick] [--out docs/benchmarks-gpu.md]

Unlike the other benchmarks, which compare two ways on one machine, these are absolute
and hold for the device that the page names. `make gpu` writes the page, where there is
CUDA; `--device cpu --quick` prints one to try the code. Random weights of SmolLM2's
sizes, so that nothing is loaded; the model and prompts of benchmarks/patching.py and
benchmarks/attribution.py, where they are the same measurement.
"""

import argparse
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from attribution import _pairs
from peak_memory import peak_memory

import mechsink as ms
from mechsink.models.kernels import kernel_for
from mechsink.models.versions import package_version
from mechsink.report.studies import markdown
from toy_tasks import PRESETS, BigramBackcopy
from toy_tasks.state import TrainingState
from toy_tasks.training import update

VERSIONS = ("torch", "transformers", "transformer-lens", "nnsight")
DTYPES = (torch.float32, torch.bfloat16)


def main() -> None:
    options = _options()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit(
            "benchmarks/gpu.py: no CUDA device here; --device cpu --quick tries it."
        )
    rows: list[dict[str, Any]] = []
    for dtype in DTYPES:
        model = ms.load_model(llama(device, dtype, options.quick), name="llama")
        rows += sinks(model, options.quick)
        rows += sweeps(model, options.quick)
        rows += attribution(model, options.quick)
        rows += generation(model, options.quick)
    rows += training(device, options.quick)
    text = page(device, rows, options.quick)
    if options.out is None:
        print(text)
    else:
        options.out.write_text(text)


def sinks(model: Any, quick: bool) -> list[dict[str, Any]]:
    """Scores of every head's attention to position 0, by length of the prompt."""
    rows = []
    q = torch.zeros(1, 1, 2, model.shape.d_head, device=model.device, dtype=model.dtype)
    kernel = kernel_for(q)
    how = "chunks" if kernel is None else kernel.__name__
    for n_pos in (128, 512) if quick else (2048, 8192, 32768):
        tokens = draw(model, 1, n_pos)
        what = f"sink scores, {n_pos:,} tokens ({how})"
        rows.append(measured(what, model, lambda t=tokens: ms.sink_scores(model, t)))
    return rows


def sweeps(model: Any, quick: bool) -> list[dict[str, Any]]:
    """Every place of one pair, by the wave and by one run a place."""
    n_pos = 12 if quick else 128
    pairs = _pairs(model.shape.d_vocab, 1, n_pos, model.device)
    rows = []
    for site, engine in (("resid_pre", "wave"), ("z", "wave"), ("resid_pre", "cells")):

        def run(site: str = site, engine: Any = engine) -> Any:
            return ms.patch_sweep(
                model, pairs, ms.logit_diff, site, engine=engine, progress=False
            )

        what = f"patch_sweep of {site}, {n_pos} tokens, {engine}"
        rows.append(measured(what, model, run, repeats=1 if quick else 3))
    return rows


def attribution(model: Any, quick: bool) -> list[dict[str, Any]]:
    """Edges and nodes, several pairs at once."""
    n, n_pos = (2, 8) if quick else (16, 64)
    pairs = _pairs(model.shape.d_vocab, n, n_pos, model.device)
    calls: dict[str, Callable[[], Any]] = {
        "eap_ig, 5 steps": lambda: ms.eap_ig(model, pairs, ms.logit_diff, steps=5),
        "attribution_patching of z": lambda: ms.attribution_patching(
            model, pairs, ms.logit_diff, "z", progress=False
        ),
        "logit_attribution": lambda: ms.logit_attribution(model, pairs),
    }
    return [
        measured(f"{name}, {n} pairs of {n_pos} tokens", model, call, repeats=1)
        for name, call in calls.items()
    ]


def generation(model: Any, quick: bool) -> list[dict[str, Any]]:
    """New tokens, one after the other."""
    n_new = 4 if quick else 64
    tokens = draw(model, 4, 16)
    what = f"generate, 4 prompts, {n_new} new tokens"
    return [measured(what, model, lambda: ms.generate(model, tokens, n_new))]


def training(device: torch.device, quick: bool) -> list[dict[str, Any]]:
    """A step of a toy: the preset of the Bigram-Backcopy experiments, and a larger."""
    rows, task = [], BigramBackcopy.from_text()
    for name in ("bb-cpu",) if quick else ("bb-cpu", "bb-paper"):
        preset = PRESETS[name]
        with tempfile.TemporaryDirectory() as folder:
            state = TrainingState.start(task, preset, 0, Path(folder), device)
        n_pos = preset.model.n_ctx
        tokens = task.sample(preset.batch, n_pos + 1, 0, device)
        for dtype in ("float32", "bfloat16"):

            def step(
                dtype: str = dtype, state: Any = state, tokens: Any = tokens
            ) -> Any:
                return update(state.model, state.optimizer, tokens, dtype)

            rows.append(
                {"what": f"training step of {name}, {preset.batch} x {n_pos} tokens"}
                | {"dtype": dtype}
                | timed(step, device, repeats=3 if quick else 20)
            )
    return rows


def measured(
    what: str, model: Any, call: Callable[[], Any], repeats: int = 3
) -> dict[str, Any]:
    """One row of the page; the first call warms up and is not counted."""
    dtype = str(model.dtype).removeprefix("torch.")
    return {"what": what, "dtype": dtype} | timed(call, model.device, repeats)


def timed(
    call: Callable[[], Any], device: torch.device, repeats: int
) -> dict[str, Any]:
    """Median seconds of a call, and the most memory that it took."""
    call()
    taken = []
    with peak_memory(device) as used:
        for _ in range(repeats):
            start = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - start)
    return {
        "seconds": f"{statistics.median(taken):.3g}",
        "peak MiB": f"{used[0] / 2**20:.0f}",
    }


def page(device: torch.device, rows: list[dict[str, Any]], quick: bool) -> str:
    """The whole page."""
    is_cuda = device.type == "cuda"
    sizes = "small sizes, to try the code" if quick else "SmolLM2-135M's sizes"
    name = torch.cuda.get_device_name(device) if is_cuda else platform.processor()
    versions = ", ".join(f"{what} {package_version(what)}" for what in VERSIONS)
    cuda = f", CUDA {torch.version.cuda}" if is_cuda else ""
    return (
        "# Times on a GPU\n\n"
        f"{name or 'a CPU'}; Python {platform.python_version()}, {versions}{cuda}. "
        f"Made by `make gpu` (benchmarks/gpu.py), with random weights of {sizes}. "
        "Medians after one call that is not counted; memory beyond what was "
        "held before.\n\n" + markdown(pd.DataFrame(rows)) + "\n"
    )


def llama(device: torch.device, dtype: torch.dtype, quick: bool) -> Any:
    """Random weights in SmolLM2-135M's sizes; quick: three narrow layers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2000 if quick else 49152,
        hidden_size=72 if quick else 576,
        intermediate_size=128 if quick else 1536,
        num_hidden_layers=3 if quick else 30,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=32 if quick else 64,
        max_position_embeddings=32768,
    )
    return LlamaForCausalLM(config).eval().to(device, dtype)


def draw(model: Any, n: int, n_pos: int) -> torch.Tensor:
    """Random tokens."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(model.shape.d_vocab, (n, n_pos), generator=generator)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="small, to try the code")
    parser.add_argument("--out", type=Path, help="write the page; default: print it")
    return parser.parse_args()


if __name__ == "__main__":
    main()
