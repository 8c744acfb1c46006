"""Sweeps against three others: one pass a place, hooks by hand, TransformerLens."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd
import pytest
import torch

from mechsink.interventions.patching import Direction, patch_sweep
from mechsink.metrics import logit_diff
from mechsink.models.bridge import BridgeModel
from mechsink.prompts import PromptPairs, TokenPairs
from tests.interventions.float64 import TRUE_FLOAT64, float64_inside, peer_model
from tests.interventions.hook_sweeps import by_place, difference, hook_sweep
from tests.interventions.transformer_lens_sweeps import (
    ALL_POS,
    bridge_of,
    transformer_lens_sweep,
)

QUICK = ["llama", "gpt_neox"]
FAMILIES = [*QUICK, "gpt2", "qwen3", "gemma2", "gemma3", "mistral", "olmo2"]
STREAM = ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"]
PARTS = ["z", "q", "k", "v", "pattern", "mlp_post"]
N_POS = 6  # more than the window of 5 of Mistral and the Gemmas
NEURONS = [0, 47]
COLUMNS = {"head": "part", "kv_head": "part", "neuron": "part"}
DIRECTIONS: tuple[Direction, ...] = ("denoising", "noising")
every_site = pytest.mark.parametrize("site", STREAM + PARTS)
# Where only rounding can differ from the float64 test, one site of each kind will do.
some_sites = pytest.mark.parametrize(
    "site", ["resid_pre", "resid_mid", "mlp_out", "z", "k", "v"]
)


@dataclass(frozen=True)
class Peers:
    """One set of weights, seen by mechsink, by plain hooks and by TransformerLens."""

    family: str
    dtype: torch.dtype

    @cached_property
    def plain(self) -> Any:
        return peer_model(self.family, self.dtype)

    @cached_property
    def model(self) -> BridgeModel:
        return BridgeModel(self.plain, name=self.family)

    @cached_property
    def bridge(self) -> Any:
        return bridge_of(self.plain)

    def need(self, site: str) -> None:
        if site not in self.model.shape.sites:
            assert (self.family, site) == ("gpt_neox", "resid_mid")
            pytest.skip("a parallel block has no stream between attention and MLP")

    def parts(self, site: str) -> list[Any]:
        if site == "mlp_post":
            return NEURONS
        if site not in PARTS:
            return [None]
        shape = self.model.shape
        return list(range(shape.n_kv_heads if site in ("k", "v") else shape.n_heads))

    def sweep(
        self, site: str, direction: Direction, engine: Any, positions: Any = None
    ) -> pd.Series:
        neurons = NEURONS if site == "mlp_post" else None
        found = patch_sweep(
            self.model, PAIRS, logit_diff, site, direction,
            neurons=neurons, positions=positions, engine=engine,
        )  # fmt: skip
        assert found.meta["settings"]["engine"].startswith(engine)
        table = found.table.rename(columns=COLUMNS)
        if "part" not in table:
            table["part"] = -1
        return by_place(table)

    def by_hooks(
        self, site: str, direction: Direction, positions: Any = None
    ) -> pd.Series:
        spots = None if positions == "all" else range(N_POS)
        return hook_sweep(
            self.plain, self.family, TOKENS, site, direction,
            parts=self.parts(site), positions=spots,
        )  # fmt: skip

    def by_transformer_lens(
        self, site: str, direction: Direction, positions: Any = None
    ) -> pd.Series:
        return transformer_lens_sweep(
            self.bridge, TOKENS, site, direction,
            parts=self.parts(site), all_positions=positions == "all",
        )  # fmt: skip


def _tokens() -> TokenPairs:
    generator = torch.Generator().manual_seed(11)
    clean, corrupted = torch.randint(0, 80, (2, 2, N_POS), generator=generator)
    corrupted[1, :2] = clean[1, :2]  # as most real pairs, alike at first
    answers, wrong = torch.tensor([5, 6]), torch.tensor([9, 7])
    return TokenPairs(clean, corrupted, answers, wrong, [0, 1])


TOKENS = _tokens()
PAIRS = PromptPairs(TOKENS.clean, TOKENS.corrupted, TOKENS.answers, TOKENS.wrong)


def _params(quick: Sequence[str]) -> list[Any]:
    matrix = pytest.mark.matrix
    return [n if n in quick else pytest.param(n, marks=matrix) for n in FAMILIES]


@pytest.fixture(scope="module", params=_params(QUICK))
def double(request: pytest.FixtureRequest) -> Peers:
    return Peers(request.param, torch.float64)


@pytest.fixture(scope="module", params=_params(["llama"]))
def single(request: pytest.FixtureRequest) -> Peers:
    return Peers(request.param, torch.float32)


def check(got: pd.Series, want: pd.Series, most: float) -> None:
    """Alike within `most` of the largest absolute value, place by place."""
    assert got.index.equals(want.index)
    scale = want.abs().max()
    assert scale > 0.1  # numbers worth comparing
    assert (got - want).abs().max() <= most * scale


@pytest.mark.matrix
@pytest.mark.parametrize("direction", DIRECTIONS)
@every_site
@pytest.mark.some_cases(24)
def test_sweeps_agree_in_float64(
    double: Peers, site: str, direction: Direction
) -> None:
    double.need(site)
    exact = double.family in TRUE_FLOAT64
    with contextlib.nullcontext() if exact else float64_inside():
        for positions in (None, "all"):
            got = double.sweep(site, direction, "wave", positions)
            check(got, double.sweep(site, direction, "cells", positions), 1e-9)
            if site != "pattern":  # which no module takes or returns
                check(got, double.by_hooks(site, direction, positions), 1e-9)
            # TransformerLens patches heads at all positions, but not the stream.
            if positions is None or (site in ALL_POS and direction == "denoising"):
                want = double.by_transformer_lens(site, direction, positions)
                check(got, want, 1e-9)


@pytest.mark.first_case
@some_sites
@pytest.mark.some_cases(12)
def test_sweeps_agree_in_float64_with_casts_inside(double: Peers, site: str) -> None:
    if double.family in TRUE_FLOAT64:
        pytest.skip("casts nothing: the test above is the same")
    double.need(site)
    got = double.sweep(site, "noising", "wave")
    check(got, double.by_hooks(site, "noising"), 1e-5)
    check(got, double.by_transformer_lens(site, "noising"), 1e-5)


@pytest.mark.first_case
@some_sites
@pytest.mark.some_cases(12)
def test_sweeps_agree_in_float32(single: Peers, site: str) -> None:
    single.need(site)
    got = single.sweep(site, "denoising", "wave")
    check(got, single.by_hooks(site, "denoising"), 1e-4)
    check(got, single.by_transformer_lens(site, "denoising"), 1e-4)


def test_both_runs_and_the_effect_are_what_hooks_say(double: Peers) -> None:
    found = patch_sweep(double.model, PAIRS, logit_diff, "attn_out")
    with torch.no_grad():
        clean, corrupted = (
            difference(double.plain(tokens).logits, TOKENS).numpy()
            for tokens in (TOKENS.clean, TOKENS.corrupted)
        )
    most = 1e-9 if double.family in TRUE_FLOAT64 else 1e-5
    assert found.clean == pytest.approx(clean, rel=most)
    assert found.corrupted == pytest.approx(corrupted, rel=most)
    values = double.by_hooks("attn_out", "denoising")
    prompt = values.index.get_level_values("prompt")
    want = (values - corrupted[prompt]) / (clean - corrupted)[prompt]
    assert found.table["effect"].to_numpy() == pytest.approx(
        want.to_numpy(), abs=most * want.abs().max()
    )


def test_float32_is_itself_again_after_an_error() -> None:
    single, cast = torch.float32, torch.Tensor.float
    with contextlib.suppress(RuntimeError), float64_inside():
        assert torch.ones(1, dtype=torch.float32).float().dtype is torch.float64
        raise RuntimeError
    assert torch.float32 is single
    assert torch.Tensor.float is cast
