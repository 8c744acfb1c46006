"""Patching sweeps: mechsink, TransformerLens's own sweep and naive hooks, in one run.

    python benchmarks/patching.py [--places 60] [--repeats 3] [--long 128] [--out FILE]

Same weights, pair, threads and device (a GPU where there is one). A rival's cost is
the same at every place, so it is timed on a random sample of places (`--places 0`:
all) and scaled to the whole sweep; on those places its numbers must agree with ours.
Pairs "from the start" differ in their first token already, so that no patch is
empty; the usual ones part late, and nothing needs computing before that.

The arithmetic limit is the multiply-adds that no exact sweep can avoid (per patch
from where the pair parts, the rows from its position on, from its layer up, of the
last block keys, values and one position) at this machine's rate for such a product.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from peak_memory import peak_memory
from transformer_lens import patching as tl
from transformer_lens.model_bridge.sources import build_bridge_from_module

import mechsink as ms
from mechsink.models.views import shared_view

CLEAN = "When Mary and John went to the store, John gave a bottle to"
CORRUPTED = "When Mary and John went to the store, Mary gave a bottle to"
FILLER = "The weather was fine and the road was long. "
AXES = {"resid_pre": ["layer", "pos"], "z": ["layer", "pos", "head"]}
Sweep = Callable[[pd.DataFrame], torch.Tensor]  # places to metric values


def main() -> None:
    """Measure the sweeps and print a line for each."""
    options = _options()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = ms.load_model("smollm2", device=device)
    what = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    threads = torch.get_num_threads()
    print(f"{model.name}, {what}, {threads} threads, torch {torch.__version__}")
    bridge = _bridge(model)
    plain = shared_view(model.plain.model)
    rows = []
    for site, n_pos, from_start, rivals in (
        ("resid_pre", 14, True, ("transformer_lens", "hooks")),
        ("resid_pre", 14, False, ("transformer_lens", "hooks")),
        ("z", 14, True, ("transformer_lens",)),
        ("z", 14, False, ("transformer_lens",)),
        ("resid_pre", options.long, True, ("hooks",)),
        ("resid_pre", options.long, False, ("hooks",)),
    ):
        pair = _pair(model, n_pos, from_start)
        sweeps: dict[str, Sweep] = {
            "transformer_lens": _transformer_lens(bridge, pair, site),
            "hooks": _hooks(plain, pair),
        }
        chosen = {name: sweeps[name] for name in rivals}
        row = _compare(model, pair, site, chosen, options)
        rows.append({**row, "pair": "from the start" if from_start else "usual"})
        print(_line(rows[-1]), flush=True)
    if options.out:
        options.out.write_text(json.dumps(rows, indent=2))


def _compare(
    model: Any,
    pair: ms.PromptPairs,
    site: str,
    rivals: dict[str, Sweep],
    options: argparse.Namespace,
) -> dict[str, Any]:
    ms.patch_sweep(model, pair, ms.logit_diff, site, layers=[28])  # warm-up
    ratios: dict[str, list[float]] = {name: [] for name in rivals}
    off = dict.fromkeys(rivals, 0.0)
    peak = dict.fromkeys(["mechsink", *rivals], 0.0)
    ours: list[float] = []
    shares: list[float] = []
    table = pd.DataFrame()
    for repeat in range(options.repeats):
        limit = _limit(model, pair, site)  # each time: the machine's rate drifts
        with peak_memory(model.device) as used:
            start = time.perf_counter()
            table = ms.patch_sweep(model, pair, ms.logit_diff, site).table
            ours.append(time.perf_counter() - start)
        peak["mechsink"] = max(peak["mechsink"], used[0])
        shares.append(limit / ours[-1])
        n = min(options.places, len(table)) or len(table)
        places = table.loc[random.Random(repeat).sample(range(len(table)), n)]
        want = torch.tensor(places["value"].to_numpy())
        for name, sweep in rivals.items():
            with peak_memory(model.device) as used:
                start = time.perf_counter()
                got = sweep(places[AXES[site]]).cpu()
                taken = (time.perf_counter() - start) * len(table) / n
            peak[name] = max(peak[name], used[0])
            ratios[name].append(taken / ours[-1])
            scale = table["value"].abs().max()
            off[name] = max(off[name], float((got - want).abs().max() / scale))
    return {
        "site": site,
        "tokens": len(pair.clean[0]),
        "places": len(table),
        "seconds": statistics.median(ours),
        "ratios": ratios,
        "ratio": {name: statistics.median(found) for name, found in ratios.items()},
        "off": off,
        "share_of_limit": statistics.median(shares),
        "peak_bytes": peak,
    }


def _pair(model: Any, n_pos: int, from_start: bool) -> ms.PromptPairs:
    filler = FILLER * (n_pos // 8)
    clean, corrupted = (
        model.to_tokens(filler + text)[:, -n_pos:] for text in (CLEAN, CORRUPTED)
    )
    if from_start:
        corrupted[:, 0] = model.to_tokens("While")[0, 0]
    answer, wrong = (model.to_tokens(text)[0, :1] for text in (" Mary", " John"))
    return ms.PromptPairs(clean, corrupted, answer, wrong)


def _bridge(model: Any) -> Any:
    view: Any = shared_view(model.plain.model, eager=True)
    return build_bridge_from_module(view, type(view).__name__, hf_config=view.config)


def _transformer_lens(bridge: Any, pair: Any, site: str) -> Sweep:
    sweep = (
        tl.get_act_patch_resid_pre
        if site == "resid_pre"
        else tl.get_act_patch_attn_head_out_by_pos
    )
    answer, wrong = int(pair.answers[0]), int(pair.wrong[0])

    def metric(logits: torch.Tensor) -> torch.Tensor:
        return logits[0, -1, answer] - logits[0, -1, wrong]

    @torch.no_grad()
    def run(places: pd.DataFrame) -> torch.Tensor:
        tl.tqdm = lambda things, **options: things  # its progress bar costs time
        _, cache = bridge.run_with_cache(pair.clean)
        index = places.reset_index(drop=True)
        found = sweep(
            bridge, pair.corrupted, cache, metric,
            index_axis_names=None, index_df=index,
        )  # fmt: skip
        return found.double()

    return run


def _hooks(plain: Any, pair: Any) -> Sweep:
    """One forward pre-hook and one whole pass a place, last logits only."""
    answer, wrong = int(pair.answers[0]), int(pair.wrong[0])

    @torch.no_grad()
    def run(places: pd.DataFrame) -> torch.Tensor:
        clean: list[torch.Tensor] = []
        handles = [
            block.register_forward_pre_hook(lambda module, args: clean.append(args[0]))
            for block in plain.model.layers
        ]
        plain(pair.clean, use_cache=False)
        for handle in handles:
            handle.remove()
        found = []
        for layer, pos in places.itertuples(index=False):

            def patch(
                module: Any, args: Any, layer: int = layer, pos: int = pos
            ) -> Any:
                x = args[0].clone()
                x[:, pos] = clean[layer][:, pos]
                return (x, *args[1:])

            handle = plain.model.layers[layer].register_forward_pre_hook(patch)
            out = plain(pair.corrupted, use_cache=False, logits_to_keep=1)
            handle.remove()
            found.append(out.logits[0, -1, answer] - out.logits[0, -1, wrong])
        return torch.stack(found).double()

    return run


def _limit(model: Any, pair: Any, site: str) -> float:
    """Seconds that the unavoidable multiply-adds take at this machine's rate."""
    shape, n_pos = model.shape, pair.clean.shape[1]
    d, keys = shape.d_model, 2 * shape.d_model * shape.n_kv_heads * shape.d_head
    a_token = 2 * d * d + keys + 3 * d * shape.d_mlp  # q and o, k and v, the MLP
    enters = 0 if site == "resid_pre" else 1
    first = int((pair.clean != pair.corrupted).int().argmax())
    tokens = sum(n_pos - pos for pos in range(first, n_pos))
    whole, ends = 0, 0  # patches times blocks: all but the last block, and that
    for layer in range(shape.n_layers):
        whole += max(0, shape.n_layers - 1 - layer - enters)
        ends += layer + enters < shape.n_layers
    work = whole * tokens * a_token
    work += ends * (tokens * keys + (n_pos - first) * (a_token - keys))
    parts = shape.n_heads if site == "z" else 1
    a = torch.randn(1024, d, device=model.device)
    b = torch.randn(d, shape.d_mlp, device=model.device)
    taken = []
    for _ in range(30):
        start = time.perf_counter()
        a @ b
        if a.is_cuda:
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    rate = a.shape[0] * b.numel() / statistics.median(taken)
    return parts * work / rate


def _line(row: dict[str, Any]) -> str:
    rivals = [
        f"{row['ratio'][name]:.1f} times {name} (off by {row['off'][name]:.0e})"
        for name in row["ratio"]
    ]
    peak = ", ".join(f"{n} {b / 2**20:.0f}" for n, b in row["peak_bytes"].items())
    return (
        f"{row['site']}, {row['tokens']} tokens, pair {row['pair']}, "
        f"{row['places']} places: {row['seconds']:.2f} s, {', '.join(rivals)}, "
        f"{row['share_of_limit']:.0%} of the arithmetic limit; peak MiB {peak}"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--places", type=int, default=60, help="0: all")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--long", type=int, default=128, help="tokens, long pair")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
