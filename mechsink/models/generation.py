"""Generation token by token, with edits of attention in force all the way.

With a key-value cache the prompt is run once with its whole pattern, then one
query at a time: edits are handed [batch head 1 key]. Where a family's attention
code can't be entered, the whole text is run anew for each token and the edits are
handed the very same pieces, so that an edit means the same on every path.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechsink.models.any_model import any_model
from mechsink.models.edited import EDITABLE, edit_attention
from mechsink.models.hooks import SiteHooks, check_tokens, edited
from mechsink.models.hugging_face import HuggingFaceModel
from mechsink.models.plain import PlainModel
from mechsink.models.sampling import Sampler, greedy
from mechsink.models.toy import HOOKS
from mechsink.run import Edit, Model
from mechsink.sites import Site
from toy_tasks.transformer import ToyTransformer

Path = Literal["cached", "whole runs"]
Step = Callable[[Tensor], Tensor]  # more tokens to logits after the last of them
Edits = Mapping[Site, Edit]


@dataclass(frozen=True, eq=False)
class Generation:
    """Prompts with what was generated after them.

    `path` says how: "cached", one query at a time over cached keys and values, or
    "whole runs", the whole text anew for every token. `logits`, where asked for,
    are those that each new token was chosen by.

    Attributes:
        tokens: prompts and what was generated.
        n_prompt: length of the prompts.

    Examples:
        >>> model = ms.planted("induction").model
        >>> made = ms.generate(model, model.to_tokens("A B C A"), 2)
        >>> model.to_strings(made.new[0]), made.path
        (['B', 'C'], 'cached')
    """

    tokens: Int[Tensor, "batch pos"]
    n_prompt: int
    path: Path
    logits: Float[Tensor, "batch new vocab"] | None = None

    @property
    def new(self) -> Int[Tensor, "batch new"]:
        """The generated tokens alone."""
        return self.tokens[:, self.n_prompt :]


@any_model
def generate(
    model: Model,
    tokens: Int[Tensor, "batch pos"],
    n_new: int,
    *,
    edit: Edits | None = None,
    sampler: Sampler = greedy,
    keep_logits: bool = False,
) -> Generation:
    """Continue prompts by `n_new` tokens, with edits of `pattern` and `z`.

    Edits are addressed as in `model.run`. They are handed the prompt's pattern
    first, [batch head query key], then each later query's own row, [batch head 1
    key]; with head= the slices without the head axis; z likewise, [batch 1 head
    d_head]. Edits that change each row by itself so give what one run over all
    tokens gives. End-of-text tokens are not treated specially: cut there.

    Args:
        model: any model.
        tokens: prompts of one length.
        n_new: tokens to add to each.
        edit: site to edit, for this call only.
        sampler: `greedy` or `temperature(value, seed)`.
        keep_logits: return the logits of every step.

    Returns:
        A `Generation`: `tokens` Int[batch pos], prompts and what was added.

    Raises:
        ValueError: n_new under 1, a text longer than the model's context, an edit
            of another site or one that changes the shape, or a pattern that this
            family's own attention code lets nobody edit.

    Examples:
        >>> model = ms.planted("induction").model
        >>> tokens = model.to_tokens("A B C D A")
        >>> made = ms.generate(model, tokens, 3)
        >>> model.to_strings(made.tokens[0])
        ['<s>', 'A', 'B', 'C', 'D', 'A', 'B', 'C', 'D']
        >>> no_head = ms.on_heads(ms.zero_head(), [(1, 0)])
        >>> made = ms.generate(model, tokens, 3, edit=no_head)
        >>> model.to_strings(made.new[0])
        ['A', 'A', 'A']
    """
    edits = dict(edit or {})
    _check(model, tokens, n_new, edits)
    tokens = tokens.to(model.device)
    path, steps = _stepper(model, edits)
    texts, logits = [tokens], []
    with torch.no_grad(), steps as step:
        for _ in range(n_new):
            logits.append(step(texts[-1]))
            texts.append(sampler(logits[-1])[:, None].to(tokens))
    kept = torch.stack(logits, dim=1) if keep_logits else None
    return Generation(torch.cat(texts, dim=1), tokens.shape[1], path, kept)


def _check(model: Model, tokens: Tensor, n_new: int, edits: Edits) -> None:
    plain = getattr(model, "plain", None)
    limits = plain if isinstance(plain, PlainModel) else model.shape
    check_tokens(tokens, limits.d_vocab, limits.n_ctx)
    if isinstance(model, HuggingFaceModel):
        model.check_image(tokens)
    if n_new < 1 or tokens.shape[1] + n_new > limits.n_ctx:
        raise ValueError(
            f"generate: n_new={n_new} after {tokens.shape[1]} tokens. Allowed: 1 to "
            f"{limits.n_ctx - tokens.shape[1]}, since this model was made for "
            f"{limits.n_ctx} tokens. Shorten the prompt or generate less."
        )
    for site in edits:
        if site.name not in EDITABLE:
            raise ValueError(
                f"generate: an edit of {site}. While generating, these can be edited: "
                f"{', '.join(EDITABLE)}. For other sites generate first, then use "
                "model.run(generation.tokens, edit=...)."
            )
        model.shape.check(site)


def _stepper(
    model: Any, edits: Edits
) -> tuple[Path, contextlib.AbstractContextManager[Step]]:
    toy, plain = getattr(model, "toy", None), getattr(model, "plain", None)
    if isinstance(toy, ToyTransformer) and _is_rowwise(toy):
        return "cached", _cached_toy(toy, edits)
    if isinstance(plain, PlainModel) and (not edits or plain.attends):
        return "cached", _cached_plain(plain, edits)
    return "whole runs", _whole_runs(model, edits)


@contextlib.contextmanager
def _cached_plain(plain: PlainModel, edits: Edits) -> Iterator[Step]:
    from transformers import DynamicCache

    cache = DynamicCache()  # without a config: it keeps keys that left a window
    hooks = SiteHooks(edit=edits, home=plain.device)
    options: dict[str, Any] = {"past_key_values": cache, "use_cache": True}
    if "logits_to_keep" in inspect.signature(plain.model.forward).parameters:
        options["logits_to_keep"] = 1

    def step(tokens: Tensor) -> Tensor:
        with edit_attention(hooks.points(resid_mid_is_hook=True)):
            logits = plain.model(tokens, **options).logits[:, -1]
        hooks.check_all_fired()
        return logits

    yield step


@contextlib.contextmanager
def _cached_toy(toy: ToyTransformer, edits: Edits) -> Iterator[Step]:
    fresh: dict[Site, Tensor] = {}
    past: dict[int, tuple[Tensor, Tensor]] = {}
    config = toy.config
    layers = [n for n in range(config.n_layers) if config.has_attention(n)]
    reads = [Site(name, layer) for name in ("k", "v") for layer in layers]
    hooks = SiteHooks(reads, edits, on_read=fresh.__setitem__)

    n_run: list[int] = []

    def step(tokens: Tensor) -> Tensor:
        resid = toy.embed(tokens, sum(n_run))
        n_run.append(tokens.shape[1])
        for layer, block in enumerate(toy.blocks):
            resid = block(resid, past.get(layer))
            if layer in layers:
                k, v = fresh.pop(Site("k", layer)), fresh.pop(Site("v", layer))
                old = past.get(layer, (k[:, :0], v[:, :0]))
                past[layer] = torch.cat([old[0], k], 1), torch.cat([old[1], v], 1)
        hooks.check_all_fired()
        return toy.unembed(resid[:, -1:])[:, 0]

    handles = []
    try:
        for site, function in hooks.points(resid_mid_is_hook=True).items():
            point = toy.get_submodule(f"blocks.{site.layer}.{HOOKS[site.name]}")
            handles.append(
                point.register_forward_hook(
                    lambda module, args, out, function=function: function(out)
                )
            )
        yield step
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _whole_runs(model: Model, edits: Edits) -> Iterator[Step]:
    texts: list[Tensor] = []

    def step(tokens: Tensor) -> Tensor:
        texts.append(tokens)
        n_prompt = texts[0].shape[1]
        pieces = {s: by_steps(s, edit, n_prompt) for s, edit in edits.items()}
        return model.run(torch.cat(texts, dim=1), edit=pieces).logits[:, -1]

    yield step


def by_steps(site: Site, edit: Edit, n_prompt: int) -> Edit:
    """An edit of a whole run, handed the pieces that cached generation hands it.

    The prompt's own block first, then every later query with the keys up to it.

    Args:
        site: a `pattern` or `z`, with or without a head.
        edit: what runs on each piece.
        n_prompt: length of the prompt; the run may be longer.
    """

    def whole(x: Tensor) -> Tensor:
        new = x.clone()
        axis = next(n for n, name in enumerate(site.axes) if name in ("query", "pos"))
        start = 0
        for stop in range(n_prompt, x.shape[axis] + 1):
            piece: list[slice] = [slice(None)] * x.ndim
            piece[axis] = slice(start, stop)
            if site.name == "pattern":
                piece[-1] = slice(stop)
            new[tuple(piece)] = edited(site, edit, x[tuple(piece)]).to(x.dtype)
            start = stop
        return new

    return whole


def _is_rowwise(toy: ToyTransformer) -> bool:
    """Whether a query's keys do not depend on where the prompt ends."""
    config = toy.config
    return config.operators is None and all(
        config.carrier(n) in ("full", "self") for n in range(config.n_layers)
    )
