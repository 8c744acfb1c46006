"""A model whose scores, values and residuals are chosen by the test."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from mechsink.models.attention import PatternAttention
from mechsink.run import ModelShape, Run


def causal_softmax(scores):
    n_pos = scores.shape[-1]
    hidden = ~torch.ones(n_pos, n_pos, dtype=torch.bool).tril()
    return scores.masked_fill(hidden, -torch.inf).softmax(-1)


def causal_relu(scores):
    """Rows do not sum to one: relu(s) / (i + 1), as in facts on Bigram-Backcopy."""
    return scores.relu().tril() / torch.arange(1, scores.shape[-1] + 1)[:, None]


@dataclass(frozen=True, eq=False)
class CannedModel:
    """scores(n_pos) -> [layer head query key]; the rest likewise, in float64."""

    scores: Callable = lambda n: torch.zeros(1, 1, n, n)
    values: Callable = lambda n: torch.ones(1, 1, n, 1)  # layer kv_head pos d_head
    stream: Callable = lambda n: torch.ones(2, n, 1)  # layer pos d_model
    w_out: torch.Tensor = field(default_factory=lambda: torch.ones(1, 1, 1, 1))
    normalise: Callable = causal_softmax
    passes: list = field(default_factory=list)
    name = "canned"
    device = torch.device("cpu")
    dtype = torch.float64

    @property
    def info(self):
        return {"backend": "canned"}

    @property
    def shape(self):
        n_layers, n_heads = self.scores(1).shape[:2]
        d_head, d_model = self.w_out.shape[2:]
        n_kv = self.values(1).shape[1]
        return ModelShape(n_layers, n_heads, n_kv, d_model, d_head, 1, 100, 10**6)

    def to_tokens(self, texts):
        texts = [texts] if isinstance(texts, str) else texts
        return torch.tensor([[ord(c) for c in text] for text in texts])

    def to_strings(self, tokens):
        return [chr(token) for token in tokens.tolist()]

    def run(self, tokens, *, read=(), edit=None, grad=False):
        return Run(tokens, torch.zeros(*tokens.shape, 100), {})

    def visit(self, tokens, *, attention=None, residual=None):
        batch, n_pos = tokens.shape
        self.passes.append(tokens)

        def one_a_prompt(tensor):
            return tensor.double().expand(batch, *tensor.shape)

        scores, values, stream = (
            f(n_pos) for f in (self.scores, self.values, self.stream)
        )
        for layer in range(len(scores)):
            if residual:
                residual(layer, one_a_prompt(stream[layer]))
            if attention:
                raw = scores[layer].double()
                hidden = ~torch.ones(n_pos, n_pos, dtype=torch.bool).tril()
                seen = PatternAttention(
                    layer=layer,
                    v=one_a_prompt(values[layer]),
                    pattern=one_a_prompt(self.normalise(raw)),
                    scores=one_a_prompt(raw.masked_fill(hidden, torch.finfo().min)),
                    is_softmax=self.normalise is not causal_relu,
                )
                attention(seen)
        if residual:
            residual(len(scores), one_a_prompt(stream[-1]))

    def w_o(self, layer):
        return self.w_out[layer].double()


def tokens(n_pos, batch=1):
    return torch.full((batch, n_pos), ord("a"))
