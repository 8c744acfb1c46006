"""Edge methods against exact patching: who estimates it, and who ranks it, how well.

    python benchmarks/edge_methods.py [--seeds 20] [--quick] [--out FILE]

Two tables, in Markdown:
- tiny random models in float64: Spearman's correlation with `exact_edges`, of scores
  and of |score|, and the relative error, L1 of the difference over L1 of the exact
  scores; mean over seeds with its 95 % Student-t interval. One seed is one model with
  one draw of prompts. Below it two methods seed by seed, and how far `eap_ig` with few
  steps is from 50;
- planted circuits: edge AUROC, the lowest over the cases and how many reach 1; cases
  with saturated attention or steep gates apart.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import transformers as hf
from scipy import stats

import mechsink as ms
from toy_tasks import ToyConfig, ToyTransformer
from toy_tasks.planted import PLANTED, SATURATED, Planted

VOCABULARY, PROMPTS, TOKENS = 80, 10, 8
STEPS = (1, 2, 5, 10, 20, 50)
MOST = STEPS[-1]

METHODS: dict[str, Callable[..., ms.EdgeScores]] = {
    "eap": ms.eap,
    "eap_clean_corrupted": ms.eap_clean_corrupted,
    **{f"eap_ig {m}": partial(ms.eap_ig, steps=m) for m in STEPS},
    **{
        f"eap_ig_activations {m}": partial(ms.eap_ig_activations, steps=m)
        for m in (1, 5)
    },
}
ON_PLANTED: dict[str, Callable[..., ms.EdgeScores]] = {
    "exact_edges": ms.exact_edges,
    **{
        name: METHODS[name]
        for name in ("eap", "eap_clean_corrupted", "eap_ig 5", "eap_ig 20")
    },
    "eap_ig_activations 5": METHODS["eap_ig_activations 5"],
}


def main() -> None:
    """Measure and print the tables."""
    options = _options()
    torch.set_num_threads(1)  # matrices this small only lose by more
    found = {"random": _random_models(options.seeds)}
    for what, cases in (("planted", PLANTED), ("saturated", SATURATED)):
        variants = ("-grouped", "-rms") if options.quick else ()
        names = [name for name in cases if not any(v in name for v in variants)]
        found[what] = _planted(what, {name: cases[name] for name in names})
    if options.out:
        rows = {name: table.to_dict("records") for name, table in found.items()}
        options.out.write_text(json.dumps(rows, indent=2))


def _random_models(seeds: int) -> pd.DataFrame:
    """One row a model, seed and method."""
    rows = []
    for kind, build in MODELS.items():
        started = time.perf_counter()
        for seed in range(seeds):
            model = ms.load_model(build(seed), selfcheck=False)
            pairs = _pairs(model, seed)
            exact = ms.exact_edges(model, pairs, ms.logit_diff, progress=False)
            want = exact.table["score"].to_numpy()
            settled = ms.eap_ig(model, pairs, ms.logit_diff, steps=MOST)
            last = settled.table["score"].to_numpy()
            for name, method in METHODS.items():
                scores = method(model, pairs, ms.logit_diff)
                got = scores.table["score"].to_numpy()
                off = np.abs(got - want).sum()
                row = {"model": kind, "seed": seed, "method": name}
                row["edges"] = len(want)
                row["spearman"] = ms.rank_correlation(scores, exact)
                row["spearman_abs"] = ms.rank_correlation(scores, exact, by="abs")
                row["error"] = off / np.abs(want).sum()
                row["unsettled"] = np.abs(got - last).sum() / np.abs(last).sum()
                rows.append(row)
        table = pd.DataFrame([row for row in rows if row["model"] == kind])
        print(
            f"\n{kind}: {table['edges'].iloc[0]} edges, {seeds} seeds, {PROMPTS} pairs "
            f"of {TOKENS} tokens ({time.perf_counter() - started:.0f} s)\n"
        )
        _print_means(table)
    return pd.DataFrame(rows)


def _print_means(table: pd.DataFrame) -> None:
    columns = {
        "spearman": "Spearman",
        "spearman_abs": "Spearman of size",
        "error": "relative error",
    }
    print(f"| method | {' | '.join(columns.values())} |\n|-|-|-|-|")
    for name in METHODS:
        mine = table[table["method"] == name]
        cells = [_mean(mine[column].to_numpy()) for column in columns]
        print(f"| {name} | {' | '.join(cells)} |")
    by_seed = table.pivot(index="seed", columns="method", values="spearman")
    for name in ("eap_ig 5", "eap_ig_activations 5"):
        gap = (by_seed["eap"] - by_seed[name]).to_numpy()
        wins = f"{(gap > 0).sum()} of {len(gap)} seeds"
        print(f"\nSpearman, eap less {name}: {_mean(gap)}; above 0 in {wins}")
    far: Any = table.groupby("method")["unsettled"].mean()
    few = ", ".join(f"{m} steps {far[f'eap_ig {m}']:.3f}" for m in STEPS[:-1])
    print(f"\neap_ig, L1 distance to {MOST} steps over its size: {few}", flush=True)


def _mean(values: np.ndarray) -> str:
    """Mean and 95 % Student-t interval over seeds."""
    n, mean = len(values), values.mean()
    reach = stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n)
    return f"{mean:.3f} [{mean - reach:.3f}, {mean + reach:.3f}]"


def _planted(what: str, cases: Mapping[str, Callable[..., Planted]]) -> pd.DataFrame:
    """One row a case and method."""
    rows = []
    for name, build in cases.items():
        case = build(n_prompts=40).double()
        model = ms.load_model(case.model, name=name)
        pairs = ms.PromptPairs(case.clean, case.corrupted, case.answers, case.wrong)
        for method, call in ON_PLANTED.items():
            auroc = ms.edge_auroc(call(model, pairs, ms.logit_diff), case.edges)
            rows.append({"case": name, "method": method, "auroc": auroc})
    table = pd.DataFrame(rows)
    wide = table.pivot(index="case", columns="method", values="auroc")
    print(f"\nEdge AUROC, {what} circuits\n")
    print(f"| case | {' | '.join(ON_PLANTED)} |\n|-{'|-' * len(ON_PLANTED)}|")
    for name in cases:
        cells = [f"{wide.loc[name, method]:.3f}" for method in ON_PLANTED]
        print(f"| {name} | {' | '.join(cells)} |")
    lowest = [f"{wide[method].min():.3f}" for method in ON_PLANTED]
    print(f"| lowest of {len(cases)} | {' | '.join(lowest)} |")
    whole = [f"{(wide[method] == 1).sum()}" for method in ON_PLANTED]
    print(f"| cases at 1 | {' | '.join(whole)} |", flush=True)
    return table


def _pairs(model: ms.Model, seed: int) -> ms.PromptPairs:
    """Random tokens, half of each pair's differ; answers are what the model says."""
    drawn = torch.Generator().manual_seed(seed)
    clean, other = torch.randint(
        3, VOCABULARY, (2, 20 * PROMPTS, TOKENS), generator=drawn
    )
    differs = torch.arange(TOKENS) % 2 == 1
    corrupted = torch.where(differs, other, clean)
    says = [model.run(x).logits[:, -1].argmax(-1) for x in (clean, corrupted)]
    kept = (says[0] != says[1]).nonzero()[:PROMPTS, 0]
    assert len(kept) == PROMPTS
    rows = [t[kept] for t in (clean, corrupted, *says)]
    return ms.PromptPairs(*rows, pad=-1)


