"""Low-rank compression against numpy's SVD, linear algebra and planted ranks."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from mechsink.attribution.low_rank import LowRank, low_rank
from mechsink.attribution.subspaces import subspaces
from mechsink.metrics import logit_diff
from mechsink.models.toy import ToyModel
from mechsink.prompts import PromptPairs
from mechsink.sites import Site
from tests.models.backends import load
from toy_tasks.planted import LABEL_POSITIONS, correct_letter

DRAWN = torch.Generator().manual_seed(0)
CLEAN = torch.randint(3, 80, (6, 7), generator=DRAWN)
ANSWERS = torch.randint(0, 40, (6,), generator=DRAWN)
PAIRS = PromptPairs(CLEAN, CLEAN, ANSWERS, ANSWERS + 40)
Q, K = Site("q", 1, head=2), Site("k", 1, kv_head=1)


def planted(variant: Any = "plain") -> tuple[ToyModel, PromptPairs]:
    case = correct_letter(n_prompts=40, variant=variant).double()
    pairs = PromptPairs(case.clean, case.corrupted, case.answers, case.wrong)
    return ToyModel(case.model), pairs


@pytest.mark.parametrize("centred", [False, True])
def test_projections_are_those_of_numpys_svd(centred: bool) -> None:
    model = load("llama")
    at = [3, -1]
    vectors = model.run(CLEAN, read=[Q]).cache[Q][:, at].double().flatten(0, 1).numpy()
    mean = vectors.mean(0) if centred else np.zeros(8)
    u, s, vt = np.linalg.svd(vectors - mean, full_matrices=False)
    space = subspaces(model, PAIRS, [Q], positions=at, centred=centred)[Q]
    for rank in (0, 2, 5, 8):
        want = (u[:, :rank] * s[:rank]) @ vt[:rank] + mean
        got = space.project(torch.tensor(vectors), rank).numpy()
        np.testing.assert_allclose(got, want, atol=1e-10)
        left = ((vectors - want) ** 2).sum() / ((vectors - mean) ** 2).sum()
        assert space.explained(rank) == pytest.approx(1 - left, abs=1e-12)


def test_full_rank_changes_nothing_and_rank_0_is_zeroing() -> None:
    model = load("llama")
    found = low_rank(model, PAIRS, [Q, K], [0, 8]).table.set_index(["site", "rank"])
    (group,) = PAIRS.tokens(model)
    for site in (Q, K):
        assert abs(found.loc[(str(site), 8), "change"]) < 1e-5
        zeroed = logit_diff(model.run(CLEAN, edit={site: torch.zeros_like}), group)
        assert found.loc[(str(site), 0), "after"] == pytest.approx(
            float(zeroed.mean()), abs=1e-5
        )
        assert found.loc[(str(site), 0), "explained"] == 0
    both = logit_diff(
        model.run(CLEAN, edit=dict.fromkeys((Q, K), torch.zeros_like)), group
    )
    assert found.loc[("all", 0), "after"] == pytest.approx(float(both.mean()), abs=1e-5)
    assert abs(found.loc[("all", 0), "change"]) > 1e-3


def test_only_the_chosen_positions_are_cut_row_by_row() -> None:
    """A row of positions for each prompt, by hand; the other positions stay."""
    model = load("llama")
    at = torch.tensor([[1, 2], [0, 6], [3, 4], [5, 6], [2, 3], [4, 0]])
    kept = {}

    def zero_there(x: Tensor) -> Tensor:
        x = x.clone()
        for row, places in enumerate(at.tolist()):
            x[row, places] = 0
        kept["z"] = x
        return x

    (group,) = PAIRS.tokens(model)
    want = logit_diff(model.run(CLEAN, edit={K: zero_there}), group)
    found = low_rank(model, PAIRS, [K], 0, positions=at).by_prompt
    np.testing.assert_allclose(found["after"], want, atol=1e-6)
    np.testing.assert_allclose(
        found["before"], logit_diff(model.run(CLEAN), group), atol=1e-6
    )


@pytest.mark.parametrize("variant", ["plain", "grouped"])
def test_the_planted_head_needs_three_dimensions(variant: Any) -> None:
    """A content is three signs: rank 3 of queries and keys is all, 2 is not."""
    model, pairs = planted(variant)
    q, k = Site("q", 1, head=0), Site("k", 1, kv_head=0)
    where = {q: [-1], k: LABEL_POSITIONS}
    found = low_rank(model, pairs, [q, k], [0, 1, 2, 3], positions=where)
    table = found.table.set_index(["site", "rank"])
    for site in (str(q), str(k), "all"):
        assert abs(table.loc[(site, 3), "change"]) < 1e-9
        assert table.loc[(site, 3), "accuracy_after"] == 1
        assert table.loc[(site, 2), "change"] < -0.5
        assert table.loc[(site, 0), "accuracy_after"] < 0.6
    assert table.loc[(str(q), 3), "explained"] == pytest.approx(1)
    assert table.loc[(str(q), 2), "explained"] < 0.8
    at_3 = found.spectrum[found.spectrum["rank"] == 3]
    np.testing.assert_allclose(at_3["explained"], 1)


def test_directions_from_other_prompts_serve() -> None:
    model, pairs = planted()
    q = Site("q", 1, head=0)
    half = PromptPairs(*(getattr(pairs, n)[:20] for n in ("clean", "corrupted")))
    fitted = subspaces(model, half, [q], positions=[-1])
    found = low_rank(model, pairs, [q], 3, positions=[-1], fitted=fitted).table
    assert abs(found["change"].iloc[0]) < 1e-9
    with pytest.raises(ValueError, match=r"no directions of L1KV0.k"):
        low_rank(model, pairs, [Site("k", 1, kv_head=0)], 3, fitted=fitted)


def test_bad_input_says_what_to_do() -> None:
    model = load("llama")
    with pytest.raises(ValueError, match="no sites given"):
        low_rank(model, PAIRS, [], 1)
    with pytest.raises(ValueError, match=r"L1.q has axes.*head=0"):
        low_rank(model, PAIRS, [Site("q", 1)], 1)
    with pytest.raises(ValueError, match=r"L1.k has axes.*kv_head=0"):
        low_rank(model, PAIRS, [Site("k", 1)], 1)
    with pytest.raises(ValueError, match=r"rank=\[9\].*to 8"):
        low_rank(model, PAIRS, [Q], 9)
    with pytest.raises(ValueError, match=r"position=7.*0 to 6"):
        low_rank(model, PAIRS, [Q], 1, positions=[7])
    with pytest.raises(ValueError, match=r"names none of L1KV1.k"):
        low_rank(model, PAIRS, [Q, K], 1, positions={Q: [1]})
    with pytest.raises(ValueError, match=r"a row for each prompt"):
        low_rank(model, PAIRS, [Q], 1, positions=torch.zeros(2, 1, dtype=torch.int64))


def test_saves_and_plots(tmp_path: Any) -> None:
    found = low_rank(load("llama"), PAIRS, [Q, K], [1, 3])
    again = LowRank.load(found.save(tmp_path / "ranks"))
    for name in ("table", "spectrum", "by_prompt"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(found, name))
    assert (found.table["after_low"] <= found.table["after"]).all()
    ax = found.plot()
    assert [t.get_text() for t in ax.get_legend().get_texts()] == [
        str(Q),
        str(K),
        "all",
    ]
    plt.close("all")
