"""The toy transformer: a small pre-norm decoder with TransformerLens site names.

Every site is a `HookPoint`: a forward hook there reads a tensor, or edits it by
returning a new one. Weights are [head, d_model, d_head] and the like, as papers
write them; there are no biases outside the norms.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from toy_tasks.attention import Attention
from toy_tasks.config import ToyConfig
from toy_tasks.decorrelation import decorrelation_loss
from toy_tasks.layers import HookPoint, Norm, weight
from toy_tasks.operators.attention import OperatorAttention


class MLP(nn.Module):
    """Two matrices with a ReLU, or nothing, between them."""

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.is_linear = config.mlp == "linear"
        self.W_in = weight(config.d_model, config.d_mlp)
        self.W_out = weight(config.d_mlp, config.d_model)
        self.hook_pre = HookPoint()
        self.hook_post = HookPoint()

    def forward(
        self, x: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """What the MLP writes, from the normed residual."""
        pre = self.hook_pre(x @ self.W_in)
        # In place where nobody has seen `pre`: saves 7 % of a training step.
        is_seen = self.hook_pre.in_use
        post = self.hook_post(pre if self.is_linear else F.relu(pre, not is_seen))
        return post @ self.W_out


class Block(nn.Module):
    """Attention, then MLP, each reading the normed residual and adding to it.

    A layer without one of them (`attn` or `mlp` is None) adds zeros there, so
    `hook_attn_out` and `hook_mlp_out` can still be read and edited.
    `hook_resid_mid` is the residual stream itself: an edit reaches the MLP and
    the skip path.
    """

    def __init__(self, config: ToyConfig, layer: int) -> None:
        super().__init__()
        has_attention, has_mlp = config.has_attention(layer), config.has_mlp(layer)
        self.ln1 = Norm(config) if has_attention else None
        self.attn = attention(config, layer) if has_attention else None
        self.ln2 = Norm(config) if has_mlp else None
        self.mlp = MLP(config) if has_mlp else None
        self.hook_resid_pre = HookPoint()
        self.hook_attn_out = HookPoint()
        self.hook_resid_mid = HookPoint()
        self.hook_mlp_out = HookPoint()
        self.hook_resid_post = HookPoint()

    def forward(
        self,
        resid: Float[Tensor, "batch pos d_model"],
        past: tuple[
            Float[Tensor, "batch past kv_head d_head"],
            Float[Tensor, "batch past kv_head d_head"],
        ]
        | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """The residual after this block.

        Args:
            resid: residual before it, at consecutive positions.
            past: keys and values of all earlier positions, as hook_k and hook_v
                gave them; None when `resid` starts at position 0.
        """
        resid = self.hook_resid_pre(resid)
        if self.attn is None or self.ln1 is None:
            attn_out = torch.zeros_like(resid)
        else:
            attn_out = self.attn(self.ln1(resid), past)
        resid = self.hook_resid_mid(resid + self.hook_attn_out(attn_out))
        if self.mlp is None or self.ln2 is None:
            mlp_out = torch.zeros_like(resid)
        else:
            mlp_out = self.mlp(self.ln2(resid))
        return self.hook_resid_post(resid + self.hook_mlp_out(mlp_out))


def attention(config: ToyConfig, layer: int) -> Attention | OperatorAttention:
    """The attention of a layer: plain, or by the config's operator."""
    operator = config.operator(layer)
    if operator is None:
        return Attention(config, layer)
    return OperatorAttention(config, operator)


