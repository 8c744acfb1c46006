"""Long prompts: nothing grows with their square, and chunks change no number."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import mechsink as ms
from mechsink.models import branches, stream_losses, streaming
from mechsink.models.bridge import BridgeModel
from mechsink.models.slot_cache import SlotCache
from mechsink.sinks.dormant.losses import head_losses, token_losses
from tests.models.backends import load, matrix

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "long_context.py"
TOKENS = torch.tensor([[i * i * 7 % 79 for i in range(3, 29)]])  # 26 tokens


class Largest(TorchDispatchMode):
    """Numbers in the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.numel = max(self.numel, leaf.untyped_storage().nbytes() // 4)
        return out


@pytest.fixture(scope="module")
def model() -> BridgeModel:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=80,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
    )
    return BridgeModel(LlamaForCausalLM(config).eval(), name="long")


def prompt(n: int, rows: int = 1) -> torch.Tensor:
    return torch.randint(80, (rows, n), generator=torch.manual_seed(n))


CALLS: dict[str, Callable[[Any, int], Any]] = {
    "scores": lambda model, n: ms.sink_scores(model, prompt(n), (0, 1)),
    "report": lambda model, n: ms.sink_report(model, prompt(n)),
    "heads": lambda model, n: head_losses(model, prompt(n), [(1, 2), (2, 0)]),
    "secondary": lambda model, n: ms.secondary_sinks(model, prompt(n), cosine=0.5),
    "dense": lambda model, n: list(
        ms.stream_losses(model, prompt(n)[0], [ms.Dense()], n)
    ),
    "window": lambda model, n: list(
        ms.stream_losses(model, prompt(n)[0], [ms.SinkWindow(4, 60)], n)
    ),
}


@pytest.mark.parametrize(
    "name", [n if n not in ("report", "secondary") else matrix(n) for n in CALLS]
)
@pytest.mark.first_case
def test_the_largest_tensor_grows_no_faster_than_the_prompt(name, model) -> None:
    CALLS[name](model, 65)  # proofs and probes are of short prompts
    found = []
    for n in (512, 1536):
        with Largest() as largest:
            CALLS[name](model, n)
        found.append(largest.numel)
    assert found[1] <= 3.01 * found[0]  # 1,535 tokens and 511 are predicted
    assert found[1] < 1536 * 1536  # one head's pattern; a layer has four


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_logits_of_a_few_positions_are_those_of_all(name, monkeypatch) -> None:
    model: Any = load(name)
    tokens = TOKENS.expand(2, -1)
    monkeypatch.setattr(branches, "LOGITS", 2 * 80 * 5)  # five positions of 26
    run = branches.Branches(model.plain, tokens)
    ((branch, stream),) = run.streams([], {})
    assert branch is None
    starts, parts = zip(*run.logits(stream), strict=True)
    assert starts == (0, 5, 10, 15, 20, 25)
    want = model.run(tokens).logits
    torch.testing.assert_close(torch.cat(parts, 1), want, rtol=1e-5, atol=1e-5)
    got = head_losses(model, tokens, [(0, 1), (0, 1)])
    assert got.full == pytest.approx(token_losses(want, tokens), abs=1e-6)
    assert (got.edited["moved"][:, 0] == got.edited["moved"][:, 1]).all()


def test_a_head_that_is_left_as_it_is_changes_no_bit(model) -> None:
    tokens = prompt(300)
    run = branches.Branches(model.plain, tokens)
    branch = branches.Branch(1, 3, "kept")
    one, two = (x for _, x in run.streams([branch], {"kept": lambda z, v: z.clone()}))
    assert torch.equal(one, two)


def test_a_long_step_is_many_short_ones(monkeypatch) -> None:
    model = load("llama")
    policies = [ms.Dense(), ms.SinkWindow(2, 5), ms.Window(4)]
    want = ms.Stream(model, policies).step(TOKENS)
    losses = [p.losses for p in ms.stream_losses(model, TOKENS[0], policies, 26)]
    seen: list[int] = []
    attend = SlotCache.attend
    monkeypatch.setattr(
        SlotCache,
        "attend",
        lambda self, q, *rest: (seen.append(q.shape[2]), attend(self, q, *rest))[1],
    )
    monkeypatch.setattr(streaming, "PIECE", 4)
    monkeypatch.setattr(stream_losses, "PIECE", 4)
    got = ms.Stream(model, policies).step(TOKENS)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert max(seen) == 4
    again = [p.losses for p in ms.stream_losses(model, TOKENS[0], policies, 26)]
    assert len(again) == 1 and again[0].shape == (3, 25)
    torch.testing.assert_close(again, losses, rtol=1e-5, atol=1e-5)


def measured(n_tokens: int) -> dict[str, Any]:
    """Sink scores on two layers of SmolLM2's architecture, in a process of its own."""
    child = [sys.executable, str(BENCHMARK), "--child", "scores", str(n_tokens)]
    done = subprocess.run(
        [*child, "--layers", "2"], check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_sink_scores_at_32768_tokens_grow_at_most_linearly() -> None:
    short, long = measured(8_192), measured(32_768)
    assert long["added_gb"] <= 4 * 1.02 * short["added_gb"]  # of pages, not numbers
    assert long["peak_gb"] < 6
