"""The wiring of the toy transformers."""

from typing import Any

from mechsink.models.wiring import Norm, Port, Read, Unembed, Write
from toy_tasks.layers import EPS
from toy_tasks.transformer import ToyTransformer


class ToyWiring:
    """Reads and writes of a `ToyTransformer`.

    Raises:
        ValueError: attention or MLPs in some of its layers only; an operator that reads
            more than queries, keys and values, or is not causal; a prefix.
    """

    def __init__(self, toy: ToyTransformer) -> None:
        self._toy = toy
        config = toy.config
        layers = range(config.n_layers)
        for what, has in (
            ("attention", {config.has_attention(n) for n in layers}),
            ("an MLP", {config.has_mlp(n) for n in layers}),
        ):
            if len(has) > 1:
                raise ValueError(
                    f"wiring: this toy has {what} in some layers only, and edges are "
                    "named alike in all. Give every layer one (with weights of zero "
                    "where it shall do nothing), or none."
                )
        if config.prefix:
            raise ValueError(
                f"wiring: the first {config.prefix} tokens of this toy see each other "
                "(prefix), and edges are taken to run forwards. Node methods "
                "(ms.attribution_patching, ms.patch_sweep) take it."
            )
        for operator in filter(None, map(config.operator, layers)):
            if operator.reads_x or not operator.is_causal:
                raise ValueError(
                    "wiring: this toy's attention operator "
                    + ("reads the residual beside its queries, keys and values"
                       if operator.reads_x else "looks at later tokens")
                    + ", which edges leave out: they would give wrong numbers. Node "
                    "methods (ms.attribution_patching, ms.patch_sweep) take it."
                )  # fmt: skip
        self.has_attention = config.has_attention(0)
        self.has_mlp = config.has_mlp(0)

    def attention_read(self, layer: int, port: Port) -> Read:
        """How q, k or v come from resid_pre."""
        block: Any = self._toy.blocks[layer]
        weight = getattr(block.attn, f"W_{port.upper()}").detach()
        return Read(toy_norm(block.ln1), weight)

    def mlp_read(self, layer: int) -> Read:
        """How mlp_normed comes from resid_mid."""
        block: Any = self._toy.blocks[layer]
        return Read(toy_norm(block.ln2))

    def attention_write(self, layer: int) -> Write:
        """How attn_out comes from z."""
        block: Any = self._toy.blocks[layer]
        return Write(block.attn.W_O.detach())

    def mlp_write(self, layer: int) -> Write:
        """How mlp_out comes from mlp_post."""
        block: Any = self._toy.blocks[layer]
        return Write(block.mlp.W_out.detach())

    @property
    def unembed(self) -> Unembed:
        """How logits come from the last resid_post."""
        return Unembed(toy_norm(self._toy.ln_final), self._toy.W_U.detach(), None)


def toy_norm(norm: Any) -> Norm | None:
    """A toy's norm; None where it has none."""
    if norm.kind == "none":
        return None
    bias = norm.b.detach() if norm.kind == "layer" else None
    return Norm(norm.kind, norm.w.detach(), bias, EPS)
