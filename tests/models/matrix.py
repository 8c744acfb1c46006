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
from tests.models import vision
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
SEEING = ("llava", "qwen2_vl")

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


VISION_HEAD = """
Vision-language models, with an image's four tokens in the prompt
(`model.with_inputs(tokens, pixel_values=...)`):

- span: `ms.span_attention` to the image's tokens (`ms.image_span`) against patterns.
- edit: `ms.hide_span` of the image in one layer, against z made by hand.

"""


def row(family: str) -> dict[str, str]:
    """One family's line."""
    own = tiny(family)
    found, models = _loaded(family, own)
    model = models[0]
    found |= _measured(models, TOKENS)
    missing = sorted(set(AXES) - model.shape.sites)
    found["no"] = ", ".join(missing) or "-"
    return found


def vision_row(family: str) -> dict[str, str]:
    """One vision-language family's line, its image in the prompt."""
    if family == "llava":
        own, image = vision.llava()
        inputs, tokens = {"pixel_values": image}, vision.PROMPTS
    else:
        own, inputs, one = vision.qwen2_vl()
        tokens = torch.cat([one, one])
        tokens[1, -2] = 8
    found, models = _loaded(family, own)
    bound = [model.with_inputs(tokens, **inputs) for model in models]
    found |= _measured(bound, tokens)
    found["span"] = _cell("sinks", lambda: span(bound[0], tokens))
    found["edit"] = _cell("sinks", lambda: hidden(bound[0], tokens))
    return found


def _loaded(family: str, own: Any) -> tuple[dict[str, str], list[Any]]:
    """Both backends' self-checks, and the models that passed."""
    found: dict[str, str] = {"family": family, "class": type(own).__name__}
    models: list[Any] = []
    for kind in (BridgeModel, TraceModel):
        model = kind(own, name=family)
        name = model.backend.replace("_", " ")
        try:
            ok = selfcheck(model).ok
            models.append(model)
            found[name] = "ok" if ok else "**wrong**"
        except Exception as error:
            found[name] = _why(error)
    return found, models


def _measured(models: list[Any], tokens: Tensor) -> dict[str, str]:
    model, found = models[0], {}
    two = len(models) == 2
    found["backends"] = (
        _cell("backends", lambda: agree(*models, tokens)) if two else "-"
    )
    found["sweep"] = _cell("sweep", lambda: sweep(model, tokens))
    found["logits"] = _cell("logits", lambda: logits(model, tokens))
    found["edges"] = _cell("edges", lambda: edges(model, tokens))
    found["sinks"] = _cell("sinks", lambda: sinks(model, tokens))
    return found


def page(rows: list[dict[str, str]], seeing: list[dict[str, str]]) -> str:
    """The whole page."""
    import pandas as pd

    tables = [markdown(pd.DataFrame(lines)) + "\n" for lines in (rows, seeing)]
    return HEAD + tables[0] + VISION_HEAD + tables[1]


def agree(one: Model, other: Model, tokens: Tensor) -> float:
    """Largest difference of logits and shared sites."""
    names = one.shape.sites & other.shape.sites - {"attn_scores"}
    sites = [site for name in sorted(names) for site in one.shape.all_sites(name)]
    a, b = (model.run(tokens, read=sites) for model in (one, other))
    return max(_off(a.logits, b.logits), *(_off(a.cache[s], b.cache[s]) for s in sites))


def pairs_of(tokens: Tensor) -> ms.PromptPairs:
    """The first prompt clean, the second corrupted."""
    return ms.PromptPairs(
        tokens[:1], tokens[1:], answers=torch.tensor([5]), wrong=torch.tensor([9])
    )


def sweep(model: Model, tokens: Tensor) -> float:
    """The wave against one run a place."""
    pairs = pairs_of(tokens)
    wave, cells = (
        ms.patch_sweep(model, pairs, ms.logit_diff, engine=engine, progress=False)
        for engine in ("wave", "cells")
    )
    values = [torch.tensor(r.table["value"].to_numpy()) for r in (wave, cells)]
    return _off(*values)


def logits(model: Model, tokens: Tensor) -> float:
    """Parts against the whole."""
    found = ms.logit_attribution(model, pairs_of(tokens))
    values = found.table["value"]
    return float(abs(values.sum() - found.whole[0]) / values.abs().max())


def edges(model: Model, tokens: Tensor) -> float:
    """Edges with one end that nothing else reaches, against plain runs."""
    found = ms.exact_edges(model, pairs_of(tokens), ms.logit_diff)
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
    clean, corrupted = tokens.split(1)
    whole = _gap(model.run(clean).logits)
    want, got = [], []
    for edge, site in exchanged.items():
        value = model.run(corrupted, read=[site]).cache[site]
        run = model.run(clean, edit={site: lambda x, value=value: value})
        want.append(whole - _gap(run.logits))
        got.append(float(score[edge]))
    return _off(torch.tensor(got), torch.tensor(want))


def sinks(model: Model, tokens: Tensor) -> float:
    """Scores of position 0 against whole patterns."""
    table = ms.sink_scores(model, tokens).table
    got = torch.tensor(
        table.sort_values(["batch", "layer", "head"])["score"].to_numpy()
    )
    sites = model.shape.all_sites("pattern")
    run = model.run(tokens, read=sites)
    patterns = torch.stack([run.cache[site] for site in sites], dim=1)
    return _off(got, patterns[..., 0].mean(-1).flatten().double())


def span(model: Model, tokens: Tensor) -> float:
    """Attention to the image's tokens against whole patterns."""
    image = list(ms.image_span(model, tokens))
    table = ms.span_attention(model, tokens, image).table
    got = torch.tensor(table.sort_values(["batch", "layer", "head"])["mass"].to_numpy())
    sites = model.shape.all_sites("pattern")
    run = model.run(tokens, read=sites)
    patterns = torch.stack([run.cache[site] for site in sites], dim=1)
    after = patterns[..., max(image) + 1 :, image].sum(-1).mean(-1)
    return _off(got, after.flatten().double())


def hidden(model: Model, tokens: Tensor) -> float:
    """Hiding the image in a layer against z put there, made of the pattern by hand."""
    image, at = list(ms.image_span(model, tokens)), Site("z", 1)
    read = [Site("pattern", 1), Site("v", 1)]
    run = model.run(tokens, read=read)
    pattern, v = (run.cache[site].clone() for site in read)
    pattern[..., max(image) + 1 :, image] = 0
    pattern = pattern / pattern.sum(-1, keepdim=True)
    v = v.repeat_interleave(model.shape.n_heads // model.shape.n_kv_heads, 2)
    z = torch.einsum("bhqk,bkhd->bqhd", pattern, v)
    want = model.run(tokens, edit={at: lambda x: z}).logits
    edit = {Site("pattern", 1): ms.hide_span(image)}
    return _off(model.run(tokens, edit=edit).logits, want)


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
    rows = [row(family) for family in (*FAMILIES, *MORE)]
    PAGE.write_text(page(rows, [vision_row(family) for family in SEEING]))
