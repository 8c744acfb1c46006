"""Every family through every kind of measurement: the table of docs/families.md.

    python -m tests.models.matrix

Tiny random models built from configs, float32; errors are largest differences over the
largest value.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mechsink as ms
from mechsink.models.bridge import BridgeModel
from mechsink.models.selfcheck import selfcheck
from mechsink.models.trace import TraceModel
from mechsink.report.studies import markdown
from mechsink.run import Model
from mechsink.sites import AXES, Site
from tests.models.families import FAMILIES, MORE, tiny

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
ALLOWED = {
    "backends": 1e-5,
    "sweep": 2e-5,
    "logits": 1e-4,
    "edges": 1e-4,
    "sinks": 1e-4,
}
GENERATOR = torch.Generator().manual_seed(0)
TOKENS = torch.randint(3, 80, (2, 9), generator=GENERATOR)
PAIRS = ms.PromptPairs(
    TOKENS[:1], TOKENS[1:], answers=torch.tensor([5]), wrong=torch.tensor([9])
)

HEAD = """# Model families

Which families pass what, on tiny random models (3 layers, width 32, float32). Made by

    python -m tests.models.matrix

and held by a slow test. Errors are largest differences over the largest value.

- backends: TransformerLens and nnsight against each other, logits and every site.
- sweep: the wave engine against one whole run a place, `resid_pre`.
- logits: parts of `ms.logit_attribution` against the logit difference.
- edges: `ms.exact_edges` against runs with that one input exchanged.
- sinks: `ms.sink_scores`, in linear memory where a family lets it, against patterns.

What a backend cannot do it refuses by name; the other one may.

"""


def row(family: str) -> dict[str, str]:
    """One family's line."""
    own = tiny(family)
    found: dict[str, str] = {"family": family, "class": type(own).__name__}
    models: list[Model] = []
    for kind in (BridgeModel, TraceModel):
        model = kind(own, name=family)
        name = model.backend.replace("_", " ")
        try:
            ok = selfcheck(model).ok
            models.append(model)
            found[name] = "ok" if ok else "**wrong**"
        except Exception as error:
            found[name] = _why(error)
    model = models[0]
    backends = len(models) == 2
    found["backends"] = _cell("backends", lambda: agree(*models)) if backends else "-"
    found["sweep"] = _cell("sweep", lambda: sweep(model))
    found["logits"] = _cell("logits", lambda: logits(model))
    found["edges"] = _cell("edges", lambda: edges(model))
    found["sinks"] = _cell("sinks", lambda: sinks(model))
    missing = sorted(set(AXES) - model.shape.sites)
    found["no"] = ", ".join(missing) or "-"
    return found


def page(rows: list[dict[str, str]]) -> str:
    """The whole page."""
    import pandas as pd

    return HEAD + markdown(pd.DataFrame(rows)) + "\n"


def agree(one: Model, other: Model) -> float:
    """Largest difference of logits and shared sites."""
    names = one.shape.sites & other.shape.sites - {"attn_scores"}
    sites = [site for name in sorted(names) for site in one.shape.all_sites(name)]
    a, b = (model.run(TOKENS, read=sites) for model in (one, other))
    return max(_off(a.logits, b.logits), *(_off(a.cache[s], b.cache[s]) for s in sites))


def sweep(model: Model) -> float:
    """The wave against one run a place."""
    wave, cells = (
        ms.patch_sweep(model, PAIRS, ms.logit_diff, engine=engine, progress=False)
        for engine in ("wave", "cells")
    )
    values = [torch.tensor(r.table["value"].to_numpy()) for r in (wave, cells)]
    return _off(*values)


def logits(model: Model) -> float:
    """Parts against the whole."""
    found = ms.logit_attribution(model, PAIRS)
    values = found.table["value"]
    return float(abs(values.sum() - found.whole[0]) / values.abs().max())


def edges(model: Model) -> float:
    """Edges with one end that nothing else reaches, against plain runs."""
    found = ms.exact_edges(model, PAIRS, ms.logit_diff)
    score = found.table.set_index(["source", "target"])["score"]
    last = model.shape.n_layers - 1
    exchanged = {
        ("input", "a0.h1<q>"): Site("q", 0, head=1),
        (f"m{last}", "logits"): Site("mlp_out", last),
    }
    kv = model.shape.n_kv_heads < model.shape.n_heads
    for name in "kv":
        target = f"a0.{'kv' if kv else 'h'}0<{name}>"
        exchanged["input", target] = Site(name, 0, kv_head=0)
    clean, corrupted = TOKENS.split(1)
    whole = _gap(model.run(clean).logits)
    want, got = [], []
    for edge, site in exchanged.items():
        value = model.run(corrupted, read=[site]).cache[site]
        run = model.run(clean, edit={site: lambda x, value=value: value})
        want.append(whole - _gap(run.logits))
        got.append(float(score[edge]))
    return _off(torch.tensor(got), torch.tensor(want))


def sinks(model: Model) -> float:
    """Scores of position 0 against whole patterns."""
    table = ms.sink_scores(model, TOKENS).table
    got = torch.tensor(
        table.sort_values(["batch", "layer", "head"])["score"].to_numpy()
    )
    sites = model.shape.all_sites("pattern")
    run = model.run(TOKENS, read=sites)
    patterns = torch.stack([run.cache[site] for site in sites], dim=1)
    return _off(got, patterns[..., 0].mean(-1).flatten().double())


def _gap(logits: Tensor) -> float:
    return float(logits[0, -1, 5].double() - logits[0, -1, 9].double())


def _off(got: Tensor, want: Tensor) -> float:
    return float((got - want).abs().max() / want.abs().max().clamp(min=1e-30))


def _cell(name: str, measured: Callable[[], float]) -> str:
    try:
        off = measured()
    except ValueError as error:
        return _why(error)
    return f"{off:.0e}" if off <= ALLOWED[name] else f"**{off:.0e}**"


def _why(error: Any) -> str:
    return "no: " + str(error).split(":")[0]


if __name__ == "__main__":
    torch.set_num_threads(1)
    PAGE.write_text(page([row(family) for family in (*FAMILIES, *MORE)]))
