"""Long prompts: memory of sinks, heads and streams at 32,768 tokens, sweeps at 4,096.

    python benchmarks/long_context.py [--only NAME ...] [--layers N] [--out FILE]

Random weights of SmolLM2's architecture, two layers deep: a quarter of an hour on one
core. `--layers 30`: SmolLM2 itself, hours for some of it; its context of 8,192 tokens
is raised (what lies beyond was never trained: measured here is memory, not the model).
Each measurement has a process of its own, which warms up on a short prompt. Held are:

- the most memory of the whole process, under 6 GB (of 1e9 bytes);
- what a prompt adds to the loaded model, at most linear: 32,768 tokens add at most
  four times what 8,192 do.

Sweeps of chosen positions say which part of the whole sweep's work they are (tokens
carried through blocks): patches of late positions carry few.
"""

import argparse
import gc
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peak_memory import peak_memory

import mechsink as ms

LONG, SWEPT = 32_768, 4_096
LAYERS = 30  # of SmolLM2
LIMIT_GB = 6.0
NOISE = 1.02  # of what a prompt adds: pages, not numbers


def main() -> None:
    options = _options()
    if options.child:
        name, tokens = options.child
        print(json.dumps(measured(name, int(tokens), options.layers)))
        return
    rows: list[dict[str, Any]] = []
    for name, tokens in JOBS:
        if options.only and name not in options.only:
            continue
        child = [sys.executable, __file__, "--child", name, str(tokens)]
        child += ["--layers", str(options.layers)]
        done = subprocess.run(child, check=True, capture_output=True, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(_line(rows[-1]), flush=True)
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n")
    for row in rows:
        assert row["peak_gb"] < LIMIT_GB, row
    added = {row["tokens"]: row["added_gb"] for row in rows if row["name"] == "scores"}
    short = min(added, default=0)
    for tokens, here in added.items():
        print(
            f"scores: {tokens / short:.0f} times the tokens, {here / added[short]:.2f}"
        )
        assert here <= NOISE * added[short] * tokens / short, added


def measured(name: str, tokens: int, layers: int) -> dict[str, Any]:
    """Memory and time of one measurement, in this process."""
    model = long_model(max(tokens, LONG), layers)
    call = CALLS[name]
    call(model, 64)  # the first visit proves hooks and imports libraries
    for weight in model.plain.model.parameters():
        weight.sum()  # read from a file, it lies in memory once it was touched
    gc.collect()
    with peak_memory(model.device) as used:
        wall, cpu = time.perf_counter(), time.process_time()
        note = call(model, tokens)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "name": name,
        "tokens": tokens,
        "layers": model.shape.n_layers,
        "weights": model.name,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "added_gb": used[0] / 1e9,
        "seconds": wall,
        "cpu_seconds": cpu,  # of all threads: what a busy machine leaves alone
        "threads": torch.get_num_threads(),
        "note": note,
    }


def scores(model: Any, tokens: int) -> str:
    """Sink scores alone."""
    rate = ms.sink_scores(model, prose(model, tokens)).rate()
    return f"rate {rate:.2f}"


def report(model: Any, tokens: int) -> str:
    """All of `sink_report`: scores, logits, values, norms, massive activations."""
    found = ms.sink_report(model, prose(model, tokens))
    return f"rate {found.rate:.2f}, {len(found.tokens)} tokens"


def heads(model: Any, tokens: int) -> str:
    """Active-dormant heads of two domains of two texts, a late head confirmed."""
    texts = {
        "prose": list(prose(model, 2 * tokens)[0].split(tokens)),
        "code": list(code(model, 2 * tokens)[0].split(tokens)),
    }
    late = [(model.shape.n_layers - 1, 0)]
    found = ms.active_dormant(model, texts, n_pos=tokens, confirm=late)
    return f"{len(found.table)} heads, {len(found.confirmation)} confirmations"


def window(model: Any, tokens: int) -> str:
    """A stream of two bounded caches in one batch."""
    return _streamed(model, tokens, [ms.SinkWindow(4, 508), ms.Window(512)])


def dense(model: Any, tokens: int) -> str:
    """A stream that keeps everything."""
    return _streamed(model, tokens, [ms.Dense()])


