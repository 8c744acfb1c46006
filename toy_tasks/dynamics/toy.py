"""A toy transformer in which only a sink's logit and value are left to train.

One attention-only layer that solves Bigram-Backcopy, its weights set by hand: the
skip path says the bigram table, the head copies the token before, on every query. On
triggers that is right; elsewhere it is noise, which only the sink can take away. What
trains is `<s>`'s score on each query token (alpha) and `<s>`'s value (beta), both zero
at the start: the theory's two parameters, in real forward passes on real sequences.

Source: Guo et al. 2024 (arXiv:2410.13835) for task and theory; this toy is ours.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from numpy import ndarray
from torch import Tensor

from toy_tasks.bigram_backcopy import BigramBackcopy
from toy_tasks.bigram_law import BOS
from toy_tasks.config import ToyConfig
from toy_tasks.transformer import ToyTransformer

PREVIOUS, COPY = 4.0, 12.0
"""Score of the token before; logits that a head gives the one token it looks at."""
FLOOR = 1e-12
"""Probability of the table's impossible tokens. At 1e-6 the logit of `<s>`, which
never comes, drifted enough to bend the norm of beta."""


def random_task(seed: int, n_letters: int = 8, n_triggers: int = 2) -> BigramBackcopy:
    """A small task whose table is random and positive: rows of a flat Dirichlet law.

    The first letters are the triggers.
    """
    rows = random_table(n_letters, seed)
    table = torch.zeros(n_letters + 1, n_letters + 1, dtype=torch.float64)
    table[:n_letters, :n_letters] = torch.from_numpy(rows)
    table[n_letters, :n_letters] = 1 / n_letters
    letters = [chr(ord("a") + i) for i in range(n_letters)]
    triggers = list(range(n_triggers))
    return BigramBackcopy([*letters, BOS], table, table[n_letters], triggers)


def random_table(n: int, seed: int) -> Float64[ndarray, "n n"]:
    """A strictly positive table: rows of a flat Dirichlet law."""
    return np.random.default_rng(seed).dirichlet(np.ones(n), size=n)


def task_queries(
    task: BigramBackcopy,
) -> tuple[
    Float64[ndarray, "query vocab"], Float64[ndarray, " query"], Int[ndarray, " query"]
]:
    """Law, share and token id of a task's non-trigger queries, for `reduced_dynamics`.

    Shares are those of a long sequence, renormalised over the non-triggers; tokens
    that such a sequence never holds, as `<s>`, are left out.
    """
    table, n = task.table.numpy(), task.d_vocab
    is_trigger = np.zeros(n, dtype=bool)
    if task.mode != "markov":
        is_trigger[task.triggers] = True
    c = task.copy_probability
    pair = np.zeros((n, n))  # token before, last token
    pair[task.bos] = task.first_law.numpy()
    for _ in range(100_000):
        drawn = np.where(is_trigger, 0, pair.sum(0))[:, None] * table
        at = np.where(is_trigger, pair, 0)
        # After a trigger x: the token before it, or a draw from that one's row.
        copied = c * at.T + (1 - c) * (at.T @ table)
        after = (pair + drawn + copied) / 2  # halved: a periodic chain settles too
        moved, pair = np.abs(after - pair).sum(), after
        if moved < 1e-13:
            break
    share = pair.sum(0)
    asks = ~task.is_trigger(torch.arange(n)).numpy() & (share > 1e-9)
    tokens = np.flatnonzero(asks)
    return table[tokens], share[tokens] / share[tokens].sum(), tokens


def sink_toy(task: BigramBackcopy, n_ctx: int = 12) -> ToyTransformer:
    """The planted model, float64, with hooks that let no other weight move.

    SGD of learning rate lr moves alpha and beta by lr times their own gradients: an
    entry of W_Q is a score in nats, a row of W_V @ W_O @ W_U is in logits.
    """
    n_vocab = task.d_vocab
    d_head = max(n_ctx + 1, n_vocab)
    config = ToyConfig(
        d_vocab=n_vocab,
        d_model=2 * n_vocab + n_ctx,
        d_head=d_head,
        n_ctx=n_ctx,
        norm="none",
        mlp_layers=(),
        frozen=("W_E", "W_pos", "W_unembed", *(f"blocks.0.attn.W_{x}" for x in "KO")),
    )
    model = ToyTransformer(config).double()
    token, out = slice(n_vocab), slice(n_vocab, 2 * n_vocab)
    first, rest = 2 * n_vocab, n_ctx  # residual: position 0; head: "rests on <s>"
    attn = _attention(model)
    root = math.sqrt(d_head)
    law = task.table.clone()
    law[task.bos] = task.first_law
    rows = law.clamp_min(FLOOR).log()
    # Triggers leave the word to the head, but for tokens that never come.
    rows[task.triggers] = (task.marginal > 0).double().clamp_min(FLOOR).log()
    eye = torch.eye(n_vocab, dtype=torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.W_E[:, token] = eye
        model.W_pos[:, first:] = torch.eye(n_ctx)
        model.W_unembed[token] = rows
        model.W_unembed[out] = eye
        attn.W_K[0, first:, :n_ctx] = torch.eye(n_ctx)
        attn.W_K[0, task.bos, rest] = root
        here = range(first + 1, first + n_ctx)
        attn.W_Q[0, here, range(n_ctx - 1)] = PREVIOUS * root
        attn.W_V[0, token, :n_vocab] = COPY * eye
        attn.W_V[0, task.bos] = 0
        attn.W_O[0, :n_vocab, out] = eye
    for weight, entries in (
        (attn.W_Q, (0, token, rest)),
        (attn.W_V, (0, task.bos, token)),
    ):
        mask = torch.zeros_like(weight)
        mask[entries] = 1
        weight.register_hook(mask.mul)
    return model


def sink_parameters(
    model: ToyTransformer, task: BigramBackcopy
) -> tuple[Float[Tensor, " vocab"], Float[Tensor, " vocab"]]:
    """Alpha by query token, nats, and beta, logits, of a `sink_toy`."""
    attn = _attention(model)
    n_vocab, n_ctx = task.d_vocab, model.config.n_ctx
    alpha = attn.W_Q[0, :n_vocab, n_ctx]
    return alpha.detach().clone(), attn.W_V[0, task.bos, :n_vocab].detach().clone()


def train_sink(
    model: ToyTransformer,
    task: BigramBackcopy,
    *,
    steps: int,
    lr: float,
    batch: int = 32,
    seed: int = 0,
    callback: Callable[[int, ToyTransformer, BigramBackcopy], object] | None = None,
    callback_steps: Sequence[int] = (),
) -> Float[Tensor, " step"]:
    """Plain gradient descent, in place, on fixed sequences and their exact laws.

    The loss is the expected one over the next token, so neither labels nor the draw
    of a batch add noise: descent stays close to gradient flow, time = lr times steps.

    Args:
        model: from `sink_toy`; others train too, all their free weights.
        task: draws the sequences.
        steps: updates.
        lr: step size.
        batch: sequences.
        seed: of the sequences.
        callback: called as callback(step, model, task) after `callback_steps` updates.
        callback_steps: when.

    Returns:
        KL from the oracle before each update, nats a position.
    """
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=lr)
    tokens = task.sample(batch, model.config.n_ctx, seed)
    law = task.oracle_logprobs(tokens).exp()
    entropy = torch.special.entr(law).sum(-1).mean()
    losses = torch.zeros(steps, dtype=torch.float64)
    calls = set(callback_steps)
    for step in range(steps + 1):
        if step in calls and callback is not None:
            with torch.no_grad():
                callback(step, model, task)
        if step == steps:
            break
        loss = -(law * model(tokens).log_softmax(-1)).sum(-1).mean() - entropy
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses[step] = loss.detach()
    return losses


def _attention(model: ToyTransformer) -> Any:
    block: Any = model.blocks[0]
    return block.attn
