"""Patching sweeps: mechsink, TransformerLens's own sweep and naive hooks, in one run.

    python benchmarks/patching.py [--repeats 3] [--long 128] [--out FILE.json]

Same model, same pair, same threads; the numbers must agree before a ratio counts.
The arithmetic limit is the multiply-adds that no exact sweep can avoid (per patch
the rows from its position on, from its layer up) over this machine's rate for a
matrix product of that size.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from transformer_lens import patching as tl_patching
from transformer_lens.model_bridge.sources import build_bridge_from_module

import mechsink as ms
from mechsink.models.views import shared_view

CLEAN = "When Mary and John went to the store, John gave a bottle to"
CORRUPTED = "When Mary and John went to the store, Mary gave a bottle to"


def main() -> None:
    options = _options()
    model: Any = ms.load_model("smollm2")
    filler = "The weather was fine and the road was long. " * 20
    print(
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"{model.name}, {options.repeats} repeats, medians"
    )
    rows = []
    short = _pair(model, "", 14)
    long = _pair(model, filler, options.long)
    for site, pair, rivals in (
        ("resid_pre", short, ("transformer_lens", "hooks")),
        ("z", short, ("transformer_lens",)),
        ("resid_pre", long, ("hooks",)),
    ):
        rows.append(_compare(model, pair, site, rivals, options.repeats))
        print(_line(rows[-1]), flush=True)
    print(f"peak memory {psutil.Process().memory_info().rss / 2**30:.2f} GiB resident")
    if options.out:
        options.out.write_text(json.dumps(rows, indent=2))


def _pair(model: Any, filler: str, n_pos: int) -> ms.PromptPairs:
    clean, corrupted = (
        model.to_tokens(filler + t)[:, -n_pos:] for t in (CLEAN, CORRUPTED)
    )
    answer, wrong = (model.to_tokens(t)[0, :1] for t in (" Mary", " John"))
    return ms.PromptPairs(clean, corrupted, answer, wrong)


def _compare(
    model: Any, pair: ms.PromptPairs, site: str, rivals: tuple[str, ...], repeats: int
) -> dict[str, Any]:
    runs: dict[str, Callable[[], torch.Tensor]] = {
        "mechsink": lambda: _mechsink(model, pair, site),
    }
    if "transformer_lens" in rivals:
        bridge = _bridge(model)
        runs["transformer_lens"] = lambda: _transformer_lens(bridge, pair, site)
    if "hooks" in rivals:
        plain = shared_view(model.plain.model)
        runs["hooks"] = lambda: _naive(plain, pair)
    times: dict[str, list[float]] = {name: [] for name in runs}
    values: dict[str, torch.Tensor] = {}
    _mechsink(model, pair, site)  # warm-up
    for repeat in range(repeats):
        for name, run in runs.items():
            if name != "mechsink" and repeat > 0 and times[name][0] > 60:
                continue  # a slow rival is timed once
            start = time.perf_counter()
            values[name] = run()
            times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    scale = values["mechsink"].abs().max()
    n_pos = pair.clean.shape[1]  # type: ignore[union-attr]
    return {
        "site": site,
        "tokens": n_pos,
        "seconds": medians,
        "ratio": {
            n: medians[n] / medians["mechsink"] for n in medians if n != "mechsink"
        },
        "off": {
            n: float((v - values["mechsink"]).abs().max() / scale)
            for n, v in values.items()
            if n != "mechsink"
        },
        "share_of_limit": _limit(model, n_pos, site) / medians["mechsink"],
    }


def _mechsink(model: Any, pair: ms.PromptPairs, site: str) -> torch.Tensor:
    table = ms.patch_sweep(model, pair, ms.logit_diff, site).table
    columns = ["layer", "pos"] + (["head"] if site == "z" else [])
    return torch.tensor(table.sort_values(columns)["value"].to_numpy())


def _bridge(model: Any) -> Any:
    view = shared_view(model.plain.model, eager=True)
    return build_bridge_from_module(view, type(view).__name__, hf_config=view.config)


def _transformer_lens(bridge: Any, pair: ms.PromptPairs, site: str) -> torch.Tensor:
    answer, wrong = int(pair.answers[0]), int(pair.wrong[0])

    def metric(logits: torch.Tensor) -> torch.Tensor:
        return logits[0, -1, answer] - logits[0, -1, wrong]

    with torch.no_grad():
        _, cache = bridge.run_with_cache(pair.clean)
        if site == "z":
            grid = tl_patching.get_act_patch_attn_head_out_by_pos(
                bridge, pair.corrupted, cache, metric
            )  # layer pos head
        else:
            grid = tl_patching.get_act_patch_resid_pre(
                bridge, pair.corrupted, cache, metric
            )
    return grid.flatten().double()


def _naive(plain: Any, pair: ms.PromptPairs) -> torch.Tensor:
    """A forward pre-hook and one whole pass per place, no cache, last logits only."""
    answer, wrong = int(pair.answers[0]), int(pair.wrong[0])
    blocks = plain.model.layers
    clean = []
    with torch.no_grad():
        handles = [
            b.register_forward_pre_hook(lambda m, a: clean.append(a[0])) for b in blocks
        ]
        plain(pair.clean, use_cache=False)
        for handle in handles:
            handle.remove()
        found = []
        for layer, block in enumerate(blocks):
            for pos in range(pair.clean.shape[1]):  # type: ignore[union-attr]

                def patch(
                    module: Any, args: Any, layer: int = layer, pos: int = pos
                ) -> Any:
                    x = args[0].clone()
                    x[:, pos] = clean[layer][:, pos]
                    return (x, *args[1:])

                handle = block.register_forward_pre_hook(patch)
                out = plain(pair.corrupted, use_cache=False, logits_to_keep=1).logits[
                    0, -1
                ]
                handle.remove()
                found.append(out[answer] - out[wrong])
    return torch.stack(found).double()


def _limit(model: Any, n_pos: int, site: str) -> float:
    """Seconds that the unavoidable multiply-adds take at this machine's rate."""
    s = model.shape
    kv = s.n_kv_heads * s.d_head
    a_token = s.d_model * (2 * s.d_model + 2 * kv + 3 * s.d_mlp)  # one layer
    rows = s.n_heads if site == "z" else 1
    tokens = sum(n_pos - pos for pos in range(n_pos))
    layers = sum(s.n_layers - layer - (site == "z") for layer in range(s.n_layers))
    multiply_adds = rows * tokens * layers * a_token
    a, b = torch.randn(1024, s.d_model), torch.randn(s.d_model, s.d_mlp)
    taken = []
    for _ in range(20):
        start = time.perf_counter()
        a @ b
        taken.append(time.perf_counter() - start)
    rate = a.shape[0] * b.numel() / statistics.median(taken)
    return multiply_adds / rate


def _line(row: dict[str, Any]) -> str:
    parts = [f"{row['site']:>10} {row['tokens']:>4} tokens"]
    parts += [f"{name} {seconds:.2f} s" for name, seconds in row["seconds"].items()]
    parts += [
        f"{ratio:.1f} x {name} (off {row['off'][name]:.0e})"
        for name, ratio in row["ratio"].items()
    ]
    parts += [f"{row['share_of_limit']:.0%} of the arithmetic limit"]
    return ", ".join(parts)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--long", type=int, default=128, help="tokens of the long pair")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