class ToyTransformer(nn.Module):
    """A decoder over tokens; `forward` gives logits.

    Exact continuation: `resid = model.embed(tokens)`, then
    `resid = model.blocks[l](resid, past)` for each layer, then `model.unembed(resid)`.

    Initial weights are torch's defaults, as in the paper: N(0, 1) embeddings,
    uniform within 1/sqrt(inputs) matrices; drawn from `seed` alone.

    Args:
        config: sizes and switches; its d_vocab must be set.
        seed: of the weights.

    Attributes:
        sinusoids: position embedding of "sinusoidal".

    Raises:
        ValueError: the config's d_vocab is still 0, or it freezes an unknown name.

    Source: Guo et al. 2024 (arXiv:2410.13835).

    Examples:
        >>> from toy_tasks import ToyConfig, ToyTransformer
        >>> model = ToyTransformer(ToyConfig(d_vocab=10, n_layers=2), seed=0)
        >>> tuple(model(torch.tensor([[0, 1, 2]])).shape)
        (1, 3, 10)
    """

    sinusoids: Float[Tensor, "n_ctx d_model"]

    def __init__(self, config: ToyConfig, seed: int = 0) -> None:
        super().__init__()
        if config.d_vocab < 1:
            raise ValueError(
                "ToyTransformer: d_vocab=0 leaves the vocabulary open. Set it to "
                "task.d_vocab: dataclasses.replace(config, d_vocab=task.d_vocab)."
            )
        self.config = config
        self._states: list[Tensor] = []  # of the last forward pass in training
        self.W_E = nn.Parameter(torch.empty(config.d_vocab, config.d_model))
        if config.adds_positions:
            self.hook_pos_embed = HookPoint()
        if config.positions == "learned":
            self.W_pos = nn.Parameter(torch.empty(config.n_ctx, config.d_model))
        elif config.positions == "sinusoidal":
            table = sinusoidal_positions(config.n_ctx, config.d_model)
            self.register_buffer("sinusoids", table, persistent=False)
        self.hook_embed = HookPoint()
        self.blocks = nn.ModuleList(
            Block(config, layer) for layer in range(config.n_layers)
        )
        self.ln_final = Norm(config)
        if not config.tied:
            self.W_unembed = weight(config.d_model, config.d_vocab)
        self._initialise(seed)
        self._freeze(config.frozen)

    def forward(
        self, tokens: Int[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch pos vocab"]:
        """Logits of the next token after every position.

        Args:
            tokens: prompts of one length.

        Raises:
            ValueError: the prompt is longer than `n_ctx`.
        """
        resid = self.embed(tokens)
        self._states = []
        for block in self.blocks:
            resid = block(resid)
            if self.config.decorrelation and self.training:
                self._states.append(resid)
        return self.unembed(resid)

    def embed(
        self, tokens: Int[Tensor, "batch pos"], start: int = 0
    ) -> Float[Tensor, "batch pos d_model"]:
        """Residual before layer 0; `start` is the position of the first token.

        Args:
            tokens: prompts of one length.
            start: position of the first token.

        Raises:
            ValueError: a prompt longer than `n_ctx`.
        """
        end = start + tokens.shape[1]
        if end > self.config.n_ctx:
            raise ValueError(
                f"ToyTransformer: the prompt reaches position {end - 1}, but this "
                f"model has positions 0 to {self.config.n_ctx - 1}. Shorten it to "
                f"{self.config.n_ctx} tokens, or train with a larger n_ctx."
            )
        # F.embedding, not W_E[tokens]: its gradient is several times faster.
        resid = self.hook_embed(F.embedding(tokens, self.W_E))
        if not self.config.adds_positions:
            return resid
        table = self.W_pos if self.config.positions == "learned" else self.sinusoids
        return resid + self.hook_pos_embed(table[start:end].expand_as(resid))

    def unembed(
        self, resid: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos vocab"]:
        """Logits from the residual after the last layer, final norm included.

        Args:
            resid: after the last layer.
        """
        return self.ln_final(resid) @ self.W_U

    @property
    def W_U(self) -> Float[Tensor, "d_model vocab"]:
        """The unembedding; the embedding transposed when tied."""
        return self.W_E.T if self.config.tied else self.W_unembed

    def _initialise(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name in ("W_E", "W_pos"):
                    parameter.normal_(generator=generator)
                elif ".W_" in name or name == "W_unembed":
                    n_inputs = parameter.shape[-2]
                    if name.endswith("W_O"):
                        n_inputs *= parameter.shape[0]
                    bound = 1 / math.sqrt(n_inputs)
                    parameter.uniform_(-bound, bound, generator=generator)
            for module in self.modules():
                if isinstance(module, OperatorAttention):
                    module.draw(generator)

    def extra_loss(self) -> Float[Tensor, ""] | None:
        """What operators and decorrelation add to the loss of the last forward pass.

        Decorrelation counts after every block; what the last one writes goes to the
        unembedding alone, so with several blocks it is left out.
        """
        terms = [
            module.extra_loss
            for module in self.modules()
            if isinstance(module, OperatorAttention) and module.extra_loss is not None
        ]
        states = self._states[:-1] or self._states
        terms += [self.config.decorrelation * decorrelation_loss(s) for s in states]
        return torch.stack(terms).sum() if terms else None

    def _freeze(self, prefixes: tuple[str, ...]) -> None:
        names = dict(self.named_parameters())
        for prefix in prefixes:
            found = [name for name in names if name.startswith(prefix)]
            if not found:
                raise ValueError(
                    f"ToyTransformer: frozen={prefix!r} starts no parameter's name. "
                    f"Allowed: the start of any of {', '.join(names)}."
                )
            for name in found:
                names[name].requires_grad_(False)


def sinusoidal_positions(n_ctx: int, d_model: int) -> Float[Tensor, "n_ctx d_model"]:
    """Sines and cosines of the position, wavelengths 2 pi to 20,000 pi tokens.

    Source: Vaswani et al. 2017 (arXiv:1706.03762), section 3.5.
    """
    even = torch.arange(0, d_model, 2)
    angle = torch.arange(n_ctx)[:, None] * 10_000.0 ** (-even / d_model)
    table = torch.zeros(n_ctx, d_model)
    table[:, 0::2] = angle.sin()
    table[:, 1::2] = angle.cos()[:, : d_model // 2]
    return table
