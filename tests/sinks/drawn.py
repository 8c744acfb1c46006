"""A model whose attention is a function of the tokens, chosen by the test."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from mechsink.models.attention import PatternAttention
from tests.sinks.canned import CannedModel


@dataclass(frozen=True, eq=False)
class DrawnModel(CannedModel):
    """draw(tokens) -> [batch query key], used by one head of one layer as it is."""

    draw: Callable = lambda tokens: torch.zeros(0)

    def visit(self, tokens, *, attention=None, residual=None):
        assert attention is not None and residual is None
        pattern = self.draw(tokens).double()[:, None]
        v = torch.ones(len(tokens), 1, tokens.shape[1], 1).double()
        attention(PatternAttention(0, v, pattern, pattern))
