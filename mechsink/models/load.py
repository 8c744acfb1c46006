"""`load_model`: one door to every model that can be measured."""

import difflib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mechsink.models import pretrained
from mechsink.models.bridge import BridgeModel
from mechsink.models.hugging_face import HuggingFaceModel
from mechsink.models.toy import ToyModel
from mechsink.models.trace import TraceModel
from mechsink.models.views import unbridged
from mechsink.run import Model
from toy_tasks.storage import FORMAT as TOY_RUN
from toy_tasks.transformer import ToyTransformer

BACKENDS = ("transformer_lens", "nnsight")
EMBEDDED = ("smollm2",)


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

    Raises:
        ValueError: unknown name (the nearest is suggested) or option.
        FileNotFoundError: no such folder, or weights that are not here; the
            message names the command that helps.
    """
    if backend is not None and backend not in BACKENDS:
        raise ValueError(
            f"load_model: backend={backend!r} is not available. Allowed: "
            f"{', '.join(map(repr, BACKENDS))}."
        )
    if isinstance(source, Model):
        return source
    if remote:
        return _remote(
            source, remote, tokenizer, backend, device, dtype, revision, name,
            selfcheck, trust_remote_code,
        )  # fmt: skip
    options: dict[str, Any] = {"selfcheck": selfcheck}
    if device_map is not None and (
        isinstance(source, nn.Module) or _is_nnsight(source)
    ):
        raise ValueError(
            "load_model: device_map= applies to models loaded by name. Spread a model "
            "object yourself (accelerate.dispatch_model); it is taken as it is."
        )
    if isinstance(source, nn.Module) or _is_nnsight(source):
        return _from_object(source, tokenizer, backend, device, dtype, name, options)
    text = str(source)
    if text.startswith("toy:") or _is_toy_run(Path(text)):
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
    model, own_tokenizer = _from_pretrained(
        location, text, device, dtype, revision, trust_remote_code, device_map
    )
    return _wrapper(backend)(
        model, tokenizer or own_tokenizer, name=name or text, info=info, **options
    )


def available_models(folder: str | Path = ".") -> list[dict[str, Any]]:
    """What can be loaded here, and how: name, what, how, ready.

    Args:
        folder: searched, two levels deep, for toy runs and Hugging Face folders.
    """
    has_package = pretrained.gguf_folder() is not None
    is_converted = (pretrained.cache_folder() / "manifest.json").is_file()
    state = "converted" if is_converted else "converted at first load, about 15 s"
    rows: list[dict[str, Any]] = [
        {
            "name": "smollm2",
            "what": "SmolLM2-135M-Instruct, embedded, 4-bit weights"
            + (f" ({state})" if has_package else " (package not installed)"),
            "how": 'load_model("smollm2")' if has_package else pretrained.INSTALL,
            "ready": has_package,
        }
    ]
    root = Path(folder)
    for path in sorted({*root.glob("*/config.json"), *root.glob("*/*/config.json")}):
        place = path.parent
        if _is_toy_run(place):
            how = f'load_model("toy:{place}")'
            what = "toy transformer of toy_tasks.train"
        elif any(place.glob("*.safetensors")):
            how, what = f'load_model("{place}")', "local Hugging Face folder"
        else:
            continue
        rows.append({"name": str(place), "what": what, "how": how, "ready": True})
    online = os.environ.get("HF_HUB_OFFLINE", "0") not in ("1", "ON", "YES", "TRUE")
    rows.append(
        {
            "name": "ORG/NAME",
            "what": "any causal language model on the Hugging Face hub",
            "how": 'load_model("ORG/NAME")' if online else "unset HF_HUB_OFFLINE",
            "ready": online,
        }
    )
    return rows


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
    if _is_nnsight(source):
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


def _remote(
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
    """The skeleton of a model that is served elsewhere."""
    from mechsink.models.remote import RemoteModel, require_key, skeleton

    if backend not in (None, "nnsight") or device is not None or dtype is not None:
        raise ValueError(
            f"load_model: remote={remote!r} with backend={backend!r}, "
            f"device={device!r}, dtype={dtype!r}. A served model is reached through "
            "backend='nnsight' alone, on the server's device and in its dtype: leave "
            "them out."
        )
    require_key(remote)
    if _is_nnsight(source):
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
    _check_name(text)
    tokenizer = tokenizer or _tokenizer(
        text,
        trust_remote_code=trust_remote_code,
        local_files_only=not _hub_answers(),
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
        raise _load_error(text, False, error) from error
    return RemoteModel(
        traced, tokenizer, remote=remote, name=name or text, selfcheck=selfcheck
    )


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
            "LanguageModel(name, dispatch=True), or let it run where it is served: "
            "ms.load_model(model, remote=True)."
        )
    tokenizer = tokenizer or getattr(source, "tokenizer", None)
    name = name or type(inside).__name__
    return _wrapper(backend or "nnsight")(inside, tokenizer, name=name, **options)


def _is_nnsight(source: Any) -> bool:
    return any(kind.__module__.startswith("nnsight.") for kind in type(source).__mro__)


def _wrapper(backend: str | None) -> type[HuggingFaceModel]:
    return TraceModel if backend == "nnsight" else BridgeModel


def _from_pretrained(
    location: str | Path,
    asked: str,
    device: str | torch.device | None,
    dtype: torch.dtype | None,
    revision: str | None,
    trust_remote_code: bool,
    device_map: str | Mapping[str, Any] | None,
) -> tuple[nn.Module, Any]:
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
    )

    is_folder = Path(location).is_dir()
    if not is_folder:
        _check_name(asked)
    options: dict[str, Any] = {
        "trust_remote_code": trust_remote_code,
        "local_files_only": is_folder or not _hub_answers(),
        "revision": revision or "main",
    }
    try:
        with pretrained.quiet_loading():
            config = AutoConfig.from_pretrained(location, **options)
            sees = type(config) in AutoModelForImageTextToText._model_mapping
            speaks = type(config) in AutoModelForCausalLM._model_mapping
            kind = AutoModelForCausalLM
            if sees and not speaks:
                kind = AutoModelForImageTextToText
            # A tensor that is missing or misshapen would be drawn at random.
            found: Any = kind.from_pretrained(
                location,
                dtype=dtype or "auto",
                use_safetensors=True,  # pickle files are never opened
                device_map=device_map if device_map is None else _map(device_map),
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **options,
            )
    except Exception as error:  # a damaged config.json breaks in any way
        raise _load_error(asked, is_folder, error) from error
    model, loaded = found
    lost = sorted({*loaded["missing_keys"], *(m[0] for m in loaded["mismatched_keys"])})
    if lost:
        raise OSError(
            f"load_model: {asked} lacks weights that its config.json asks for, or has "
            f"them in another shape: {', '.join(lost[:3])}{', ...' * (len(lost) > 3)}. "
            "Needed: config.json and *.safetensors of a causal language model, as "
            "model.save_pretrained(folder) writes them."
        )
    tokenizer = _tokenizer(location, **options)
    if device_map is not None:
        return model, tokenizer
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device), tokenizer


def _map(device_map: str | Mapping[str, Any]) -> Any:
    return device_map if isinstance(device_map, str) else dict(device_map)


def _tokenizer(location: str | Path, **options: Any) -> Any:
    """A model's own; None where there is none: then it still takes tokens."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(location, **options)
    except (OSError, ValueError, KeyError):
        return None