def _streamed(model: Any, tokens: int, policies: list[Any]) -> str:
    text = prose(model, tokens + 1)[0]
    total = sum(
        part.losses.sum(1) for part in ms.stream_losses(model, text, policies, 256)
    )
    return "loss " + ", ".join(f"{x:.2f}" for x in (total / tokens).tolist())


def sweep(model: Any, tokens: int) -> str:
    """Three positions of resid_pre, one of each part of the prompt."""
    chosen = [tokens // 64, tokens // 2, tokens - 2]
    return _swept(model, tokens, "resid_pre", chosen)


def inner_sweep(model: Any, tokens: int) -> str:
    """The same of attn_out, which takes a run with whole patterns, layer by layer."""
    return _swept(model, tokens, "attn_out", [tokens - 64, tokens - 2])


def _swept(model: Any, tokens: int, site: str, positions: list[int]) -> str:
    clean = prose(model, tokens)
    corrupted = clean.clone()
    corrupted[0, 1] = (clean[0, 1] + 1) % model.shape.d_vocab  # no patch is empty
    pairs = ms.PromptPairs(clean, corrupted, answers=clean[:, -1], wrong=clean[:, -2])
    found = ms.patch_sweep(model, pairs, ms.logit_diff, site, positions=positions)
    share = sum(tokens - p for p in positions) / sum(tokens - p for p in range(tokens))
    engine = found.meta["settings"]["engine"]
    return f"{len(found.table)} patches, {engine}; {share:.2%} of the whole work"


def prose(model: Any, n: int) -> torch.Tensor:
    """English text of the Python documentation, one prompt."""
    from pydoc_data.topics import topics

    return _tokens(model, " ".join(" ".join(topics.values())[: 8 * n].split()), n)


def code(model: Any, n: int) -> torch.Tensor:
    """Source text of the standard library, one prompt."""
    text = "".join(
        path.read_text(encoding="utf-8", errors="ignore")
        for path in sorted(Path(argparse.__file__).parent.glob("[a-d]*.py"))
    )
    return _tokens(model, text[: 8 * n], n)


def _tokens(model: Any, text: str, n: int) -> torch.Tensor:
    if model.tokenizer is None:
        return torch.randint(
            model.shape.d_vocab, (1, n), generator=torch.manual_seed(len(text))
        )
    found = model.to_tokens(text)[:, :n]
    assert found.shape[1] == n, f"the text has {found.shape[1]} tokens of {n}"
    return found


def long_model(n_ctx: int, layers: int) -> Any:
    """SmolLM2 with a longer context; or random weights of fewer layers."""
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        LlamaConfig,
        LlamaForCausalLM,
    )

    from mechsink.models import pretrained

    if layers == LAYERS:
        folder = pretrained.converted()
        with pretrained.quiet_loading():
            hf = AutoModelForCausalLM.from_pretrained(
                folder, max_position_embeddings=n_ctx, dtype=torch.float32
            )
        tokenizer = AutoTokenizer.from_pretrained(folder, model_max_length=10**9)
        return ms.load_model(hf, tokenizer=tokenizer, name=f"smollm2, {n_ctx} tokens")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        max_position_embeddings=n_ctx,
        tie_word_embeddings=True,
    )
    return ms.load_model(LlamaForCausalLM(config).eval(), name="random weights")


CALLS: dict[str, Callable[[Any, int], str]] = {
    "scores": scores,
    "report": report,
    "heads": heads,
    "window": window,
    "dense": dense,
    "sweep": sweep,
    "inner_sweep": inner_sweep,
}
JOBS = [
    ("scores", LONG // 4),
    ("scores", LONG // 2),
    ("scores", LONG),
    ("report", LONG),
    ("heads", LONG),
    ("window", LONG),
    ("dense", LONG),
    ("sweep", SWEPT),
    ("inner_sweep", SWEPT),
]


def _line(row: dict[str, Any]) -> str:
    what = f"{row['name']:11}{row['tokens']:>7} tokens, {row['layers']} layers"
    memory = f"peak {row['peak_gb']:.2f} GB, added {row['added_gb']:.3f} GB"
    taken = f"{row['seconds']:.0f} s, {row['cpu_seconds']:.0f} s of a core"
    return f"{what}: {memory}, {taken} ({row['note']})"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=sorted(CALLS))
    parser.add_argument("--layers", type=int, default=2, help="30: SmolLM2 itself")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
