"""Exact continuation of a run from a layer and a position.

The model's own blocks are replayed on the changed rows alone, with the earlier
positions' keys and values read from the base run: no family is reimplemented.
The sweep engine rests on it.
"""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from mechsink.models.any_model import as_model
from mechsink.models.continuation import BaseRun, CannotContinueError
from mechsink.models.inputs import inputs_left_out
from mechsink.models.plain import Call, PlainModel, block_input, tensors_in
from mechsink.models.remote import RemoteModel
from mechsink.models.replay_blocks import hugging_face_base
from mechsink.models.replay_toy import toy_base
from toy_tasks.transformer import ToyTransformer


def base_run(model: Any, tokens: Int[Tensor, "batch pos"]) -> BaseRun:
    """Run a model once so that it can be continued.

    Args:
        model: any Hugging Face model that keeps a key-value cache, or a toy.
        tokens: the prompts, of one length.

    Returns:
        A `BaseRun`: keys and values of all layers, from which `tail` goes on.

    Raises:
        CannotContinueError: the model's blocks can't be replayed (a ValueError).

    Examples:
        >>> case = ms.planted("induction")
        >>> base = ms.base_run(case.model, case.pairs.clean)
        >>> base.n_layers, tuple(base.resid[0].shape)
        (2, (12, 10, 64))
    """
    model = as_model(model)
    tokens = tokens.to(model.device)
    if isinstance(getattr(model, "toy", None), ToyTransformer):
        return toy_base(model.toy, tokens)
    if isinstance(getattr(model, "plain", None), PlainModel):
        model.check_image(tokens)
        if model.inputs:
            return _with_inputs(model, hugging_face_base(model.plain, tokens))
        return hugging_face_base(model.plain, tokens)
    if isinstance(model, RemoteModel):
        raise CannotContinueError(
            model.refusal(
                "resume", 'ms.patch_sweep(..., engine="cells") runs each patch there.'
            )
        )
    raise CannotContinueError(
        f"resume: a {type(model).__name__} can't be continued, since its blocks are "
        "not at hand. Load it through ms.load_model."
    )


def _with_inputs(model: Any, base: BaseRun) -> BaseRun:
    """A bound model's run, if its image reaches the blocks as vectors alone.

    Where it also sets positions (Qwen2-VL), a run from the middle would lack them.
    """
    tail: Any = base.tail(0)
    seen = _beside_the_stream(tail._catch(1))
    with inputs_left_out():
        unseen = _beside_the_stream(tail._catch(1))
    if len(seen) != len(unseen) or not all(map(torch.equal, seen, unseen)):
        raise CannotContinueError(
            f"resume: in {type(model.plain.model).__name__} the image changes more "
            "than its tokens' vectors (their positions, say), so a run can't be "
            "continued from a position."
        )
    return base


def _beside_the_stream(calls: list[Call]) -> list[Tensor]:
    """Every tensor that blocks are called with, but the residual stream."""
    found: list[Tensor] = []
    for args, kwargs in calls:
        stream = block_input(args, kwargs)
        found += [x for x in tensors_in(args, kwargs) if x is not stream]
    return found
