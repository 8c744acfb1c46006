"""What every Hugging Face model has in common, whichever backend reads its sites.

Three views share one model's weights: the backend's, whose hooks give every site; a
plain one, whose attention can be watched in linear memory and whose blocks can be
replayed (resume.py); and, where edges are asked for, a bridged one, off which the
wiring is read. The user's own model is never touched.
"""

import copy
import functools
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mechsink.models.hooks import check_tokens
from mechsink.models.inputs import (
    bind,
    check_image,
    check_inputs,
    described,
    image_span,
    image_token,
)
from mechsink.models.patterns import visit_patterns
from mechsink.models.plain import PlainModel
from mechsink.models.texts import Texts
from mechsink.models.versions import package_version
from mechsink.models.views import shared_view
from mechsink.run import Edit, LayerAttention, ModelShape, Run
from mechsink.sites import Site


class HuggingFaceModel(Texts, ABC):
    """A Hugging Face causal language model as a `mechsink.Model`.

    Args:
        hf_model: the model; put in no other mode and left unchanged.
        tokenizer: its tokenizer, or None to work with token tensors only.
        name: what to call it in results.
        info: more provenance to store with every result.
        selfcheck: prove the hooks right on first use (selfcheck.py).

    `image_token` is the id that a vision-language model puts an image's vectors at,
    `inputs` what `with_inputs` bound.
    """

    backend: ClassVar[str]
    package: ClassVar[str]  # whose version results store

    def __init__(
        self,
        hf_model: nn.Module,
        tokenizer: Any = None,
        *,
        name: str = "hugging face model",
        info: Mapping[str, Any] | None = None,
        selfcheck: bool = True,
    ) -> None:
        self.name = name
        self._prove = selfcheck
        self.tokenizer = tokenizer
        self.plain = PlainModel(shared_view(hf_model))
        self._unbound = self
        self._info = dict(info or {})
        self.image_token = image_token(getattr(hf_model, "config", None))
        self.inputs: dict[str, Tensor] = {}
        self._n_image = 0  # image tokens of a prompt

    @abstractmethod
    def candidates(self) -> ModelShape:
        """Sizes, and the sites that may be there; which are, is tried afterwards."""

    @abstractmethod
    def run_sites(
        self,
        shape: ModelShape,
        tokens: Tensor,
        *,
        read: Collection[Site] = (),
        edit: Mapping[Site, Edit] | None = None,
        grad: bool = False,
        on_read: Callable[[Site, Tensor], None] | None = None,
        must_fire: bool = True,
    ) -> Run:
        """One forward pass of the backend; `must_fire` as in `available_sites`."""

    @abstractmethod
    def w_o(self, layer: int) -> Float[Tensor, "head d_head d_model"]:
        """Output weights of a layer's heads."""

    @property
    def device(self) -> torch.device:
        """Where inputs go: the device of the embedding."""
        return self.plain.device

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the weights."""
        return self.plain.dtype

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return self.shape.n_layers

    @property
    def n_heads(self) -> int:
        """Query heads a layer."""
        return self.shape.n_heads

    @property
    def info(self) -> dict[str, Any]:
        """Backend, architecture, versions and whatever the loader added."""
        return {
            "backend": self.backend,
            "architecture": type(self.plain.model).__name__,
            "attention": "eager (sites), "
            + ("flash or chunked (sinks)" if self.plain.attends else "eager (sinks)"),
            "transformers": package_version("transformers"),
            self.package.replace("-", "_"): package_version(self.package),
            **({"inputs": described(self.inputs)} if self.inputs else {}),
            **self._info,
        }

    def with_inputs(
        self, tokens: Int[Tensor, "batch pos"], **inputs: Tensor
    ) -> "HuggingFaceModel":
        """The model looking at an image, beside this one, over the same weights.

        Every prompt that holds the image's tokens is run with it; prompts without any
        run as text. Measurements take the bound model as any other.

        Args:
            tokens: a prompt with the image, as the processor writes it.
            inputs: what the processor makes of the image: pixel_values=... and the
                like, for one prompt.

        Raises:
            ValueError: not a vision-language model, inputs that are no tensors, or
                that do not fit the prompt.
        """
        if self.image_token is None:
            raise ValueError(
                f"with_inputs: {self.name}, a {type(self.plain.model).__name__}, has "
                "no image tokens (its configuration names no image_token_id), so it "
                "takes tokens alone."
            )
        kept = check_inputs(inputs, self.name)
        n = len(image_span(self, tokens[:1]))
        bound = copy.copy(self)
        # Views of their own, made anew; finding places opens a trace's code.
        for name in ("bridge", "traced", "_envoys", "_places"):
            vars(bound).pop(name, None)
        # From a model without an older image; both were proved by the same weights.
        bound.plain = PlainModel(shared_view(self._unbound.plain.model))
        bound._unbound = self._unbound
        bind(bound.plain.model, self.image_token, n, kept)
        bound.inputs, bound._n_image = kept, n
        try:
            with torch.no_grad():
                bound.plain.model(tokens[:1].to(self.device), use_cache=False)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"with_inputs: {type(self.plain.model).__name__} does not take "
                f"{', '.join(described(kept))} with this prompt of {n} image tokens: "
                f"{' '.join(str(error).split())[:200]}"
            ) from error
        return bound

    def check_image(self, tokens: Int[Tensor, "batch pos"]) -> None:
        """Raise ValueError for image tokens without their image."""
        check_image(tokens, self.image_token, self._n_image, self.name)

    @functools.cached_property
    def bridge(self) -> Any:
        """A TransformerLens bridge over a view of its own, to read the wiring off.

        Raises:
            ValueError: TransformerLens does not know the family.
        """
        view = shared_view(self.plain.model, eager=True)
        kind = type(view).__name__
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from transformer_lens.model_bridge.sources import build_bridge_from_module

            try:
                bridge = build_bridge_from_module(view, kind, hf_config=view.config)
            except Exception as error:  # of whatever kind its adapters raise
                raise ValueError(
                    f"TransformerLens can't take {self.name}, a {kind}, apart: "
                    f"{' '.join(str(error).split())[:100]}. Runs, sweeps and sinks "
                    'work with ms.load_model(..., backend="nnsight"); attribution to '
                    "edges and logits, which reads its weights, does not."
                ) from error
        bridge.eval()
        return bridge

    @property
    def shape(self) -> ModelShape:
        """Sizes, and the sites that this model proved to have."""
        return self._shape

    @functools.cached_property
    def _shape(self) -> ModelShape:
        # Here, not above: loading alone needs no pandas.
        from mechsink.models.selfcheck import available_sites, selfcheck_run

        shape = available_sites(self.candidates(), self.run_sites, self.device)
        if self._prove:
            run = functools.partial(self.run_sites, shape)
            with torch.no_grad():
                selfcheck_run(shape, run, self.plain.model, self.device).require(
                    self.name
                )
        return shape

    def run(
        self,
        tokens: Int[Tensor, "batch pos"],
        *,
        read: Collection[Site] = (),
        edit: Mapping[Site, Edit] | None = None,
        grad: bool = False,
    ) -> Run:
        """One forward pass; see `mechsink.run.Model.run`."""
        self.check_image(tokens)
        for site in (*read, *(edit or {})):
            self.shape.check(site)
        for site in edit or {}:
            if site.name in self.shape.read_only:
                raise ValueError(
                    f"{site}: this model's own attention code discards edits of "
                    f"{site.name}; it can only be read. Edit z or attn_out instead."
                )
        return self.run_sites(self.shape, tokens, read=read, edit=edit, grad=grad)

    def visit(
        self,
        tokens: Int[Tensor, "batch pos"],
        *,
        attention: Callable[[LayerAttention], None] | None = None,
        residual: Callable[[int, Float[Tensor, "batch pos d_model"]], None]
        | None = None,
    ) -> None:
        """One forward pass, layer by layer; see `mechsink.run.Model.visit`."""
        check_tokens(tokens, self.plain.d_vocab, self.plain.n_ctx)
        self.check_image(tokens)
        tokens = tokens.to(self.device)
        if attention is None or self.plain.attends:
            self.plain.visit(tokens, attention, residual)
            return
        run = functools.partial(self.run_sites, self.shape)
        layers = range(self.n_layers)
        visit_patterns(
            run, tokens, self.n_layers, layers, self.shape.sites, attention, residual
        )
