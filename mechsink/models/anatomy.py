"""How a Hugging Face model is built, read off its modules and its own code.

What nnsight needs to know before it can read a site; weights are never looked at, so
a model without any (on the meta device) will do.
"""

import functools
from collections.abc import Collection
from typing import Any

from torch import nn

from mechsink.models.places import (
    WHOLE,
    Heads,
    Place,
    attention_of,
    down_projection,
    places,
    weight_of,
)
from mechsink.models.plain import PlainModel
from mechsink.run import ModelShape

CALLED = ("attention_interface_1", "self__attn_0")
"""Calls in an attention's code that compute the pattern; BLOOM's has none of them."""


def text_config(model: Any) -> Any:
    """Its configuration, or that of a multimodal model's language part."""
    return model.config.get_text_config()


def heads_of(config: Any) -> Heads:
    """Numbers of heads, and their size, by a configuration."""
    n = config.num_attention_heads
    d = getattr(config, "head_dim", None) or config.hidden_size // n
    n_kv = getattr(config, "num_key_value_heads", None)
    if getattr(config, "new_decoder_architecture", False):  # Falcon's names
        n_kv = config.num_kv_heads
    elif getattr(config, "multi_query", False):
        n_kv = 1
    return Heads(n, n_kv or n, d)


def module_places(plain: PlainModel) -> list[Place]:
    """Every site that is a module's input or output, in the order of a block's run."""
    config = text_config(plain.model)
    factor = float(getattr(config, "residual_multiplier", None) or 1)
    return places(plain.blocks[0], heads_of(config), factor)


def with_pattern(found: list[Place], pattern: list[Place]) -> list[Place]:
    """All places in order: scores and pattern come before z."""
    at = next(i for i, place in enumerate(found) if "z" in place.parts)
    return found[:at] + pattern + found[at:]


def candidate_shape(
    plain: PlainModel, found: Collection[Place], is_parallel: bool
) -> ModelShape:
    """Sizes by the configuration, with every site that has a place."""
    config = text_config(plain.model)
    heads = heads_of(config)
    down = down_projection(plain.blocks[0])
    names = {name for place in found for name in place.parts}
    if not is_parallel:
        names.add("resid_mid")
    return ModelShape(
        n_layers=config.num_hidden_layers,
        n_heads=heads.n,
        n_kv_heads=heads.n_kv,
        d_model=config.hidden_size,
        d_head=heads.d,
        d_mlp=0 if down is None else weight_of(down).shape[0],
        d_vocab=plain.d_vocab,
        n_ctx=plain.n_ctx,
        sites=frozenset(names),
    )


def envoys_of(traced: Any, plain: PlainModel) -> Any:
    """nnsight's handles on the blocks of `plain.model`, which it wraps or mirrors."""
    paths = {id(module): name for name, module in plain.model.named_modules()}
    return functools.reduce(getattr, paths[id(plain.blocks)].split("."), traced)


def codes_of(block_envoy: Any, block: nn.Module) -> tuple[list[str], list[str]]:
    """Calls in an attention's code, and in what computes its pattern; in a trace.

    Each layer's code must be opened before it first runs: call it for all of them.
    """
    path, _ = attention_of(block)
    attention = functools.reduce(getattr, path, block_envoy)
    codes = _operations(attention.source)
    called = next((name for name in CALLED if name in codes), None)
    if called is None:
        return codes, []
    return codes, _operations(getattr(attention.source, called).source)


def pattern_places(
    plain: PlainModel, codes: list[str], inner: list[str]
) -> list[Place]:
    """Scores and pattern, inside the code that computes them (eager attention)."""
    path, _ = attention_of(plain.blocks[0])
    called = next((name for name in CALLED if name in codes), None)
    path = (*path, "source", *((called, "source") if called else ()))
    names = inner if called else codes
    second = bool(getattr(text_config(plain.model), "alibi", False))
    found = _softmax(names, second)
    if found is None:
        return []
    scores, pattern = found
    if called and "torch_cat_0" in names[: names.index(scores)]:
        scores = "torch_cat_0"  # GPT-OSS puts a learned logit beside them
    return [
        Place((*path, scores), "input", {"attn_scores": WHOLE}),
        Place((*path, pattern), "output", {"pattern": WHOLE}),
    ]


def _softmax(names: list[str], second: bool) -> tuple[str, str] | None:
    """The call that normalises scores, and the one that gives the pattern.

    The pattern is what dropout leaves, where there is dropout. Falcon's code has a
    branch without ALiBi and then one with it: `second`.
    """
    at = [i for i, name in enumerate(names) if "softmax" in name]
    if not at:
        return None
    which = 1 if second and len(at) > 1 else 0
    end = at[which + 1] if which + 1 < len(at) else len(names)
    branch = names[at[which] : end]
    return branch[0], next((name for name in branch if "dropout" in name), branch[0])


def _operations(source: Any) -> list[str]:
    """Names of the calls in a module's code, in order, as nnsight numbers them."""
    lines = str(source).splitlines()
    return [line.split("->")[0].strip() for line in lines if "->" in line]
