"""`load_model`: one door to every model that can be measured."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mechsink.models import pretrained
from mechsink.models.bridge import BridgeModel
from mechsink.models.catalogue import is_toy_run
from mechsink.models.from_files import EMBEDDED, from_pretrained
from mechsink.models.hugging_face import HuggingFaceModel
from mechsink.models.remote_load import is_nnsight, load_remote
from mechsink.models.toy import ToyModel
from mechsink.models.trace import TraceModel
from mechsink.models.views import unbridged
from mechsink.run import Model
from toy_tasks.transformer import ToyTransformer

BACKENDS = ("transformer_lens", "nnsight")


def load_model(
    source: Any,
    *,
    tokenizer: Any = None,
    backend: str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    name: str | None = None,
    selfcheck: bool = True,
    trust_remote_code: bool = False,
    remote: bool | str = False,
    device_map: str | Mapping[str, Any] | None = None,
) -> Model:
    """Load a model to measure.

    Args:
        source: "smollm2" (embedded), "toy:FOLDER" (a run of toy_tasks.train), a
            local Hugging Face folder, a hub id, a PreTrainedModel, a
            TransformerBridge, an nnsight model, a ToyTransformer, or a Model, returned
            as it is.
        tokenizer: for a model object; without one, pass tokens, not texts. A
            vision-language model's processor will do.
        backend: what reads the sites: "transformer_lens" (the default, but for nnsight
            models) or "nnsight".
        device: default: where a model object lies; else CUDA where there is one.
        dtype: of the weights; default: as stored (float32 for smollm2).
        revision: hub revision, or for a toy its checkpoint's step.
        name: what results call it.
        selfcheck: prove the hooks right before first use (a few short passes).
        trust_remote_code: let a hub model run its own Python code.
        remote: run a hub model where it is served, through nnsight: True for NDIF, or
            a server's address. No weights are loaded here (remote.py).
        device_map: spread a folder's or hub model's layers over devices, "auto" or
            module names to devices, as transformers has it; results stay on the device
            of the embedding. A model object that is spread already is taken as it is.

    Returns:
        A `Model`: all measurements take it; the object given is left as it is.

    Raises:
        ValueError: unknown name (the nearest is suggested) or option.
        FileNotFoundError: no such folder, or weights that are not here; the
            message names the command that helps.

    Examples:
        >>> from toy_tasks import ToyConfig, ToyTransformer
        >>> model = ms.load_model(ToyTransformer(ToyConfig(d_vocab=10, n_layers=2)))
        >>> model.name, model.shape.n_layers
        ('toy', 2)
    """
    if backend is not None and backend not in BACKENDS:
        raise ValueError(
            f"load_model: backend={backend!r} is not available. Allowed: "
            f"{', '.join(map(repr, BACKENDS))}."
        )
    if isinstance(source, Model):
        return source
    if remote:
        return load_remote(
            source, remote, tokenizer, backend, device, dtype, revision, name,
            selfcheck, trust_remote_code,
        )  # fmt: skip
    options: dict[str, Any] = {"selfcheck": selfcheck}
    if isinstance(source, nn.Module) or is_nnsight(source):
        if device_map is not None:
            raise ValueError(
                "load_model: device_map= applies to models loaded by name. Spread a "
                "model object yourself (accelerate.dispatch_model); it is taken as it "
                "is."
            )
        return _from_object(source, tokenizer, backend, device, dtype, name, options)
    text = str(source)
    if text.startswith("toy:") or is_toy_run(Path(text)):
        folder = text.removeprefix("toy:")
        step = None if revision is None else int(revision)
        return ToyModel.from_folder(folder, step=step, device=device, name=name)
    location: str | Path = text
    info: dict[str, Any] = {}
    if text in EMBEDDED:
        if pretrained.gguf_folder() is not None:
            location = pretrained.converted()
            info["weights_note"] = pretrained.WEIGHTS_NOTE
            info["weights_package"] = pretrained.PACKAGE
        else:
            location = pretrained.HUB_ID
    if device_map is not None and device is not None:
        raise ValueError(
            f"load_model: device={str(device)!r} and device_map={device_map!r} both "
            "say where the model goes. Give one of them."
        )
    model, own_tokenizer = from_pretrained(
        location, text, device, dtype, revision, trust_remote_code, device_map
    )
    return _wrapper(backend)(
        model, tokenizer or own_tokenizer, name=name or text, info=info, **options
    )


def _from_object(
    source: Any,
    tokenizer: Any,
    backend: str | None,
    device: str | torch.device | None,
    dtype: torch.dtype | None,
    name: str | None,
    options: dict[str, Any],
) -> Model:
    if device is not None or dtype is not None:
        raise ValueError(
            "load_model: device= and dtype= apply to models loaded by name. Move or "
            "cast a model object yourself first: model.to(device, dtype)."
        )
    if isinstance(source, ToyTransformer):
        return ToyModel(source, name=name or "toy")
    if is_nnsight(source):
        return _from_nnsight(source, tokenizer, backend, name, options)
    if type(source).__name__ == "TransformerBridge":
        bridge: Any = source
        tokenizer = tokenizer or bridge.tokenizer
        if backend == "nnsight":
            own = unbridged(bridge)
            return TraceModel(
                own, tokenizer, name=name or type(own).__name__, **options
            )
        return BridgeModel.from_bridge(bridge, tokenizer, name=name, **options)
    from transformers import PreTrainedModel

    if not isinstance(source, PreTrainedModel):
        raise ValueError(
            f"load_model: a {type(source).__name__} cannot be wrapped. Allowed: a "
            "Hugging Face causal language model, a TransformerBridge, an nnsight "
            "model, a ToyTransformer, or any object with the methods of "
            "mechsink.run.Model."
        )
    wrapper = _wrapper(backend)
    return wrapper(source, tokenizer, name=name or type(source).__name__, **options)


def _from_nnsight(
    source: Any,
    tokenizer: Any,
    backend: str | None,
    name: str | None,
    options: dict[str, Any],
) -> Model:
    """The model inside an nnsight one, which is left as it is."""
    from transformers import PreTrainedModel

    inside = source._module
    if not isinstance(inside, PreTrainedModel):
        raise ValueError(
            f"load_model: this nnsight model wraps a {type(inside).__name__}. Allowed: "
            "one around a Hugging Face causal language model."
        )
    if any(parameter.is_meta for parameter in inside.parameters()):
        raise ValueError(
            "load_model: this nnsight model has no weights yet. Load them first: "
            "TransformersModel(name, task='text-generation', dispatch=True), or let it "
            "run where it is served: ms.load_model(model, remote=True)."
        )
    tokenizer = tokenizer or getattr(source, "tokenizer", None)
    name = name or type(inside).__name__
    return _wrapper(backend or "nnsight")(inside, tokenizer, name=name, **options)


def _wrapper(backend: str | None) -> type[HuggingFaceModel]:
    return TraceModel if backend == "nnsight" else BridgeModel
