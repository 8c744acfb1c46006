"""`logit_lens`: what each layer would answer, were it the last.

Source: nostalgebraist 2020, "interpreting GPT: the logit lens".
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechsink import plotting
from mechsink.attribution.contributions import run_at
from mechsink.attribution.logits import batches, place
from mechsink.models.any_model import any_model
from mechsink.models.wiring import wiring
from mechsink.plotting import Axes
from mechsink.prompts import PromptPairs, TokenPairs
from mechsink.provenance import provenance
from mechsink.results import Result
from mechsink.run import Model
from mechsink.sites import Site

Shown = Literal["logit_diff", "answer_logit", "answer_prob", "answer_rank", "top_prob"]


@dataclass(frozen=True, eq=False)
class LogitLens(Result):
    """What the unembedding says at each layer, one row a prompt, position and place.

    `table`: prompt, pos, layer, site, then
      logit_diff: answer minus wrong, and answer_logit, in logits;
      answer_prob: the answer's probability, 0 to 1; answer_rank: 1 is the most
        probable token;
      top_token, top_id, top_prob: the most probable token;
      entropy: of the distribution, nats.
    The answer's columns are NaN where no answer was given. The last place is the
    model's own output. `site`: "resid_pre" of layer 0, then "resid_post" of every
    layer, with "resid_mid" between where it was asked for.

    Attributes:
        positions: as given; negative: from the end.

    Examples:
        >>> case = ms.planted("induction")
        >>> read = ms.logit_lens(case.model, case.pairs)
        >>> read.table.groupby(["layer", "site"]).answer_prob.mean().round(2).to_dict()
        {(0, 'resid_post'): 0.08, (0, 'resid_pre'): 0.08, (1, 'resid_post'): 0.99}
        >>> ax = read.plot()
    """

    positions: list[int]

    def plot(self, ax: Axes | None = None, column: Shown | None = None) -> Axes:
        """A column by layer, its mean over prompts thick, each prompt thin.

        One prompt at several positions: the most probable tokens, layer by position.

        Args:
            ax: where to draw; default: a new figure.
        """
        n_prompts, n_pos = (len(set(self.table[c])) for c in ("prompt", "pos"))
        if column is None and n_prompts == 1 and n_pos > 1:
            return self._tokens(ax)
        if column is None:
            has_answer = bool(np.isfinite(self.table["answer_prob"].to_numpy()).any())
            column = "answer_prob" if has_answer else "top_prob"
        rows = self.table.assign(depth=self._depth())
        each = rows.pivot_table(index="depth", columns=["prompt", "pos"], values=column)
        with plotting.theme():
            ax = ax or plotting.new_axes()
            if each.shape[1] > 1:
                ax.plot(each.index, each.to_numpy(), color="0.8", linewidth=0.6)
            ax.plot(each.index, each.mean(axis=1))
            if column == "answer_rank":
                ax.set_yscale("log")
            ax.set(xlabel="layers that have run", ylabel=column.replace("_", " "))
            plotting.whole_numbers(ax.xaxis)
            return ax

    def _depth(self) -> list[int | float]:
        """Layers that have run, of each row."""
        places = zip(self.table["layer"], self.table["site"], strict=True)
        return [layer + _DEPTH[site] for layer, site in places]

    def _tokens(self, ax: Axes | None) -> Axes:
        rows = self.table.assign(layers=self._depth())
        grid = rows.pivot(index="layers", columns="pos", values="top_prob")
        names = rows.pivot(index="layers", columns="pos", values="top_token")
        with plotting.theme():
            height = 0.6 + 0.16 * len(grid)
            ax = ax or plotting.new_axes(0.9 + 0.55 * grid.shape[1], max(2.0, height))
            label = "its probability"
            plotting.heat_map(ax, grid, label, limits=(0.0, 1.0))
            for y, x in ((y, x) for y in range(len(grid)) for x in range(len(grid.T))):
                colour = "white" if grid.iloc[y, x] > 0.5 else "black"
                text = plotting.literal(names.iloc[y, x].strip(), 8)
                ax.text(x, y, text, color=colour, ha="center", va="center", size=5)
            ax.set(xlabel="position", ylabel="layers that have run")
            ax.set_title("most probable token")
            return ax


_DEPTH = {"resid_pre": 0, "resid_mid": 0.5, "resid_post": 1}
"""Layers that have run, less the number of the layer."""


@any_model
def logit_lens(
    model: Model,
    prompts: PromptPairs | Int[Tensor, "prompt pos"],
    *,
    positions: Sequence[int] = (-1,),
    mid: bool = False,
) -> LogitLens:
    """Read the residual stream of every layer through the final norm and unembedding.

    The norm divides by the scale of the residual at hand, not by that of the last
    layer, so parts of it do not add up (`logit_attribution` is for that). Soft cap and
    logit scale are applied as the model does.

    Args:
        model: any model whose weights are at hand.
        prompts: pairs, whose clean prompts are run, with or without answers; or
            tokens.
        positions: where to read; default the last token. Answers follow the last.
        mid: also between attention and MLP.

    Returns:
        A `LogitLens`, one row a prompt, position and layer.

    Raises:
        ValueError: a position outside a prompt; mid in a model of parallel blocks; or
            as `wiring`.

    Source: nostalgebraist 2020, "interpreting GPT: the logit lens".

    Examples:
        >>> model = ms.planted("induction").model
        >>> read = ms.logit_lens(model, model.to_tokens("A B C A"))
        >>> read.table[["layer", "site", "top_token"]].values.tolist()
        [[0, 'resid_pre', 'A'], [0, 'resid_post', 'A'], [1, 'resid_post', 'B']]
    """
    started = time.perf_counter()
    if not isinstance(prompts, PromptPairs):
        prompts = PromptPairs(prompts, prompts)
    groups = replace(prompts, corrupted=prompts.clean).tokens(model)
    if not positions:
        raise ValueError("logit_lens: positions=() names no position; (-1,) is usual.")
    n_layers = model.shape.n_layers
    sites = [Site("resid_pre", 0)]
    for layer in range(n_layers):
        if mid:
            model.shape.check(Site("resid_mid", layer))
            sites.append(Site("resid_mid", layer))
        sites.append(Site("resid_post", layer))
    unembed = wiring(model).unembed
    tables: list[pd.DataFrame] = []
    for batch in batches(model, groups):
        at = [place("logit_lens", pos, batch.n_pos) for pos in positions]
        with torch.no_grad():
            seen = run_at(model, batch.clean, dict.fromkeys(sites, at))
            for n, site in enumerate(sites):
                found = _read(model, unembed(seen.cache[site]), batch)
                index = pd.MultiIndex.from_product(
                    [batch.index, at], names=["prompt", "pos"]
                ).to_frame(index=False)
                rows = index.assign(layer=site.layer, site=site.name, order=n)
                tables.append(pd.concat([rows, pd.DataFrame(found)], axis=1))
    table = pd.concat(tables, ignore_index=True)
    table = table.sort_values(["prompt", "pos", "order"], ignore_index=True)
    meta = provenance(
        model,
        [group.clean for group in groups],
        duration=time.perf_counter() - started,
        positions=list(positions),
        mid=mid,
    )
    return LogitLens(table.drop(columns="order"), meta, list(positions))


def _read(
    model: Model, logits: Float[Tensor, "batch pos vocab"], batch: TokenPairs
) -> dict[str, Any]:
    """Columns of one place, a value a prompt and position."""
    shape = logits.shape[:2]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logprobs = logits.log_softmax(-1)
    nothing = logits.new_full(shape, float("nan"))
    columns = dict.fromkeys(
        ("logit_diff", "answer_logit", "answer_prob", "answer_rank"), nothing
    )
    if batch.answers is not None:
        answers = batch.answers[:, None, None].expand(*shape, 1)
        mine = logits.gather(-1, answers)
        columns["answer_logit"] = mine[..., 0]
        columns["answer_prob"] = logprobs.gather(-1, answers)[..., 0].exp()
        columns["answer_rank"] = 1.0 + (logits > mine).sum(-1)
        if batch.wrong is not None:
            wrong = batch.wrong[:, None, None].expand(*shape, 1)
            columns["logit_diff"] = (mine - logits.gather(-1, wrong))[..., 0]
    top = logprobs.max(-1)
    ids = top.indices.flatten().cpu()
    spread = -(logprobs.exp() * logprobs).nan_to_num(0.0).sum(-1)
    return {
        **{name: x.double().flatten().cpu().numpy() for name, x in columns.items()},
        "top_token": model.to_strings(ids),
        "top_id": ids.numpy(),
        "top_prob": top.values.exp().double().flatten().cpu().numpy(),
        "entropy": spread.double().flatten().cpu().numpy(),
    }
