"""What a wrapped model proves about itself before it is used.

Hooks can resolve and never fire, edits can be discarded, an attention output can
already hold the residual: each has given wrong numbers in silence in other tools.
A few forward passes on a short prompt rule them out.
"""

import dataclasses
import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from mechsink.models.any_model import any_model
from mechsink.run import Model, ModelShape, Run
from mechsink.sites import Site

N_POS = 6


class SelfCheckError(RuntimeError):
    """A wrapped model does not do what its hooks promise.

    Examples:
        >>> try:
        ...     ms.selfcheck(ms.planted("induction").model).require("my model")
        ... except ms.SelfCheckError as error:
        ...     print(error)
        ... else:
        ...     print("all checks passed")
        all checks passed
    """


@dataclass(frozen=True, eq=False)
class SelfCheck:
    """Outcome of `selfcheck`.

    `table`: check, layer (-1 for the whole model), error, allowed, ok. Errors are
    largest absolute differences over the largest absolute value, no unit.
    """

    table: pd.DataFrame

    @property
    def ok(self) -> bool:
        """Whether every check passed."""
        return bool(self.table["ok"].all())

    def require(self, name: str) -> None:
        """Raise SelfCheckError naming the checks that failed, where, by how much."""
        if self.ok:
            return
        rows: list[dict[str, Any]] = self.table.to_dict(orient="records")
        failed = [row for row in rows if not row["ok"]]
        # Layers first: the earliest is where to look, the whole model only follows.
        failed.sort(key=lambda row: (row["layer"] < 0, row["layer"]))
        lines = [
            f"  {row['check']}"
            + (f", layer {row['layer']}" if row["layer"] >= 0 else "")
            + f": off by {row['error']:.2g}, allowed {row['allowed']:.2g}"
            for row in failed
        ]
        raise SelfCheckError(
            f"{name} failed its self-check, so its numbers could be wrong:\n"
            + "\n".join(lines[:8])
            + "\nCheck that the weights are finite and the versions of transformers "
            "and transformer-lens are those of constraints.txt; to look into it, load "
            "the model with selfcheck=False and call ms.selfcheck(model)."
        )


@any_model
def selfcheck(model: Model) -> SelfCheck:
    """Check a model's hooks on a short prompt, without raising.

    Identity edits change no logit; pattern rows sum to 1; resid_pre + attn_out +
    mlp_out = resid_post at each layer, which is the next one's resid_pre; every
    site that the model claims fires; for wrapped models, z is the pattern times v, and
    logits equal the unwrapped model's.

    Args:
        model: as `load_model` gives it.

    Returns:
        A `SelfCheck`: `table` with check, layer (-1 for the whole model), error,
        allowed (largest absolute difference over the largest absolute value, no unit)
        and ok; and `ok`, whether all passed.

    Examples:
        >>> found = ms.selfcheck(ms.planted("induction").model)
        >>> found.ok, list(found.table)
        (True, ['check', 'layer', 'error', 'allowed', 'ok'])
    """
    plain = getattr(getattr(model, "plain", None), "model", None)
    with torch.no_grad():
        run = unchecked_run(model)
        return selfcheck_run(model.shape, run, plain, model.device)


