"""The loss of each text with one head edited, on the cheapest exact path.

A head's edit changes the residual stream from its own layer's output on: only the
later blocks run again. Where a model's attention can be watched, that is done on the
way, in memory linear in length (models/branches.py). Elsewhere all layers start from
the base run's stream, so that one pass gives the changed output of one head in every
layer at once.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechsink.interventions.attention_edits import move_to, zero_head
from mechsink.models.branches import Branch, Branches, HeadEdit
from mechsink.models.continuation import CannotContinueError
from mechsink.models.plain import PlainModel
from mechsink.models.resume import base_run
from mechsink.progress import bar
from mechsink.run import Edit, Model
from mechsink.sinks.dormant.texts import batches
from mechsink.sinks.measure import at_least_float32
from mechsink.sites import Site

Head = tuple[int, int]  # layer, head


@dataclass(frozen=True, eq=False)
class HeadLosses:
    """Mean next-token loss of each text, nats, with nothing and with a head edited.

    `edited`: edit name ("zeroed", "moved") to losses; an edit that the model does not
    allow is absent. `path`: how they were computed.
    """

    full: Float[np.ndarray, " text"]
    edited: dict[str, Float[np.ndarray, "text head"]]
    path: str


def head_losses(
    model: Model,
    tokens: Int[Tensor, "text pos"],
    heads: Sequence[Head],
    position: int = 0,
    progress: bool | None = None,
) -> HeadLosses:
    """Losses with each head zeroed, and with its attention moved to the sink.

    Args:
        model: any model.
        tokens: texts of one length, two tokens or more.
        heads: (layer, head), each edited alone.
        position: the sink.
        progress: show a bar; default on a terminal only.
    """
    edits = _edits(model, position)
    full, path = [], "continued"
    edited: dict[str, list[np.ndarray]] = {name: [] for name in edits}
    plain: Any = getattr(model, "plain", None)
    watched = isinstance(plain, PlainModel) and plain.attends
    watched = watched and not getattr(model, "inputs", None)  # an image's embeddings
    what = f"losses without {len(heads)} heads: texts"
    with torch.no_grad(), bar(what, len(tokens), progress) as advance:
        for rows in batches(model, tokens):
            try:
                if watched:
                    loss, found = _branched(plain, rows, heads, list(edits), position)
                else:
                    loss, found = _continued(model, rows, heads, edits)
            except CannotContinueError:
                loss, found = _whole_runs(model, rows, heads, edits)
                path = "whole runs"
            full.append(loss)
            for name, losses in found.items():
                edited[name].append(losses)
            advance(len(rows))
    joined = {name: np.concatenate(parts) for name, parts in edited.items()}
    return HeadLosses(np.concatenate(full), joined, path)


def token_losses(
    logits: Float[Tensor, "batch pos vocab"], tokens: Int[Tensor, "batch pos"]
) -> Float[np.ndarray, " batch"]:
    """Mean loss over the tokens that are predicted: all but the first, nats."""
    return (_summed(logits[:, :-1], tokens[:, 1:]) / (tokens.shape[1] - 1)).numpy()


def _summed(
    logits: Float[Tensor, "batch some vocab"], targets: Int[Tensor, "batch some"]
) -> Float[Tensor, " batch"]:
    """Summed loss of the targets, nats, in float64."""
    loss = torch.nn.functional.cross_entropy(
        at_least_float32(logits).flatten(0, 1),
        targets.flatten().long().to(logits.device),
        reduction="none",
    )
    return loss.reshape(len(targets), -1).double().sum(1).cpu()


def _edits(model: Model, position: int) -> dict[str, tuple[str, Edit]]:
    """Name of each possible edit, the site that it edits, and how."""
    shape = model.shape
    can = {n for n in ("z", "pattern") if n in shape.sites - shape.read_only}
    edits: dict[str, tuple[str, Edit]] = {}
    if "z" in can:
        edits["zeroed"] = ("z", torch.zeros_like)
    elif "pattern" in can:
        edits["zeroed"] = ("pattern", zero_head())
    if "pattern" in can:
        edits["moved"] = ("pattern", move_to(position))
    return edits


def _branched(
    plain: PlainModel,
    tokens: Int[Tensor, "batch pos"],
    heads: Sequence[Head],
    names: Sequence[str],
    position: int,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """What `_continued` gives, with no more than two residual streams held."""
    made: dict[str, HeadEdit] = {
        "zeroed": lambda z, v: torch.zeros_like(z),
        "moved": lambda z, v: torch.cat(
            [z[:, :position], v[:, position, None].expand_as(z[:, position:])], dim=1
        ),
    }
    branches = [Branch(*head, name) for head in dict.fromkeys(heads) for name in names]
    found = {name: np.full((len(tokens), len(heads)), np.nan) for name in names}
    full = np.empty(0)
    run = Branches(plain, tokens)
    for branch, stream in run.streams(branches, made):
        total = torch.zeros(len(tokens), dtype=torch.float64)
        for start, logits in run.logits(stream[:, :-1]):
            targets = tokens[:, start + 1 : start + 1 + logits.shape[1]]
            total += _summed(logits, targets)
        loss = (total / (tokens.shape[1] - 1)).numpy()
        if branch is None:
            full = loss
        else:
            same = [n for n, head in enumerate(heads) if head == branch.place]
            found[branch.edit][:, same] = loss[:, None]
    return full, found


def _continued(
    model: Model,
    tokens: Int[Tensor, "batch pos"],
    heads: Sequence[Head],
    edits: Mapping[str, tuple[str, Edit]],
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    base = base_run(model, tokens)
    tail = base.tail(0)
    full = token_losses(tail.logits(base.resid[-1]), tokens)
    found = {name: np.full((len(tokens), len(heads)), np.nan) for name in edits}
    for name, (place, change) in edits.items():
        for together in _one_a_layer(heads):
            edit: dict[Site, Edit] = {}
            for layer, head in together.values():
                stream = base.resid[layer]
                edit[Site("resid_pre", layer)] = lambda x, stream=stream: stream
                edit[Site(place, layer, head=head)] = change
            read = [Site("resid_post", layer) for layer, _ in together.values()]
            after = model.run(tokens, read=read, edit=edit).cache
            for number, (layer, _) in together.items():
                resid = after[Site("resid_post", layer)]
                for later in range(layer + 1, base.n_layers):
                    resid = tail.block(later, resid, None)
                found[name][:, number] = token_losses(tail.logits(resid), tokens)
    return full, found


def _whole_runs(
    model: Model,
    tokens: Int[Tensor, "batch pos"],
    heads: Sequence[Head],
    edits: Mapping[str, tuple[str, Edit]],
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    full = token_losses(model.run(tokens).logits, tokens)
    found = {}
    for name, (place, change) in edits.items():
        losses = []
        for layer, head in heads:
            edit = {Site(place, layer, head=head): change}
            losses.append(token_losses(model.run(tokens, edit=edit).logits, tokens))
        found[name] = np.stack(losses, axis=1)
    return full, found


def _one_a_layer(heads: Sequence[Head]) -> Iterator[dict[int, Head]]:
    """Heads by their number, in groups with at most one head of each layer."""
    left = dict(enumerate(heads))
    while left:
        group: dict[int, Head] = {}
        for number, (layer, head) in left.items():
            if all(layer != taken for taken, _ in group.values()):
                group[number] = (layer, head)
        yield group
        left = {n: head for n, head in left.items() if n not in group}