def _toy(seed: int) -> Any:
    config = ToyConfig(d_vocab=VOCABULARY, n_layers=3, n_heads=4, d_model=32, d_head=8,
                       d_mlp=48)  # fmt: skip
    return _spread(ToyTransformer(config, seed).double(), seed)


def _gpt2(seed: int) -> Any:
    config = hf.GPT2Config(n_embd=32, n_layer=3, n_head=4, vocab_size=VOCABULARY,
                           n_positions=16, bos_token_id=1, eos_token_id=2)  # fmt: skip
    return _spread(hf.GPT2LMHeadModel(config).double().eval(), seed)


def _llama(seed: int) -> Any:
    """Grouped keys, RMSNorm (whose scale the family computes in float32), SwiGLU."""
    config = hf.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, vocab_size=VOCABULARY,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return _spread(hf.LlamaForCausalLM(config).double().eval(), seed)


def _spread(model: Any, seed: int) -> Any:
    """Matrices of standard deviation .25, so that heads and MLPs matter."""
    drawn = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.25, generator=drawn)
    return model


MODELS = {"toy (LayerNorm, ReLU)": _toy, "GPT-2": _gpt2, "Llama, grouped keys": _llama}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="plain planted cases only")
    parser.add_argument("--out", type=Path, help="write every figure as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
