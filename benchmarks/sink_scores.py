"""Sink scores in linear memory: agreement, memory and time.

    python benchmarks/sink_scores.py [--tokens 8192] [--no-smollm2]

- agreement: largest difference to scores of whole patterns, read by `model.run`,
  on tiny random models and on SmolLM2 (must be under 1e-5);
- peak resident memory of a whole process that loads SmolLM2 and scores one long
  prompt (must be under 3 GB at 8,192 tokens);
- time of `sink_scores` over that of reading the patterns, same prompt.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from mechsink.models.load import load_model
from mechsink.run import Model
from mechsink.sinks.scores import sink_score, sink_scores
from mechsink.sites import Site


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--no-smollm2", action="store_true")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure_memory(options.tokens)))
        return
    rows: list[tuple[str, str, str]] = []
    kinds = {"multi-head": 4, "grouped-query": 2, "multi-query": 1}
    for name, n_kv_heads in kinds.items():
        model = tiny_llama(n_kv_heads)
        tokens = torch.randint(80, (4, 256), generator=torch.manual_seed(0))
        rows.append(agreement(f"tiny {name}, 4 x 256", model, tokens))
    if not options.no_smollm2:
        model = load_model("smollm2")
        tokens = prose(model, 512)
        rows.append(agreement("SmolLM2, 1 x 512", model, tokens))
        sink_scores(model, tokens)  # warm-up: the first visit proves its hooks
        whole = seconds(lambda: by_patterns(model, tokens))
        linear = seconds(lambda: sink_scores(model, tokens))
        ratio = f"{linear:.2f} s / {whole:.2f} s = {linear / whole:.2f}"
        rows.append(("SmolLM2, 1 x 512", "time, linear / patterns", ratio))
        child = [sys.executable, __file__, "--child", "--tokens", str(options.tokens)]
        out = subprocess.run(child, check=True, capture_output=True, text=True).stdout
        found = json.loads(out.splitlines()[-1])
        prompt = f"SmolLM2, 1 x {options.tokens}"
        peak = f"{found['peak_gb']:.2f} GB ({found['loaded_gb']:.2f} GB once loaded)"
        rows.append((prompt, "peak resident memory", peak))
        rows.append((prompt, "time", f"{found['seconds']:.1f} s"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        cells = zip(row, widths, strict=True)
        print("  ".join(cell.ljust(width) for cell, width in cells).rstrip())


def agreement(name: str, model: Model, tokens: torch.Tensor) -> tuple[str, str, str]:
    """Largest difference between the two ways, over heads and prompts."""
    table = sink_scores(model, tokens).table.sort_values(["layer", "batch", "head"])
    linear = torch.tensor(table["score"].to_numpy())
    difference = (linear - by_patterns(model, tokens).flatten()).abs().max().item()
    return name, "largest difference", f"{difference:.1e}"


def by_patterns(model: Model, tokens: torch.Tensor) -> torch.Tensor:
    """Scores of whole patterns, layer batch head."""
    cache = model.run(tokens, read=model.shape.all_sites("pattern")).cache
    layers = range(model.shape.n_layers)
    return torch.stack([sink_score(cache[Site("pattern", n)]) for n in layers])


def measure_memory(n_tokens: int) -> dict[str, float]:
    """Peak memory of this process, GB of 1e9 bytes."""
    model = load_model("smollm2")
    tokens = prose(model, n_tokens)
    loaded = peak_gb()
    taken = seconds(lambda: sink_scores(model, tokens))
    return {"loaded_gb": loaded, "peak_gb": peak_gb(), "seconds": taken}


def peak_gb() -> float:
    """Largest resident set so far; Linux counts in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def seconds(call: Callable[[], Any]) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def prose(model: Model, n_tokens: int) -> torch.Tensor:
    """English text of the Python documentation, one prompt."""
    from pydoc_data.topics import topics

    text = " ".join(" ".join(topics.values())[: 8 * n_tokens].split())
    return model.to_tokens(text)[:, :n_tokens]


def tiny_llama(n_kv_heads: int) -> Model:
    """Random weights large enough that attention is not uniform."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(n_kv_heads)
    config = LlamaConfig(
        vocab_size=80,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=n_kv_heads,
        max_position_embeddings=256,
    )
    model = LlamaForCausalLM(config)
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.3)
    return load_model(model.eval())


if __name__ == "__main__":
    main()
