"""Models that are served elsewhere: nnsight ships each run and brings back values.

Here there is only the skeleton, on the meta device. What needs weights at hand, or a
gradient through the run, is refused by name; runs, edits, patterns and sweeps work.
"""

import functools
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechsink.models.anatomy import (
    candidate_shape,
    codes_of,
    envoys_of,
    heads_of,
    module_places,
    pattern_places,
    text_config,
    with_pattern,
)
from mechsink.models.hooks import check_tokens
from mechsink.models.patterns import visit_patterns
from mechsink.models.places import (
    Place,
    attention_of,
    inputs_first,
    out_projection,
)
from mechsink.models.plain import PlainModel
from mechsink.models.remote_body import visit, weight
from mechsink.models.remote_errors import address, require_key, said_clearly
from mechsink.models.remote_send import serialized
from mechsink.models.steps import Steps
from mechsink.models.texts import Texts
from mechsink.models.versions import package_version
from mechsink.run import Edit, LayerAttention, ModelShape, Run
from mechsink.sites import Site


class RemoteModel(Texts):
    """A Hugging Face causal language model that runs on another machine.

    Args:
        traced: nnsight's TransformersModel, without weights.
        tokenizer: None to work with token tensors only.
        remote: True for NDIF, or the address of another server.
        name: what to call it in results.
        selfcheck: prove the hooks right on first use, in two more requests.

    Raises:
        ValueError: no API key.
    """

    backend = "nnsight"

    def __init__(
        self,
        traced: Any,
        tokenizer: Any = None,
        *,
        remote: bool | str = True,
        name: str = "remote model",
        selfcheck: bool = True,
    ) -> None:
        from nnsight import register

        self.name, self.tokenizer = name, tokenizer
        self.remote = remote
        self._prove = selfcheck
        self._traced = traced
        self._skeleton = PlainModel(traced._module)
        for package in ("mechsink", "toy_tasks"):  # which the server does not have
            register(package)
        require_key(remote)

    @property
    def device(self) -> torch.device:
        """Where values come back to."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the weights, by the model's configuration."""
        return self._skeleton.dtype

    @property
    def info(self) -> dict[str, Any]:
        """Backend, server, architecture and versions."""
        return {
            "backend": self.backend,
            "remote": address(self.remote),
            "architecture": type(self._skeleton.model).__name__,
            "attention": "eager (sites), eager (sinks)",
            "transformers": package_version("transformers"),
            "nnsight": package_version("nnsight"),
        }

    @property
    def shape(self) -> ModelShape:
        """Sizes, and the sites that the served model proved to have."""
        return self._shape

    def run(
        self,
        tokens: Int[Tensor, "batch pos"],
        *,
        read: Collection[Site] = (),
        edit: Mapping[Site, Edit] | None = None,
        grad: bool = False,
    ) -> Run:
        """One forward pass elsewhere, one request; see `mechsink.run.Model.run`.

        Edits run there: they may use what they hold and torch, and the tensors that
        they hold lie on the CPU there (`value.to(x)` brings one to the model).

        Raises:
            ValueError: `grad`, or bad tokens, sites or edits.
            ConnectionError: the server can't be reached.
            RuntimeError: it could not run this.
        """
        for site in (*read, *(edit or {})):
            self.shape.check(site)
        return self._run(self.shape, tokens, read=read, edit=edit, grad=grad)

    def visit(
        self,
        tokens: Int[Tensor, "batch pos"],
        *,
        attention: Callable[[LayerAttention], None] | None = None,
        residual: Callable[[int, Float[Tensor, "batch pos d_model"]], None]
        | None = None,
    ) -> None:
        """One forward pass; whole patterns come back, so keep prompts short."""
        run = functools.partial(self._run, self.shape)
        layers = range(self.shape.n_layers)
        names = self.shape.sites
        visit_patterns(run, tokens, len(layers), layers, names, attention, residual)

    def w_o(self, layer: int) -> Float[Tensor, "head d_head d_model"]:
        """Output weights of a layer's heads, fetched."""
        from nnsight import save

        block = self._skeleton.blocks[layer]
        out = out_projection(block)
        path, attention = attention_of(block)
        name = next(name for name, child in attention.named_children() if child is out)
        path, blocks, traced = (*path, name), self._blocks, self._traced
        tokens = torch.zeros(1, 1, dtype=torch.int64)
        found: Any = None
        with said_clearly(self.name, self.remote):  # noqa: SIM117
            with traced.trace(tokens, use_cache=False, backend=self._backend()):
                found = save(weight(blocks, layer, path))
        heads = heads_of(text_config(self._skeleton.model))
        return inputs_first(out, found).unflatten(0, (heads.n, heads.d))

    def refusal(self, what: str, instead: str) -> str:
        """Words for what needs the weights or a gradient here."""
        return (
            f"{what}: {self.name} runs on another machine ({address(self.remote)}), "
            f"and its weights and gradients stay there. {instead}"
        )

    def _run(
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
        check_tokens(tokens, shape.d_vocab, shape.n_ctx)
        if grad:
            raise ValueError(
                self.refusal(
                    "run(grad=True)",
                    "ms.patch_sweep, ms.ablate and ms.path_patch need no gradient; for "
                    "attribution load the weights: ms.load_model without remote=.",
                )
            )
        from nnsight import save

        plan = Steps(self._places, read, edit or {})
        steps, size = plan.steps, tuple(tokens.shape)
        traced, blocks = self._traced, self._blocks
        cache: dict[int, Tensor] = {}
        logits: Any = None
        with said_clearly(self.name, self.remote):  # noqa: SIM117
            with traced.trace(tokens, use_cache=False, backend=self._backend()):
                cache = save({})
                for step in steps:
                    visit(blocks, step, cache, size)
                logits = save(traced.output.logits)
        found = plan.found(cache)
        if on_read is not None:
            for site, value in found.items():
                on_read(site, value)
            found = {}
        return Run(tokens, logits.detach(), found)

    def _backend(self) -> Any:
        """nnsight's way to the server, sending what it can do with."""
        with said_clearly(
            self.name, self.remote
        ):  # the hub is asked for the model's full name
            backend = self._traced._remote_backend(self.remote, True, None, False)
        backend._serialize = functools.partial(serialized, backend)
        return backend

    @functools.cached_property
    def _blocks(self) -> Any:
        return envoys_of(self._traced, self._skeleton)

    @functools.cached_property
    def _places(self) -> list[Place]:
        """Where every site lies: read off the code, which runs on no values."""
        tokens = torch.zeros(1, 2, dtype=torch.int64)
        plain, traced, envoys = self._skeleton, self._traced, self._blocks
        found: list[tuple[list[str], list[str]]] = []
        with traced.scan(tokens, use_cache=False):
            for envoy in envoys:
                found.append(codes_of(envoy, plain.blocks[0]))
        # Other kernels never come by the code that computes a pattern.
        is_eager = plain.model.config._attn_implementation == "eager"
        pattern = pattern_places(plain, *found[0]) if is_eager else []
        return with_pattern(module_places(plain), pattern)

    @functools.cached_property
    def _shape(self) -> ModelShape:
        from mechsink.models.selfcheck import available_sites, selfcheck_run

        candidates = candidate_shape(self._skeleton, self._places, self._is_parallel)
        sizes = self._scanned(candidates)
        have = frozenset(name for name in candidates.sites if sizes[name])
        inside = have & {"pattern", "attn_scores"}
        proved = available_sites(
            replace(candidates, sites=inside), self._run, self.device
        )
        shape = replace(proved, sites=proved.sites | (have - inside))
        if self._prove:
            run = functools.partial(self._run, shape)
            selfcheck_run(shape, run, None, self.device).require(self.name)
        return shape

    def _scanned(self, shape: ModelShape) -> dict[str, bool]:
        """Whether each site has in every layer the shape that it should have."""
        size = (2, 3)
        tokens = torch.zeros(size, dtype=torch.int64)
        sites = [site for name in shape.sites for site in shape.all_sites(name)]
        plan = Steps(self._places, sites, {})
        steps, traced, blocks = plan.steps, self._traced, self._blocks
        cache: dict[int, Tensor] = {}
        with traced.scan(tokens, use_cache=False):
            for step in steps:
                visit(blocks, step, cache, size)
        found = plan.found(cache)
        return {
            name: all(
                tuple(found[site].shape) == shape.size(site, *size)
                for site in shape.all_sites(name)
            )
            for name in shape.sites
        }

    @functools.cached_property
    def _is_parallel(self) -> bool:
        """Whether the MLP's input does not hang on what the attention writes."""
        tokens = torch.zeros(1, 2, dtype=torch.int64)
        found = [
            next((p for p in self._places if name in p.parts), None)
            for name in ("attn_out", "mlp_normed")
        ]
        if found[0] is None or found[1] is None:
            return True
        path, other = found[0].path, found[1].path
        traced, blocks = self._traced, self._blocks
        hangs: list[bool] = []
        with torch.enable_grad():  # noqa: SIM117
            with traced.scan(tokens, use_cache=False):
                wrote = functools.reduce(getattr, path, blocks[0]).output
                wrote = wrote if isinstance(wrote, Tensor) else wrote[0]
                read = functools.reduce(getattr, other, blocks[0]).input
                slope = torch.autograd.grad(read.sum(), wrote, allow_unused=True)
                hangs.append(slope[0] is not None)
        return not hangs[0]
