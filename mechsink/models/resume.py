"""Exact continuation of a run from a layer and a position.

The model's own blocks are replayed on the changed rows alone, with the earlier
positions' keys and values read from the base run: no family is reimplemented.
The sweep engine rests on it.
"""

from typing import Any

from jaxtyping import Int
from torch import Tensor

from mechsink.models.continuation import BaseRun, CannotContinueError
from mechsink.models.plain import PlainModel
from mechsink.models.remote import RemoteModel
from mechsink.models.replay_blocks import hugging_face_base
from mechsink.models.replay_toy import toy_base
from toy_tasks.transformer import ToyTransformer


def base_run(model: Any, tokens: Int[Tensor, "batch pos"]) -> BaseRun:
    """Run a model once so that it can be continued.

    Args:
        model: a BridgeModel (any family that keeps a key-value cache) or ToyModel.
        tokens: the prompts, of one length.

    Raises:
        CannotContinueError: the model's blocks can't be replayed (a ValueError).
    """
    tokens = tokens.to(model.device)
    if isinstance(getattr(model, "toy", None), ToyTransformer):
        return toy_base(model.toy, tokens)
    if isinstance(getattr(model, "plain", None), PlainModel):
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