def _hub_answers() -> bool:
    """Whether the hub's host can be reached; asked once, instead of five retries."""
    import socket
    from urllib.parse import urlsplit
    from urllib.request import getproxies

    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if getproxies():  # the proxy resolves names, we need not be able to
        return True
    parts = urlsplit(constants.ENDPOINT)
    try:
        address = (parts.hostname, parts.port or 443)
        socket.create_connection(address, timeout=5).close()
    except OSError:
        return False
    return True


def _check_name(name: str) -> None:
    near = difflib.get_close_matches(name.lower(), EMBEDDED, n=1)
    if near and "/" not in name:
        raise ValueError(
            f"load_model: no model is called {name!r}. Did you mean {near[0]!r}? "
            "`mechsink models` lists what can be loaded here."
        )
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        raise FileNotFoundError(
            f"load_model: there is no folder {name!r}. Give a folder with config.json "
            "and *.safetensors, a hub id such as 'ORG/NAME', or 'smollm2'."
        )


def _load_error(asked: str, is_folder: bool, error: Exception) -> OSError:
    if "trust_remote_code" in str(error):
        return OSError(
            f"load_model: {asked} comes with Python code of its own, which loading it "
            "would run; none was run. If you have read it and trust it, pass "
            "trust_remote_code=True."
        )
    if is_folder:
        files = [path.name for path in Path(asked).iterdir()]
        pickled = [f for f in files if f.endswith((".bin", ".pt", ".pth", ".ckpt"))]
        if pickled and not any(f.endswith(".safetensors") for f in files):
            return OSError(
                f"load_model: {asked} holds its weights as {pickled[0]}, a pickle "
                "file, which could run any code and is never opened. Save it again "
                "with model.save_pretrained(folder), which writes safetensors."
            )
        return OSError(
            f"load_model: {asked} could not be loaded: {_first_line(error)} "
            "Needed: config.json and *.safetensors of a causal language model, as "
            "model.save_pretrained(folder) writes them."
        )
    return FileNotFoundError(
        f"load_model: {asked!r} is not a local folder, is not in the local hub cache, "
        f"and could not be fetched from the hub: {_first_line(error)} With no network, "
        "use 'smollm2' (embedded), a local folder, or download it elsewhere and set "
        "HF_HOME to that cache. `mechsink models` lists what can be loaded here."
    )


def _first_line(error: Exception) -> str:
    line = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
    return line[:200].rstrip(".") + "."


def _is_toy_run(folder: Path) -> bool:
    try:
        return json.loads((folder / "config.json").read_text())["format"] == TOY_RUN
    except (OSError, ValueError, KeyError, TypeError):
        return False
