"""Models that are served elsewhere: their skeletons, by hub id or nnsight model."""

import copy
import functools
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mechsink.models.from_files import (
    EMBEDDED,
    check_name,
    hub_answers,
    load_error,
    tokenizer_of,
)
from mechsink.models.remote import RemoteModel
from mechsink.models.remote_errors import require_key
from mechsink.run import Model


def load_remote(
    source: Any,
    remote: bool | str,
    tokenizer: Any,
    backend: str | None,
    device: str | torch.device | None,
    dtype: torch.dtype | None,
    revision: str | None,
    name: str | None,
    selfcheck: bool,
    trust_remote_code: bool,
) -> Model:
    """The skeleton of a model that is served elsewhere; arguments of `load_model`.

    Raises:
        ValueError, OSError: as `load_model`.
    """
    if backend not in (None, "nnsight") or device is not None or dtype is not None:
        raise ValueError(
            f"load_model: remote={remote!r} with backend={backend!r}, "
            f"device={device!r}, dtype={dtype!r}. A served model is reached through "
            "backend='nnsight' alone, on the server's device and in its dtype: leave "
            "them out."
        )
    require_key(remote)
    if is_nnsight(source):
        return RemoteModel(
            skeleton(source, tokenizer=tokenizer),
            tokenizer or getattr(source, "tokenizer", None),
            remote=remote,
            name=name or str(source.repo_id),
            selfcheck=selfcheck,
        )
    text = str(source)
    if isinstance(source, nn.Module) or text in EMBEDDED or Path(text).exists():
        what = type(source).__name__ if isinstance(source, nn.Module) else repr(text)
        raise ValueError(
            f"load_model: remote={remote!r} with {what}, which lies here. Served "
            "models are named by their hub id, for example "
            'ms.load_model("meta-llama/Llama-3.1-70B", remote=True).'
        )
    check_name(text)
    tokenizer = tokenizer or tokenizer_of(
        text,
        trust_remote_code=trust_remote_code,
        local_files_only=not hub_answers(),
        revision=revision or "main",
    )
    try:
        traced = skeleton(
            text,
            revision=revision,
            tokenizer=tokenizer,
            trust_remote_code=trust_remote_code,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise load_error(text, False, error) from error
    return RemoteModel(
        traced, tokenizer, remote=remote, name=name or text, selfcheck=selfcheck
    )


def skeleton(
    source: Any,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    tokenizer: Any = None,
) -> Any:
    """nnsight's model without weights, which asks its server for eager attention.

    Args:
        source: a hub id, whose configuration is read, or an nnsight model, of which a
            second one is made.
        revision, trust_remote_code: as for any hub model.
        tokenizer: None: its own is loaded if there is one. Left as it is.
    """
    from nnsight import TransformersModel

    task, options = "text-generation", {}
    if not isinstance(source, str):
        task, revision = getattr(source, "task", None) or task, source.revision
        tokenizer = tokenizer or source.tokenizer
        options, source = dict(source.kwargs), source.repo_id
    options.pop("attn_implementation", None)
    if trust_remote_code:
        options["trust_remote_code"] = True
    build = functools.partial(
        TransformersModel,
        source,
        task=task,
        revision=revision,
        tokenizer=copy.deepcopy(tokenizer),  # nnsight sets its padding
        **options,
    )
    eager = build(attn_implementation="eager")
    # Some families (Falcon) can't be switched: the server would refuse the wish.
    return eager if eager._module._can_set_attn_implementation() else build()


def is_nnsight(source: Any) -> bool:
    """Whether an object is one of nnsight's models."""
    return any(kind.__module__.startswith("nnsight.") for kind in type(source).__mro__)