def selfcheck_run(
    shape: ModelShape,
    run: Callable[..., Run],
    plain: Any,
    device: torch.device,
) -> SelfCheck:
    """The checks of `selfcheck` on a bare run function."""
    tokens = probe_tokens(shape, device)
    sites = [site for name in sorted(shape.sites) for site in shape.all_sites(name)]
    base = run(tokens, read=sites)
    # Norms and softmax pass through float32 in most families, float64 models too.
    eps = max(torch.finfo(t).eps for t in (base.logits.dtype, torch.float32))
    allowed = min(200 * eps, 0.02)  # the upper end is for half precision
    rows: list[tuple[str, int, float, float]] = []

    edits = {site: torch.clone for site in sites if site.name not in shape.read_only}
    edited = run(tokens, edit=edits).logits
    rows.append(("identity edits", -1, _off(edited, base.logits), allowed))
    if plain is not None:
        unwrapped = plain(tokens, use_cache=False).logits
        rows.append(
            (
                "logits of the unwrapped model",
                -1,
                _off(base.logits, unwrapped),
                10 * allowed,
            )
        )

    for layer in range(shape.n_layers):
        at = {name: base.cache[Site(name, layer)] for name in shape.sites}
        # A toy says itself that its operator's rows need not sum to anything.
        if "pattern" in at and (shape.rows_sum_to_1 or plain is not None):
            sums = at["pattern"].sum(-1)
            # A learned sink logit takes a share of each row; nothing may exceed 1.
            over = sums if shape.rows_sum_to_1 else sums.clamp(min=1)
            rows.append(
                (
                    "pattern rows sum to 1",
                    layer,
                    _off(over, torch.ones_like(over)),
                    allowed,
                )
            )
        if plain is not None and {"pattern", "v", "z"} <= shape.sites:
            values = at["v"].repeat_interleave(shape.n_heads // shape.n_kv_heads, 2)
            mixed = torch.einsum(
                "bhqk,bkhd->bqhd", at["pattern"].to(values.dtype), values
            )
            off = _off(at["z"], mixed)
            rows.append(("z is pattern times v", layer, off, 10 * allowed))
        if {"resid_pre", "attn_out", "mlp_out", "resid_post"} <= shape.sites:
            total = at["resid_pre"] + at["attn_out"] + at["mlp_out"]
            rows.append(
                (
                    "resid_pre + attn_out + mlp_out = resid_post",
                    layer,
                    _off(total, at["resid_post"]),
                    10 * allowed,
                )
            )
        if layer and {"resid_pre", "resid_post"} <= shape.sites:
            before = base.cache[Site("resid_post", layer - 1)]
            rows.append(
                (
                    "resid_pre is the layer before's resid_post",
                    layer,
                    _off(at["resid_pre"], before),
                    allowed,
                )
            )
    table = pd.DataFrame(rows, columns=["check", "layer", "error", "allowed"])
    # Written so that a NaN fails.
    return SelfCheck(table.assign(ok=table["error"] <= table["allowed"]))


def available_sites(
    shape: ModelShape, run: Callable[..., Run], device: torch.device
) -> ModelShape:
    """Keep the sites that fire in every layer, and find those that refuse edits.

    A site of another shape than it should have is none: experts have no one mlp_post.

    `run(shape, tokens, read=, edit=, on_read=, must_fire=)` is the backend's own.
    """
    tokens = probe_tokens(shape, device)
    fired: dict[str, int] = dict.fromkeys(shape.sites, 0)
    first: dict[str, Tensor] = {}

    def on_read(site: Site, value: Tensor) -> None:
        if tuple(value.shape) == shape.size(site, *tokens.shape):
            fired[site.name] += 1
        first.setdefault(site.name, value)

    sites = [site for name in shape.sites for site in shape.all_sites(name)]
    base = run(shape, tokens, read=sites, on_read=on_read, must_fire=False).logits
    have = {name for name, n in fired.items() if n == shape.n_layers}
    sums_to_1 = True
    if {"pattern", "attn_scores"} <= have:
        pattern, scores = first["pattern"].float(), first["attn_scores"].float()
        sums_to_1 = bool(pattern.sum(-1).sub(1).abs().max() < 1e-2)
        from_scores = scores.softmax(-1) * pattern.sum(-1, keepdim=True)
        if _off(from_scores, pattern) > 1e-2:
            have.discard("attn_scores")  # some families hand out the pattern there
    kept = dataclasses.replace(shape, sites=frozenset(have), rows_sum_to_1=sums_to_1)

    read_only = set()
    for name in {"pattern", "attn_scores"} & have:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the backend's own word on a discard
            edit = {Site(name, 0): lambda x: x.roll(1, dims=-1) + 0.5}
            edited = run(kept, tokens, edit=edit).logits
        if torch.equal(edited, base):
            read_only.add(name)
    return dataclasses.replace(kept, read_only=frozenset(read_only))


def unchecked_run(model: Model) -> Callable[..., Run]:
    """A model's run on probes, whose tokens may happen to stand for an image's."""
    own = getattr(model, "run_sites", None)
    return model.run if own is None else functools.partial(own, model.shape)


def probe_tokens(shape: ModelShape, device: torch.device) -> Tensor:
    """Two short prompts spread over the vocabulary."""
    n_pos = min(N_POS, shape.n_ctx)
    spread = torch.arange(2 * n_pos, device=device) * 7919 % shape.d_vocab
    return spread.reshape(2, n_pos)


def _off(got: Tensor, want: Tensor) -> float:
    scale = want.abs().max().clamp(min=1e-30)
    return float((got - want).abs().max() / scale)
