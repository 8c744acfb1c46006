"""Head profiles and searches on a model whose answer is planted, and by ablation."""

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor

from mechsink.experiments.head_search.profile import (
    NextTokenEntropy,
    answer_is_right,
    next_token_entropy,
    profile_heads,
)
from mechsink.experiments.head_search.search import act_search, zero_tuning_search
from mechsink.interventions.attention_edits import (
    on_heads,
    soft_pag,
    zero_head,
    zero_tuning,
)
from mechsink.metrics import logit_diff
from mechsink.models.hooks import SiteHooks
from mechsink.prompts import PromptPairs
from mechsink.run import ModelShape, Run
from mechsink.sites import Site
from tests.models.backends import load


@dataclass
class Planted:
    """Logit of token 1 = sum over heads of weight * attention to one key.

    Patterns are given, [layer head query key]; the last query is read. Token 0 has
    logit 0. Each prompt's first token scales its logits.
    """

    patterns: Tensor
    weights: Tensor  # layer head
    key: int = 0
    name: str = "planted"
    device: torch.device = field(default=torch.device("cpu"))
    dtype: torch.dtype = torch.float64
    info: dict = field(default_factory=dict)

    @property
    def shape(self) -> ModelShape:
        n_layers, n_heads = self.weights.shape
        return ModelShape(n_layers, n_heads, n_heads, 1, 1, 1, 99, 99)

    def to_tokens(self, texts):
        raise NotImplementedError

    def to_strings(self, tokens):
        return [str(int(t)) for t in tokens]

    def run(self, tokens, *, read=(), edit=None, grad=False) -> Run:
        hooks = SiteHooks(read, edit)
        points = hooks.points(resid_mid_is_hook=True)
        logit = torch.zeros(len(tokens), dtype=torch.float64)
        for layer, pattern in enumerate(self.patterns):
            whole = pattern.double().expand(len(tokens), *pattern.shape)
            site = Site("pattern", layer)
            new = points[site](whole) if site in points else None
            seen = whole if new is None else new
            logit = logit + seen[:, :, -1, self.key] @ self.weights[layer].double()
        logit = logit * tokens[:, 0]
        logits = torch.stack([torch.zeros_like(logit), logit], dim=-1)
        return Run(tokens, logits[:, None].expand(-1, tokens.shape[1], -1), {})

    def visit(self, tokens, *, attention=None, residual=None):
        raise NotImplementedError

    def w_o(self, layer):
        raise NotImplementedError


UNIFORM = torch.ones(5, 5).tril() / torch.arange(1, 6)[:, None]
WEIGHTS = torch.tensor([[3.0, -1.0, 0.0], [-2.0, 0.0, 4.0]])
MODEL = Planted(UNIFORM.expand(2, 3, 5, 5), WEIGHTS)


def pairs(scales: list[int]) -> PromptPairs:
    tokens = torch.tensor([[scale, 1, 1, 1, 1] for scale in scales])
    return PromptPairs(tokens, tokens, torch.tensor([1]), torch.tensor([0]))


def test_effects_are_the_planted_ones() -> None:
    # Uniform over five keys: gamma 2 makes 1/5 into 2/6.
    got = profile_heads(MODEL, pairs([1, 3]), zero_tuning(2.0), logit_diff)
    gain = (2 / 6 - 1 / 5) * 2  # prompts scaled by 1 and 3: 2 on average
    want = gain * WEIGHTS.flatten().numpy()
    assert got.table["effect"].to_numpy() == pytest.approx(want)
    assert got.ranking()[:2] == [(1, 2), (0, 0)]
    assert got.ranking()[-1] == (1, 0)
    assert got.helpful() == [(0, 0), (1, 2)]
    # Two prompts: Student's t with one degree of freedom, 12.706 (any table).
    half = 12.7062 * abs(got.prompts["effect"][0] * 2) / 2
    low, high = got.table["low"][0], got.table["high"][0]
    assert (high - low) / 2 == pytest.approx(half, rel=1e-4)
    assert got.helpful(sure=True) == []
    down = profile_heads(
        MODEL, pairs([1, 3]), zero_tuning(2.0), logit_diff, goal="lower"
    )
    assert down.ranking()[0] == (1, 0)
    assert down.helpful() == [(0, 1), (1, 0)]


def test_one_prompt_has_no_interval_and_many_are_bootstrapped() -> None:
    one = profile_heads(MODEL, pairs([1]), zero_tuning(2.0), logit_diff)
    assert one.table["low"].isna().all() and one.helpful(sure=True) == []
    scales = list(range(1, 61))
    many = profile_heads(
        MODEL, pairs(scales), zero_tuning(2.0), logit_diff, heads=[(0, 0)]
    )
    effect = 3 * (2 / 6 - 1 / 5) * np.array(scales)
    half = 1.96 * effect.std() / math.sqrt(60)  # the central limit's interval
    row = many.table.iloc[0]
    assert row["effect"] == pytest.approx(effect.mean())
    assert row["high"] - row["effect"] == pytest.approx(half, rel=0.1)
    assert row["effect"] - row["low"] == pytest.approx(half, rel=0.1)
    assert many.helpful(sure=True) == [(0, 0)]


@pytest.mark.parametrize("name", ["llama", "toy"])
def test_zeroing_heads_is_ablating_them(name: str) -> None:
    model = load(name)
    tokens = torch.arange(14).reshape(2, 7) * 11 % 80
    given = PromptPairs(tokens, tokens, torch.tensor([5]), torch.tensor([9]))
    got = profile_heads(model, given, zero_head(), logit_diff).prompts
    plain = model.run(tokens).logits[:, -1]
    for layer, head in [(0, 0), (1, 3), (2, 2)]:
        off = {Site("z", layer, head=head): torch.zeros_like}
        new = model.run(tokens, edit=off).logits[:, -1] - plain
        here = got[(got["layer"] == layer) & (got["head"] == head)]
        want = (new[:, 5] - new[:, 9]).tolist()
        assert here["effect"].tolist() == pytest.approx(want, abs=1e-4)
    same = profile_heads(model, given, soft_pag(0.0), logit_diff, heads=[(1, 1)])
    assert same.table["effect"].tolist() == [0.0]


