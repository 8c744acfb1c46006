"""The attention layer that runs an operator."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from toy_tasks.config import ToyConfig
from toy_tasks.layers import HookPoint, weight
from toy_tasks.operators.memory import Slots
from toy_tasks.operators.normalisers import Normaliser, Scored
from toy_tasks.operators.operator import Operator
from toy_tasks.operators.parts import Heads, Init, Sizes
from toy_tasks.positions import rotated


class OperatorAttention(nn.Module):
    """Heads that read the normed residual through an `Operator`.

    `hook_pattern` is the equivalent attention matrix over the tokens: what z is made
    of, before its gate and apart from memory slots, whose share `hook_slot_pattern`
    shows (attention to a slot that is a mean of tokens counts as attention to them).
    Rows need not sum to 1 and weights may be negative; where they are no shares of a
    softmax, sink scores are those of |A| / sum |A|. `hook_z` is gated, so that W_O
    reads it as it is.
    `hook_attn_scores` shows -inf where a key is hidden, except to a normaliser that
    reads hidden scores. Rotary positions turn queries and keys after their hooks and
    before anything else sees them, kernel maps included; learned keys are not turned.
    All of it needs the whole prompt: there is no continuation from a past.
    """

    def __init__(self, config: ToyConfig, operator: Operator) -> None:
        super().__init__()
        self.operator = operator
        self.is_rotary = config.positions == "rotary"
        self.group = config.n_heads // config.kv_heads
        self.W_Q = weight(config.n_heads, config.d_model, config.d_head)
        self.W_K = weight(config.kv_heads, config.d_model, config.d_head)
        self.W_V = weight(config.kv_heads, config.d_model, config.d_head)
        self.W_O = weight(config.n_heads, config.d_head, config.d_model)
        sizes = Sizes(
            config.n_heads,
            config.kv_heads,
            config.d_model,
            config.d_head,
            config.n_ctx,
        )
        self.inits: dict[str, Init] = {}
        for name in ("memory", "carrier", "kernel", "normaliser", "gate"):
            part = nn.ParameterDict()
            for key, init in getattr(operator, name).parameters(sizes).items():
                empty = torch.empty(init.shape)
                part[key] = nn.Parameter(empty, requires_grad=init.is_trained)
                self.inits[f"{name}.{key}"] = init
            setattr(self, name, part)
        self.hook_q = HookPoint()
        self.hook_k = HookPoint()
        self.hook_v = HookPoint()
        self.hook_attn_scores = HookPoint()
        self.hook_pattern = HookPoint()
        self.hook_slot_pattern = HookPoint()
        self.hook_z = HookPoint()
        self.extra_loss: Tensor | None = None  # of the last forward pass in training

    def forward(
        self, x: Float[Tensor, "batch pos d_model"], past: None = None
    ) -> Float[Tensor, "batch pos d_model"]:
        """What the heads write.

        Raises:
            ValueError: a past is given.
        """
        if past is not None:
            raise ValueError(
                "OperatorAttention: an operator reads the whole prompt, so it can't "
                "go on from earlier keys and values. Run all tokens at once."
            )
        operator = self.operator
        q = self.hook_q(torch.einsum("bpd,hde->bphe", x, self.W_Q))
        k = self.hook_k(torch.einsum("bpd,hde->bphe", x, self.W_K))
        v = self.hook_v(torch.einsum("bpd,hde->bphe", x, self.W_V))
        if self.is_rotary:
            q, k = rotated(q), rotated(k)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        if self.group > 1:
            k, v = (t.repeat_interleave(self.group, dim=1) for t in (k, v))
        heads = operator.gate.before(Heads(x, q, k, v), self._of("gate"))
        memory = {**self._of("memory"), "W_K": self.W_K, "W_V": self.W_V}
        slots = operator.memory.slots(heads, memory)
        pattern, slot_pattern = self.pattern(heads, slots)
        z = pattern @ heads.v
        if slots is not None and slot_pattern is not None:
            z = z + slot_pattern @ slots.v
        gate = {**self._of("gate"), "q": heads.q}
        z = self.hook_z(operator.gate.after(z.transpose(1, 2), x, gate))
        if self.training and operator.gate.has_loss:
            self.extra_loss = operator.gate.loss(x, gate)
        out = z.flatten(2) @ self.W_O.flatten(0, 1)
        return operator.gate.output(out, x, gate)

    def pattern(
        self, heads: Heads, slots: Slots | None
    ) -> tuple[
        Float[Tensor, "batch head query key"],
        Float[Tensor, "batch head query slot"] | None,
    ]:
        """Attention to the tokens, and to the slots where they are no means."""
        operator, n_slots = self.operator, 0
        keys = heads.k
        if slots is not None:
            n_slots = slots.k.shape[2]
            shape = (keys.shape[0], -1, -1, -1)
            keys = torch.cat([slots.k.expand(*shape), keys], dim=2)
        scores = operator.kernel.scores(heads, keys, self._of("kernel"))
        extra, scores = scores[..., :n_slots], scores[..., n_slots:]
        views = operator.carrier.views(heads, scores, self._of("carrier"))
        if not operator.normaliser.reads_hidden:
            shown = views[0][0]
            for seen, _ in views[1:]:
                shown = shown | seen
            scores = scores.masked_fill(~shown, -torch.inf)
        scores = torch.cat([extra, self.hook_attn_scores(scores)], dim=-1)
        weights = scores.new_zeros(())
        for seen, share in views:
            if slots is not None:
                beside = slots.seen.expand(*seen.shape[:-1], -1)
                seen = torch.cat([beside, seen], dim=-1)
            one = self._weigh(operator.normaliser, scores, seen, heads)
            weights = weights + (one if share is None else share * one)
        extra, pattern = weights[..., :n_slots], weights[..., n_slots:]
        if slots is None:
            return self.hook_pattern(pattern), None
        if slots.spread is not None:
            return self.hook_pattern(pattern + extra @ slots.spread), None
        return self.hook_pattern(pattern), self.hook_slot_pattern(extra)

    def _weigh(
        self, normaliser: Normaliser, scores: Tensor, seen: Tensor, heads: Heads
    ) -> Tensor:
        kernel, gate = self.operator.kernel, self.operator.gate
        own = self._of("normaliser")
        pattern = normaliser.pattern(Scored(scores, seen, kernel, heads), own)
        return gate.weigh(pattern, seen, heads.x, self._of("gate"))

    def _of(self, part: str) -> dict[str, Tensor]:
        return dict(getattr(self, part).items())

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """Initial values of the operator's own parameters."""
        for name, init in self.inits.items():
            parameter = self.get_parameter(name)
            if init.std is None:
                bound = init.shape[-2] ** -0.5
                parameter.uniform_(-bound, bound, generator=generator)
            elif init.std == 0:
                parameter.zero_()
            else:
                parameter.normal_(0, init.std, generator=generator)
