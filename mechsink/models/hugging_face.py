"""What every Hugging Face model has in common, whichever backend reads its sites.

Three views share one model's weights: the backend's, whose hooks give every site; a
plain one, whose attention can be watched in linear memory and whose blocks can be
replayed (resume.py); and, where edges are asked for, a bridged one, off which the
wiring is read. The user's own model is never touched.
"""

import functools
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mechsink.models.hooks import check_tokens
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
        self._info = dict(info or {})

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
            **self._info,
        }

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
        tokens = tokens.to(self.device)
        if attention is None or self.plain.attends:
            self.plain.visit(tokens, attention, residual)
            return
        run = functools.partial(self.run_sites, self.shape)
        layers = range(self.n_layers)
        visit_patterns(
            run, tokens, self.n_layers, layers, self.shape.sites, attention, residual
        )
