"""Images beside the tokens: a vision-language model bound to what it looks at.

Measurements know tokens alone. A bound model is given its image (whatever its processor
makes of one) once, and hands it to each of its forward passes, so that the image's
tokens are a span like any other.
"""

import hashlib
import inspect
from collections.abc import Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from mechsink.models.any_model import any_model
from mechsink.run import Model

OF_TOKENS = (
    "input_ids",
    "attention_mask",
    "position_ids",
    "token_type_ids",
    "mm_token_type_ids",
)
_left_out: ContextVar[bool] = ContextVar("mechsink_inputs_left_out", default=False)


def image_token(config: Any) -> int | None:
    """The token that stands where an image's vectors go; None for text models."""
    for name in ("image_token_id", "image_token_index"):
        found = getattr(config, name, None)
        if isinstance(found, int):
            return found
    return None


@any_model
def image_span(model: Model, tokens: Int[Tensor, "batch pos"]) -> tuple[int, ...]:
    """Positions of the image's tokens, the same in every prompt.

    Args:
        model: a vision-language model, bound to an image or not.
        tokens: its prompts, with the image's tokens in them.

    Returns:
        A span for `ms.span_attention`, `ms.span_sinks` and the span edits.

    Raises:
        ValueError: a model without image tokens, prompts without them, or with them
            at unlike positions.

    Examples:
        A vision-language model without its images; the image's token is 79:

        >>> import transformers as hf
        >>> sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=2,
        ...              num_attention_heads=2)
        >>> config = hf.LlavaConfig(
        ...     vision_config=hf.CLIPVisionConfig(**sizes, image_size=8, patch_size=4),
        ...     text_config=hf.LlamaConfig(**sizes, vocab_size=80),
        ...     image_token_id=79,
        ... )
        >>> model = ms.load_model(hf.LlavaForConditionalGeneration(config))
        >>> ms.image_span(model, torch.tensor([[1, 79, 79, 79, 79, 5]]))
        (1, 2, 3, 4)
    """
    token = getattr(model, "image_token", None)
    if token is None:
        raise ValueError(
            f"image_span: {model.name} has no image tokens (its configuration names "
            "no image_token_id). Mark a span of text by its positions: range(3, 9)."
        )
    is_image = tokens == token
    if not is_image[0].any() or not (is_image == is_image[:1]).all():
        counts = is_image.sum(1).tolist()
        raise ValueError(
            f"image_span: the prompts hold {counts} image tokens (id {token}), or hold "
            "them at unlike positions. Give prompts with the image at one place, as "
            "the model's processor writes them."
        )
    return tuple(int(pos) for pos in is_image[0].nonzero()[:, 0])


def check_image(tokens: Tensor, token: int | None, n: int, name: str) -> None:
    """Raise ValueError unless each prompt has no image token, or all of its image.

    `n`: tokens of the image that the model is bound to, 0 without one.
    """
    if token is None:
        return
    counts = (tokens == token).sum(-1)
    bad = counts[(counts != 0) & (counts != n)]
    if len(bad) and n == 0:
        raise ValueError(
            f"run: the prompt holds {int(bad[0])} image tokens (id {token}), but "
            f"{name} was given no image. Bind one: "
            "model.with_inputs(tokens, pixel_values=...)."
        )
    if len(bad):
        raise ValueError(
            f"run: the prompt holds {int(bad[0])} image tokens (id {token}), but the "
            f"image that {name} is bound to takes {n}. Allowed: {n}, or none to run "
            "without the image."
        )


def bind(model: Any, token: int, n: int, inputs: Mapping[str, Tensor]) -> None:
    """Let a Hugging Face model take `inputs` with every prompt that has n image tokens.

    `inputs` are of one prompt; each row of a batch gets the same.
    """

    takes = inspect.signature(model.base_model.forward).parameters

    def add(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tokens = args[0] if args else kwargs.get("input_ids")
        if tokens is None or _left_out.get():
            return None
        if not ((tokens == token).sum(-1) == n).all():
            return None
        rows = len(tokens)
        new = {
            name: value.to(tokens.device).repeat(rows, *[1] * (value.ndim - 1))
            for name, value in inputs.items()
            if kwargs.get(name) is None
        }
        if "mm_token_type_ids" in takes:  # Qwen2-VL's: which tokens are the image's
            new["mm_token_type_ids"] = (tokens == token).int()
        return args, {**kwargs, **new}

    # Not on the model around it: blocks are also run without the unembedding.
    model.base_model.register_forward_pre_hook(add, with_kwargs=True)


@contextmanager
def inputs_left_out():
    """Within, bound models run without their inputs: embeddings do not matter."""
    mark = _left_out.set(True)
    try:
        yield
    finally:
        _left_out.reset(mark)


def check_inputs(inputs: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    """Raise ValueError for what can't be bound to a model."""
    for key, value in inputs.items():
        if not isinstance(value, Tensor) or value.ndim == 0:
            raise ValueError(
                f"with_inputs: {key} is a {type(value).__name__}. Allowed: tensors of "
                "one prompt, as the model's processor returns them."
            )
        if key in OF_TOKENS:
            raise ValueError(
                f"with_inputs: {key} belongs to the tokens, not to the image. Leave "
                "it out: tokens are given to each call, all of them seen and in order."
            )
    if not inputs:
        raise ValueError(
            f"with_inputs: nothing to bind to {name}. Give what its processor makes of "
            "an image, such as pixel_values=..."
        )
    return {key: value.detach() for key, value in inputs.items()}


def described(inputs: Mapping[str, Tensor]) -> dict[str, str]:
    """Shape, type and SHA-256 of each input, for the provenance of results."""
    found = {}
    for name, value in inputs.items():
        raw = value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
        digest = hashlib.sha256(raw).hexdigest()[:16]
        found[name] = f"{list(value.shape)} {value.dtype} sha256 {digest}"
    return found