def test_entropy_needs_no_answers() -> None:
    logits = torch.tensor([[[0.0] * 8], [[5.0] + [-torch.inf] * 7]])
    run = Run(torch.zeros(2, 1, dtype=torch.long), logits, {})
    got = NextTokenEntropy()(run)
    torch.testing.assert_close(got, torch.tensor([math.log(8), 0.0]))
    tokens = torch.tensor([[1, 1, 1, 1, 1]])
    found = profile_heads(
        MODEL, tokens, zero_tuning(2.0), next_token_entropy, goal="lower"
    )
    # The logit is positive, (4 / 5), so what raises it lowers the entropy.
    assert found.helpful() == [(0, 0), (1, 2)]

    def entropy(logit: float) -> float:
        p = 1 / (1 + math.exp(-logit))
        return -p * math.log(p) - (1 - p) * math.log(1 - p)

    gain = 4 * (2 / 6 - 1 / 5)
    want = entropy(0.8 + gain) - entropy(0.8)
    assert found.table["effect"][5] == pytest.approx(want)


def test_zero_tuning_classes_and_gamma() -> None:
    found = zero_tuning_search(MODEL, pairs([1, 2]), logit_diff, gammas=(0.5, 2.0, 4.0))
    kinds = found.table["kind"].tolist()
    assert kinds == ["up", "down", "none", "down", "none", "up"]
    assert (found.kind, found.heads) == ("up", [(0, 0), (1, 2)])
    # More attention to key 0 is better without end: the largest gamma offered.
    assert found.gamma == 4.0
    # Together, at gamma 4: 7 * 4/8 - 3 * 1/5, times the mean scale 1.5.
    best = found.grid[found.grid["gamma"] == 4.0]["value"].item()
    assert best == pytest.approx((7 * 4 / 8 - 3 / 5) * 1.5)
    assert found.grid["gamma"].tolist() == [0.5, 1.0, 2.0, 4.0]
    run = MODEL.run(pairs([1]).clean, edit=found.edit)
    assert run.logits[0, -1, 1].item() == pytest.approx(7 * 4 / 8 - 3 / 5)
    down = zero_tuning_search(
        MODEL, pairs([1]), logit_diff, gammas=(0.5, 4.0), heads=[(0, 1), (0, 2)]
    )
    assert (down.kind, down.gamma, down.heads) == ("down", 0.5, [(0, 1)])


def test_nothing_helpful_leaves_the_model_plain() -> None:
    found = zero_tuning_search(MODEL, pairs([1]), logit_diff, heads=[(0, 2)])
    assert found.heads == [] and found.gamma == 1.0 and found.edit == {}
    with pytest.raises(ValueError, match="Allowed: above 1"):
        zero_tuning_search(MODEL, pairs([1]), logit_diff, probe=0.5)


def test_act_search_keeps_heads_with_a_sink_to_calibrate() -> None:
    # Head 0 has a second sink at key 2 and wants key 3; head 1 has no second sink.
    sink = torch.eye(5)
    sink[3] = torch.tensor([0.3, 0.1, 0.5, 0.1, 0.0])
    sink[4] = torch.tensor([0.2, 0.1, 0.5, 0.1, 0.1])
    first = torch.zeros(5, 5)
    first[:, 0] = 1
    patterns = torch.stack([torch.stack([sink, first])] * 5)
    weights = torch.tensor([[1.0, 1.0]] * 5)
    model = Planted(patterns, weights, key=3)
    found = act_search(model, pairs([1, 1]), logit_diff, beta=0.4, theta=0.3)
    # The paper's layers: all but the first two and the last.
    assert set(found.table["layer"]) == {2, 3}
    assert found.helpful() == [(2, 0), (3, 0)]
    edit = on_heads(zero_head(), found.helpful())
    assert set(edit) == {Site("pattern", 2, head=0), Site("pattern", 3, head=0)}
    small = act_search(Planted(patterns[:3], weights[:3]), pairs([1]), logit_diff)
    assert set(small.table["layer"]) == {0, 1, 2}


def test_accuracy_counts_right_answers() -> None:
    logits = torch.tensor([[[1.0, 2.0]], [[2.0, 1.0]], [[1.0, 1.0]]])
    run = Run(torch.zeros(3, 1, dtype=torch.long), logits, {})
    group = pairs([1, 2, 3]).tokens(MODEL)[0]
    assert answer_is_right(run, group).tolist() == [1.0, 0.0, 0.0]


def test_profiles_can_be_saved_and_drawn(tmp_path) -> None:
    found = profile_heads(MODEL, pairs([1, 2]), zero_tuning(2.0), logit_diff)
    back = type(found).load(found.save(tmp_path / "profile"))
    assert back.ranking() == found.ranking()
    axes = found.plot()
    assert axes.get_xlabel() == "layer" and axes.get_ylabel() == "head"


def test_wrong_heads_are_refused() -> None:
    with pytest.raises(ValueError, match="head=3"):
        profile_heads(MODEL, pairs([1]), zero_tuning(2.0), logit_diff, heads=[(0, 3)])
    with pytest.raises(ValueError, match="no heads given"):
        profile_heads(MODEL, pairs([1]), zero_tuning(2.0), logit_diff, heads=[])
