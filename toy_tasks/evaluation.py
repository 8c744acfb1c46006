"""How far a model is from the oracle, on triggers and elsewhere."""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from toy_tasks.bigram_backcopy import BigramBackcopy


@torch.no_grad()
def evaluate(
    model: torch.nn.Module, task: BigramBackcopy, tokens: Int[Tensor, "batch pos"]
) -> dict[str, float]:
    """Loss and excess risk, split by what the position asks for.

    Excess risk is KL(oracle || model), the expected loss above the oracle's, so it
    carries no noise from the next token drawn. Positions fall in three groups:
    `trigger`, `markov` (the others) and `first` (all up to and with the last `<s>`;
    position 0 if there is none).

    Args:
        model: gives logits [batch pos vocab] of tokens [batch pos].
        tokens: from `task.sample`; the last token is only predicted.

    Returns:
        In nats: `loss` (cross-entropy on the tokens), `oracle_loss` (the oracle's on
        the same tokens), `excess` (over all positions), and for each group G
        `G_loss` (model's expected loss), `G_excess`; NaN where a group is empty.
    """
    inputs, nexts = tokens[:, :-1], tokens[:, 1:]
    model_log = model(inputs).double().log_softmax(-1)
    oracle_log = task.oracle_logprobs(inputs)
    law = oracle_log.exp()
    # 0 * log 0 counts as 0, in both sums.
    cross = -torch.where(law > 0, law * model_log, 0).sum(-1)
    excess = cross - torch.special.entr(law).sum(-1)
    position = torch.arange(inputs.shape[1], device=tokens.device)
    first = (position < max(task.n_bos, 1)).expand(inputs.shape)
    trigger = task.is_trigger(inputs) & ~first
    result: dict[str, Any] = {
        "loss": -model_log.gather(2, nexts[..., None]).mean().item(),
        "oracle_loss": task.oracle_loss(tokens).mean().item(),
        "excess": excess.mean().item(),
    }
    for name, group in (
        ("trigger", trigger),
        ("markov", ~trigger & ~first),
        ("first", first),
    ):
        result[f"{name}_loss"] = cross[group].mean().item()
        result[f"{name}_excess"] = excess[group].mean().item()
    return result
