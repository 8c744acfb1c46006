"""Edge attribution: its cost over the passes it needs, and beside TransformerLens.

    python benchmarks/attribution.py [--repeats 3] [--quick] [--out FILE]

Three questions, each answered by ratios taken in one run:
- all edges of SmolLM2 with `eap_ig`, 5 steps, 20 prompts of 20 tokens: the call's time
  over that of the passes it needs, 2 forward and 5 forward and backward, of the plain
  Hugging Face model with its fast attention (all logits, and the last alone);
- all edges of a random GPT-2 with `eap` and with TransformerLens's attribution
  patching: time, peak memory, agreement (its gradient point and sign, matched);
- how time and memory grow with prompts, length and layers.
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from peak_memory import peak_memory
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformer_lens.tools.analysis.attribution_patching import (
    EdgeAttributionConfig,
    attribution_patch,
)

import mechsink as ms

STEPS, PROMPTS, TOKENS = 5, 20, 20
PORTS = {"q_input": "q", "k_input": "k", "v_input": "v"}


def main() -> None:
    """Measure and print a line for each figure."""
    options = _options()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    what = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{what}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    rows = [_passes(device, options.repeats)]
    rows += [_against_transformer_lens(device, n, options) for n in (2, 8)]
    rows += _scaling(device, options)
    if options.out:
        options.out.write_text(json.dumps(rows, indent=2))


def _passes(device: torch.device, repeats: int) -> dict[str, Any]:
    model: Any = ms.load_model("smollm2", device=device)
    pairs = _pairs(model.shape.d_vocab, PROMPTS, TOKENS, device)
    plain = model.plain.model
    ms.eap(model, _pairs(model.shape.d_vocab, 1, 4, device), ms.logit_diff)  # warm-up
    ratios: dict[str, list[float]] = {"all logits": [], "last logits": []}
    seconds, peak = [], 0.0
    n_edges = 0
    for _ in range(repeats):
        needed = {
            name: _needed(plain, pairs, keep)
            for name, keep in (("all logits", 0), ("last logits", 1))
        }
        with peak_memory(device) as used:
            taken = _timed(lambda: ms.eap_ig(model, pairs, ms.logit_diff, steps=STEPS))
        seconds.append(taken[0])
        n_edges = len(taken[1].table)
        peak = max(peak, used[0])
        for name, passes in needed.items():
            ratios[name].append(seconds[-1] / passes)
    row = {
        "what": "eap_ig over the passes it needs",
        "edges": n_edges,
        "seconds": statistics.median(seconds),
        "ratio": {name: statistics.median(found) for name, found in ratios.items()},
        "ratios": ratios,
        "peak_bytes": peak,
        "process_bytes": _resident(),
    }
    every, last = row["ratio"]["all logits"], row["ratio"]["last logits"]
    print(
        f"SmolLM2, {PROMPTS} prompts of {TOKENS} tokens, {n_edges} edges, eap_ig "
        f"{STEPS} steps: {row['seconds']:.1f} s, {every:.2f} times its passes "
        f"({last:.2f} times passes with the last "
        f"logits alone); peak {peak / 2**30:.2f} GiB over the loaded model, "
        f"{row['process_bytes'] / 2**30:.2f} GiB in all",
        flush=True,
    )
    return row


def _needed(plain: Any, pairs: ms.PromptPairs, keep: int) -> float:
    """Seconds of two forward passes and STEPS forward and backward ones."""
    embed = plain.get_input_embeddings()
    tokens: Any = pairs.clean

    def forward() -> None:
        with torch.no_grad():
            plain(tokens, use_cache=False, logits_to_keep=keep)

    def both() -> None:
        x = embed(tokens).detach().requires_grad_()
        logits = plain(inputs_embeds=x, use_cache=False, logits_to_keep=keep).logits
        rows = torch.arange(len(tokens), device=tokens.device)
        torch.autograd.grad(logits[rows, -1, pairs.answers].sum(), x)

    forward()
    both()
    one = statistics.median(_timed(forward)[0] for _ in range(3))
    return 2 * one + STEPS * statistics.median(_timed(both)[0] for _ in range(3))


def _against_transformer_lens(
    device: torch.device, n: int, options: argparse.Namespace
) -> dict[str, Any]:
    layers = 4 if options.quick else 12
    model = _gpt2(layers, device)
    bridge = build_bridge_from_module(model, "GPT2LMHeadModel", hf_config=model.config)
    bridge.eval()
    ours: Any = ms.load_model(_gpt2(layers, device))
    pairs = _pairs(ours.shape.d_vocab, n, TOKENS, device, shared_answer=True)
    exchanged = ms.PromptPairs(pairs.corrupted, pairs.clean, pairs.answers, pairs.wrong)
    answer, wrong = int(pairs.answers[0]), int(pairs.wrong[0])
    ms.eap(ours, exchanged, ms.logit_diff)  # warm-up: the wiring is proved once

    def rival() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return attribution_patch(
                bridge,
                pairs.clean,
                pairs.corrupted,
                lambda logits: logits[0, -1, answer] - logits[0, -1, wrong],
                EdgeAttributionConfig(granularity="edge"),
            )

    times: dict[str, list[float]] = {"mechsink": [], "transformer_lens": []}
    peaks = dict.fromkeys(times, 0.0)
    found: dict[str, Any] = {}
    for _ in range(options.repeats if n < 8 else 1):
        for name, call in (
            ("mechsink", lambda: ms.eap(ours, exchanged, ms.logit_diff)),
            ("transformer_lens", rival),
        ):
            with peak_memory(device) as used:
                taken, found[name] = _timed(call)
            times[name].append(taken)
            peaks[name] = max(peaks[name], used[0])
    scores = found["mechsink"]
    want: dict[tuple[str, str], float] = {}
    for edge, score in found["transformer_lens"].edge_scores.items():
        key = tuple(_our_name(node) for node in edge)
        want[key] = want.get(key, 0.0) + score  # type: ignore[index, arg-type]
    scale = max(map(abs, want.values()))
    off = max(
        abs(-row.score - want.get((row.source, row.target), 0.0)) / scale
        for row in scores.table.itertuples()
    )
    median = {name: statistics.median(values) for name, values in times.items()}
    ratio = median["transformer_lens"] / median["mechsink"]
    memory = peaks["transformer_lens"] / max(peaks["mechsink"], 2**20)
    print(
        f"GPT-2, {layers} layers, random, {n} prompts of {TOKENS} tokens, "
        f"{len(scores.table)} edges: eap {median['mechsink']:.2f} s, TransformerLens "
        f"{ratio:.1f} times that and {memory:.1f} times the memory "
        f"({peaks['mechsink'] / 2**20:.0f} and "
        f"{peaks['transformer_lens'] / 2**20:.0f} MiB); off by {off:.0e}",
        flush=True,
    )
    return {"what": "against TransformerLens", "prompts": n, "seconds": median,
            "ratio": ratio, "peak_bytes": peaks, "off": off}  # fmt: skip


def _scaling(device: torch.device, options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    base = {"prompts": 8, "tokens": 20, "layers": 6}
    factors = (1, 2, 4) if options.quick else (1, 2, 4, 8)
    for axis in base:
        times, peaks = [], []
        for factor in factors:
            size = {**base, axis: base[axis] * factor}
            model = ms.load_model(_llama(size["layers"], device))
            vocabulary = model.shape.d_vocab
            ms.eap(model, _pairs(vocabulary, 1, 4, device), ms.logit_diff)
            pairs = _pairs(vocabulary, size["prompts"], size["tokens"], device)
            with peak_memory(device) as used:
                taken = _timed(lambda m=model, p=pairs: ms.eap_ig(m, p, ms.logit_diff))
            times.append(taken[0])
            peaks.append(used[0])
        grown = ", ".join(f"{t / times[0]:.1f}" for t in times)
        memory = ", ".join(f"{p / 2**20:.0f}" for p in peaks)
        counts = ", ".join(str(base[axis] * factor) for factor in factors)
        print(
            f"eap_ig with {axis} {counts}: time {grown}; peak MiB {memory}", flush=True
        )
        rows.append({"what": f"scaling with {axis}", "factors": factors,
                     "seconds": times, "peak_bytes": peaks})  # fmt: skip
    return rows


def _pairs(
    vocabulary: int,
    n: int,
    n_pos: int,
    device: torch.device,
    shared_answer: bool = False,
) -> ms.PromptPairs:
    drawn = torch.Generator().manual_seed(0)
    clean = torch.randint(50, vocabulary, (n, n_pos), generator=drawn)
    corrupted = clean.clone()
    corrupted[:, n_pos // 4] = torch.randint(50, vocabulary, (n,), generator=drawn)
    count = 1 if shared_answer else n
    answers = torch.randint(50, vocabulary // 2, (count,), generator=drawn).expand(n)
    rows = [t.to(device) for t in (clean, corrupted, answers, answers + 100)]
    return ms.PromptPairs(*rows)


def _gpt2(layers: int, device: torch.device) -> Any:
    torch.manual_seed(0)
    config = hf.GPT2Config(
        n_layer=layers,
        vocab_size=2000,
        bos_token_id=1,
        eos_token_id=1,
        architectures=["GPT2LMHeadModel"],
    )
    return hf.GPT2LMHeadModel(config).to(device).eval()


def _llama(layers: int, device: torch.device) -> Any:
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        hidden_size=256, intermediate_size=704, num_hidden_layers=layers,
        num_attention_heads=8, num_key_value_heads=2, vocab_size=2000,
    )  # fmt: skip
    return hf.LlamaForCausalLM(config).to(device).eval()


def _our_name(node: Any) -> str:
    if node.kind == "embed":
        return "input"
    if node.kind == "attn_head_out":
        return f"a{node.layer}.h{node.head}"
    if node.kind in PORTS:
        return f"a{node.layer}.h{node.head}<{PORTS[node.kind]}>"
    return "logits" if node.kind == "logits" else f"m{node.layer}"


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    found = call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, found


def _resident() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="smaller, for a look")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
