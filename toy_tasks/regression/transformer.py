"""The toy transformer on regression prompts: real numbers in, real numbers out."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from toy_tasks.config import ToyConfig
from toy_tasks.operators import Operator
from toy_tasks.regression.task import RegressionPrompts
from toy_tasks.transformer import ToyTransformer


class RegressionTransformer(ToyTransformer):
    """A toy transformer whose prompts are columns [x; y] in place of tokens.

    The embedding is a matrix from the d_in entries of a column, the unembedding one
    back, and the predictions are the last `n_out` entries at the query, which stands
    last. So it has all sites of the toy transformer.

    Attention alone and no norms unless `options` say otherwise: then a prediction
    needs attention weights that depend on content, since a linear function of a prompt
    is no better than 0.

    Args:
        d_in: entries of a column, task.d_in.
        operator: attention operator; None for plain softmax.
        n_layers: blocks.
        n_heads: heads a block.
        n_out: predictions, task.n_tasks.
        n_ctx: longest prompt: the examples and the query.
        options: other fields of `ToyConfig`.
        seed: of the weights.

    Raises:
        ValueError: the options ask for what a `ToyConfig` refuses.

    Source: prompts of He et al. 2025 (arXiv:2503.12734); the transformer is ours.

    Examples:
        >>> from toy_tasks import LinearRegression, RegressionTransformer
        >>> task = LinearRegression(d=3)
        >>> model = RegressionTransformer(task.d_in, n_ctx=11)
        >>> prompts = task.sample(batch=4, n_examples=10, seed=0)
        >>> tuple(model(prompts.sequence).shape)
        (4, 1)
    """

    def __init__(
        self,
        d_in: int,
        operator: Operator | None = None,
        n_layers: int = 1,
        n_heads: int = 2,
        *,
        n_out: int = 1,
        n_ctx: int = 41,
        seed: int = 0,
        **options: Any,
    ) -> None:
        given: dict[str, Any] = {
            "d_model": 16,
            "d_head": 8,
            "norm": "none",
            "positions": "none",
            "mlp_layers": (),
        }
        given.update(options)
        config = ToyConfig(
            d_vocab=d_in,
            n_layers=n_layers,
            n_heads=n_heads,
            n_ctx=n_ctx,
            operators=operator,
            **given,
        )
        super().__init__(config, seed)
        if not 1 <= n_out < d_in:
            raise ValueError(
                f"RegressionTransformer: n_out={n_out} of d_in={d_in} entries. "
                "Allowed: the number of y entries, task.n_tasks, with x beside them."
            )
        self.n_out = n_out

    def forward(
        self, sequence: Float[Tensor, "batch pos d_in"]
    ) -> Float[Tensor, "batch task"]:
        """Predictions at the last position.

        Args:
            sequence: the examples, then the query.

        Raises:
            ValueError: the prompt is longer than `n_ctx`.
        """
        resid = self.embed(sequence)
        for block in self.blocks:
            resid = block(resid)
        return self.unembed(resid[:, -1:])[:, -1, -self.n_out :]

    def embed(
        self, sequence: Float[Tensor, "batch pos d_in"], start: int = 0
    ) -> Float[Tensor, "batch pos d_model"]:
        """Residual before layer 0; `start` is the position of the first column.

        Args:
            sequence: the examples, then the query.
            start: position of the first column.

        Raises:
            ValueError: a prompt longer than `n_ctx`.
        """
        end = start + sequence.shape[1]
        if end > self.config.n_ctx:
            raise ValueError(
                f"RegressionTransformer: the prompt reaches position {end - 1}, but "
                f"this model has positions 0 to {self.config.n_ctx - 1}. Take fewer "
                "examples, or a larger n_ctx."
            )
        resid = self.hook_embed(sequence @ self.W_E)
        if not self.config.adds_positions:
            return resid
        table = self.W_pos if self.config.positions == "learned" else self.sinusoids
        return resid + self.hook_pos_embed(table[start:end].expand_as(resid))

    def update(
        self, optimizer: torch.optim.Optimizer, prompts: RegressionPrompts
    ) -> Float[Tensor, ""]:
        """One optimiser step on the squared error; the loss before it.

        Args:
            optimizer: of this model's parameters.
            prompts: a batch.
        """
        loss = (self(prompts.sequence) - prompts.y_query).square().mean()
        extra = self.extra_loss()
        optimizer.zero_grad()
        (loss if extra is None else loss + extra).backward()
        optimizer.step()
        return loss.detach()
