"""How far a model is from the oracle, and how often its answer is right."""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from toy_tasks.bigram_backcopy import BigramBackcopy


@torch.no_grad()
def evaluate(
    model: torch.nn.Module,
    task: BigramBackcopy,
    tokens: Int[Tensor, "batch pos"],
    *,
    start: int = 0,
) -> dict[str, float]:
    """Loss and excess risk, split by what the position asks for.

    Excess risk is KL(oracle || model), the expected loss above the oracle's, so it
    carries no noise from the next token drawn. Positions fall in three groups:
    `trigger`, `markov` (the others) and `first` (all up to and with the last `<s>`;
    position 0 if there is none).

    Args:
        model: gives logits [batch pos vocab] of tokens [batch pos].
        tokens: from `task.sample`; the last token is only predicted.
        start: earlier positions are left out, such as all but the last of a prefix
            whose tokens see each other.
        task: whose oracle it is compared with.

    Returns:
        In nats: `loss` (cross-entropy on the tokens), `oracle_loss` (the oracle's on
        the same tokens), `excess` (over all positions), and for each group G
        `G_loss` (model's expected loss), `G_excess`; NaN where a group is empty.

    Source: the split of Guo et al. 2024 (arXiv:2410.13835).

    Examples:
        >>> from toy_tasks import evaluate
        >>> from toy_tasks.planted import backcopy, backcopy_task
        >>> task = backcopy_task()
        >>> found = evaluate(backcopy().model, task, task.sample(16, 12, seed=0))
        >>> round(found["trigger_excess"], 2), round(found["markov_excess"], 2)
        (0.0, 0.0)
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
    counted = (position >= start).expand(inputs.shape)
    result: dict[str, Any] = {
        "loss": -model_log.gather(2, nexts[..., None])[:, start:].mean().item(),
        "oracle_loss": task.oracle_loss(tokens)[:, start:].mean().item(),
        "excess": excess[:, start:].mean().item(),
    }
    for name, group in (
        ("trigger", trigger),
        ("markov", ~trigger & ~first),
        ("first", first),
    ):
        result[f"{name}_loss"] = cross[group & counted].mean().item()
        result[f"{name}_excess"] = excess[group & counted].mean().item()
    return result


@torch.no_grad()
def realised_excess(
    model: torch.nn.Module,
    task: BigramBackcopy,
    tokens: Int[Tensor, "batch pos"],
    *,
    start: int = 0,
) -> tuple[float, float]:
    """Loss above the oracle's on the tokens that came, and its standard error, nats.

    Nobody who sees only the past beats the oracle but by luck: below -3 standard
    errors the model sees the future. `evaluate`'s excess cannot show that, since a
    divergence is never negative. Sequences are the units of the error.

    Args:
        model: gives logits [batch pos vocab] of tokens [batch pos].
        tokens: from `task.sample`, two sequences or more.
        start: as for `evaluate`.
        task: whose oracle it is compared with.

    Returns:
        Mean and standard error over sequences, nats a token.

    Raises:
        ValueError: fewer than two sequences.

    Examples:
        >>> from toy_tasks import realised_excess
        >>> from toy_tasks.planted import backcopy, backcopy_task
        >>> task = backcopy_task()
        >>> excess, error = realised_excess(
        ...     backcopy().model, task, task.sample(16, 12, seed=0)
        ... )
        >>> excess > -3 * error
        True
    """
    if len(tokens) < 2:
        raise ValueError(
            f"realised_excess: {len(tokens)} sequences. A standard error takes two; "
            "pass some hundred, such as task.sample(512, 65, seed=1)."
        )
    nexts = tokens[:, 1:, None]
    log = model(tokens[:, :-1]).double().log_softmax(-1).gather(2, nexts)[..., 0]
    above = (-log - task.oracle_loss(tokens))[:, start:].mean(1)
    return above.mean().item(), (above.std() / len(above) ** 0.5).item()


@torch.no_grad()
def accuracy(
    model: torch.nn.Module,
    tokens: Int[Tensor, "prompt pos"],
    answers: Int[Tensor, " prompt"],
) -> float:
    """Share of prompts whose last token is followed by the answer, 0 to 1.

    The most likely token of all counts as the model's answer, so guessing scores
    1 over the vocabulary's size.

    Args:
        model: gives logits [prompt pos vocab] of tokens [prompt pos].
        tokens: prompts, such as `Sums(...).held_out_prompts()` gives.
        answers: the right next token of each.

    Returns:
        0 to 1.

    Raises:
        ValueError: no prompts.

    Examples:
        >>> from toy_tasks import accuracy
        >>> from toy_tasks.planted import induction
        >>> case = induction(n_prompts=12)
        >>> accuracy(case.model, case.clean, case.answers)
        1.0
    """
    if not len(tokens):
        raise ValueError(
            "accuracy: no prompts given. A task with held_out=0 has none held out: "
            "set a share above 0, or pass all_prompts()."
        )
    right = [
        model(some)[:, -1].argmax(-1) == answer
        for some, answer in zip(tokens.split(1024), answers.split(1024), strict=True)
    ]
    return torch.cat(right).double().mean().item()
