"""The toy transformers of toy_tasks as mechsink models."""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechsink.models.hooks import SiteHooks, check_tokens
from mechsink.models.patterns import visit_patterns
from mechsink.models.versions import package_version
from mechsink.run import Edit, LayerAttention, ModelShape, Run
from mechsink.sites import AXES, Site
from toy_tasks.runs import load_run
from toy_tasks.transformer import ToyTransformer

HOOKS = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "mlp_normed": "ln2.hook_normalized",
    "mlp_post": "mlp.hook_post",
    "q": "attn.hook_q",
    "k": "attn.hook_k",
    "v": "attn.hook_v",
    "z": "attn.hook_z",
    "attn_scores": "attn.hook_attn_scores",
    "pattern": "attn.hook_pattern",
}


class ToyModel:
    """A `ToyTransformer` as a `mechsink.Model`.

    Args:
        toy: the transformer, put in no other mode.
        task: its task, which turns texts into tokens and back; None for tokens only.
        name: what to call it in results.
        info: more provenance to store with every result.
    """

    def __init__(
        self,
        toy: ToyTransformer,
        task: Any = None,
        *,
        name: str = "toy",
        info: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.toy = toy
        self.task = task
        self._info = dict(info or {})

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        *,
        step: int | None = None,
        device: str | torch.device | None = None,
        name: str | None = None,
    ) -> "ToyModel":
        """A checkpoint of a `toy_tasks.train` folder; the last by default.

        Raises:
            FileNotFoundError, ValueError: as `toy_tasks.load_run` and its `model`.
        """
        run = load_run(folder)
        step = run.steps[-1] if step is None else step
        toy = run.model(step).to(device or "cpu")
        info = {"preset": run.preset.name, "seed": run.seed, "step": step}
        return cls(toy, run.task, name=name or f"toy:{folder}", info=info)

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return self.toy.W_E.device

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the weights."""
        return self.toy.W_E.dtype

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return self.toy.config.n_layers

    @property
    def n_heads(self) -> int:
        """Query heads a layer."""
        return self.toy.config.n_heads

    @property
    def info(self) -> dict[str, Any]:
        """Backend, sizes and whatever the loader added."""
        return {
            "backend": "toy",
            "architecture": "ToyTransformer",
            "attention": self.toy.config.attention,
            "torch": package_version("torch"),
            "config": self.toy.config.to_json(),
            **self._info,
        }

    @property
    def shape(self) -> ModelShape:
        """Sizes; sites that some layer lacks (no attention, no MLP) are left out."""
        return self._shape

    @functools.cached_property
    def _shape(self) -> ModelShape:
        config = self.toy.config
        sites = set(AXES)
        if not all(config.has_mlp(layer) for layer in range(config.n_layers)):
            sites -= {"mlp_normed", "mlp_post"}
        if len(self._attention_layers) < config.n_layers:
            sites -= {name for name, hook in HOOKS.items() if hook.startswith("attn.")}
        return ModelShape(
            n_layers=config.n_layers,
            n_heads=config.n_heads,
            n_kv_heads=config.kv_heads,
            d_model=config.d_model,
            d_head=config.d_head,
            d_mlp=config.d_mlp,
            d_vocab=config.d_vocab,
            n_ctx=config.n_ctx,
            sites=frozenset(sites),
            rows_sum_to_1=config.rows_sum_to_1,
        )

    def to_tokens(self, texts: str | Sequence[str]) -> Int[Tensor, "batch pos"]:
        """`<s>`, then the tokens that the task's `encode` makes of each text.

        Raises:
            ValueError: the toy has no task, a text has pieces it does not know, or
                the texts have unequal numbers of tokens.
        """
        task = self._task("to_tokens")
        texts = [texts] if isinstance(texts, str) else list(texts)
        rows = [[task.bos, *torch.as_tensor(task.encode(t)).tolist()] for t in texts]
        lengths = [len(row) for row in rows]
        if not rows or len(set(lengths)) > 1:
            raise ValueError(
                f"to_tokens: {len(rows)} texts with {lengths} tokens, <s> included. "
                "Give at least one text, all of one number of tokens; tokenise others "
                "one by one."
            )
        return torch.tensor(rows, device=self.device)

    def to_strings(self, tokens: Int[Tensor, " pos"]) -> list[str]:
        """One readable string a token; numbers without a task."""
        if self.task is None:
            return [str(int(token)) for token in tokens]
        return [self.task.vocab[int(token)] for token in tokens]

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
        return self.run_hooked(tokens, read=read, edit=edit, grad=grad)

    def run_hooked(
        self,
        tokens: Tensor,
        *,
        read: Collection[Site] = (),
        edit: Mapping[Site, Edit] | None = None,
        grad: bool = False,
        on_read: Callable[[Site, Tensor], None] | None = None,
    ) -> Run:
        """`run`, handing what is read to `on_read` instead of keeping it."""
        check_tokens(tokens, self.shape.d_vocab, self.shape.n_ctx)
        tokens = tokens.to(self.device)
        hooks = SiteHooks(read, edit, grad, on_read)
        handles = []
        try:
            for site, function in hooks.points(resid_mid_is_hook=True).items():
                point = self.toy.get_submodule(
                    f"blocks.{site.layer}.{HOOKS[site.name]}"
                )
                handles.append(
                    point.register_forward_hook(
                        lambda module, args, out, function=function: function(out)
                    )
                )
            with torch.set_grad_enabled(grad):
                logits = self.toy(tokens)
        finally:
            for handle in handles:
                handle.remove()
        hooks.check_all_fired()
        return Run(tokens, logits, hooks.cache)

    def visit(
        self,
        tokens: Int[Tensor, "batch pos"],
        *,
        attention: Callable[[LayerAttention], None] | None = None,
        residual: Callable[[int, Float[Tensor, "batch pos d_model"]], None]
        | None = None,
    ) -> None:
        """One forward pass, layer by layer; see `mechsink.run.Model.visit`."""
        layers = self._attention_layers if attention is not None else []
        visit_patterns(
            self.run_hooked,
            tokens,
            self.n_layers,
            layers,
            ("v", "attn_scores", "pattern"),
            attention,
            residual,
            [n for n in layers if self.toy.config.is_softmax(n)],
        )

    def w_o(self, layer: int) -> Float[Tensor, "head d_head d_model"]:
        """Output weights of a layer's heads."""
        return self.toy.get_submodule(f"blocks.{layer}.attn").W_O.detach()  # type: ignore[union-attr]

    @property
    def _attention_layers(self) -> list[int]:
        config = self.toy.config
        return [n for n in range(config.n_layers) if config.has_attention(n)]

    def _task(self, caller: str) -> Any:
        if self.task is None:
            raise ValueError(
                f"{caller}: {self.name} was wrapped without its task. Pass token "
                'tensors, or load it from its run folder: ms.load_model("toy:FOLDER").'
            )
        return self.task
