"""Active-dormant heads: planted ones are found, null ones are not, losses are exact."""

import re
import sysconfig
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import ttest_ind

from mechsink.models.load import load_model
from mechsink.models.toy import ToyModel
from mechsink.report.texts import default_texts
from mechsink.sinks.dormant.contrast import contrasts, least_p_value, q_values
from mechsink.sinks.dormant.heads import _dormancy, active_dormant
from mechsink.sinks.dormant.losses import head_losses
from mechsink.sinks.dormant.result import ActiveDormant
from mechsink.sinks.dormant.table import compared
from mechsink.sites import Site
from tests.models.backends import load
from tests.sinks.canned import CannedModel
from toy_tasks import PRESETS, BigramBackcopy, train
from toy_tasks.planted.dormant import HEAD, N_HEADS, dormant_head

ALPHA = 0.05


@pytest.fixture(scope="module")
def planted():
    return dormant_head()


@pytest.fixture(scope="module")
def found(planted):
    texts = {d: planted.sample(d, 50, (1, n)) for n, d in enumerate(("rest", "work"))}
    model = ToyModel(planted.model, name="planted")
    return active_dormant(model, texts, n_pos=16, confirm="all")


def test_the_planted_head_is_found_alone_and_confirmed(planted, found):
    assert found.heads() == [planted.head]
    assert found.heads(confirmed=True) == found.confirmed() == [planted.head]
    assert found.heads(min_difference=0.5) == []
    both = found.confirmation[found.confirmation["is_confirmed"]]
    assert both["edit"].tolist() == ["zeroed", "moved"]
    assert both["active"].tolist() == ["work", "work"]


def test_its_numbers_are_those_of_the_planting(planted, found):
    """Closed form: share of trigger queries, and the loss of a trigger unsaid."""
    row = found.table.set_index(["layer", "head"]).loc[planted.head]
    tokens = planted.sample("work", 50, (1, 1))
    trigger = torch.isin(tokens % 8, torch.tensor([0, 4])) & (tokens < 16)
    # At triggers e^8 on the token before; else e^20 on <s>, all but 4e-6 of it.
    at_trigger = trigger[:, 1:].double().mean(1)
    positions = torch.arange(1, 16)
    other = 1 / (np.exp(8) + positions)  # <s> has its share of the rest
    # When the token before a trigger is <s> itself (never: triggers do not open).
    assert not trigger[:, 1].any()
    want = (~trigger[:, 1:]).double() + trigger[:, 1:] * other
    assert row["work"] == pytest.approx(want.mean().item(), abs=1e-4)
    assert row["work"] == pytest.approx(1 - at_trigger.mean().item(), abs=1e-4)
    assert row["rest"] == pytest.approx(1, abs=1e-4)
    # Without the head all 17 logits are 0 at a trigger; with it the copy is sure.
    lost = trigger[:, 1:-1].sum(1) / 15 * np.log(17)
    assert row["zeroed_work"] == pytest.approx(lost.mean().item(), abs=2e-3)
    assert row["zeroed_rest"] == pytest.approx(0, abs=1e-4)
    others = found.table.drop(index=HEAD)
    assert others[["zeroed_rest", "zeroed_work"]].abs().to_numpy().max() < 1e-5


def test_the_table_is_the_designs(found):
    assert list(found.table)[:9] == [
        "layer", "head", "rest", "work", "difference", "low", "high", "q_value",
        "zeroed_rest",
    ]  # fmt: skip
    assert len(found.table) == 2 * N_HEADS
    gap = found.table["rest"] - found.table["work"] - found.table["difference"]
    assert gap.abs().max() < 1e-12
    assert found.meta["settings"]["n_texts"] == {"rest": 50, "work": 50}
    assert found.meta["notes"] == []


def test_it_saves_loads_draws_and_says(found, planted, tmp_path):
    back = ActiveDormant.load(found.save(tmp_path / "r"))
    for name in ("table", "confirmation", "texts", "losses"):
        pd.testing.assert_frame_equal(getattr(back, name), getattr(found, name))
    assert back.heads(confirmed=True) == [planted.head]
    ax = back.plot()
    assert "rest" in ax.get_xlabel() and "work" in ax.get_ylabel()
    assert [text.get_text() for text in ax.texts] == ["L0H2"]
    assert "1 heads differ" in back.describe() and "L0H2: rest 1.000" in back.describe()


def test_nothing_measured_is_nan_and_saves(planted, tmp_path):
    texts = {d: planted.sample(d, 3, n) for n, d in enumerate(("rest", "work"))}
    model = ToyModel(planted.model)
    none = active_dormant(model, texts, n_pos=16, confirm="none")
    assert none.table[["zeroed_rest", "zeroed_work"]].isna().all(axis=None)
    assert len(none.confirmation) == len(none.losses) == 0
    back = ActiveDormant.load(none.save(tmp_path / "r"))
    pd.testing.assert_frame_equal(back.confirmation, none.confirmation)
    assert "Fewer than 50 texts" in none.describe()
    assert "no p-value can be under 0.1" in none.describe()  # 2 of 20 splits
    assert none.table["p_value"].min() == pytest.approx(0.1)
    ax = none.plot()
    assert not ax.texts


def test_dormancy_by_hand():
    """Even head, 4 tokens: (1/2 + 1/3 + 1/4) / 3 = 13/36 at 0; 7/24 at 1."""
    tokens = torch.full((2, 4), 97)
    for position, want in ((0, 13 / 36), (1, 7 / 24)):
        keys, dormancy = _dormancy(CannedModel(), tokens, position)
        assert keys == [(0, 0)]
        assert dormancy[:, 0].tolist() == pytest.approx([want, want])


@pytest.mark.first_case
@pytest.mark.parametrize("name", ["toy_gqa_relu", "toy", "llama", "gemma2", "gptj"])
def test_losses_equal_brute_force(name):
    """Heads of several layers, against one whole run each with the edit by hand."""
    model = load(name)
    torch.manual_seed(0)
    tokens = torch.randint(80, (3, 9))
    heads = [(1, 2), (0, 3), (1, 0), (2, 1)]
    got = head_losses(model, tokens, heads, position=1)
    assert got.path == "continued"

    def loss(logits):
        logprobs = logits[:, :-1].double().log_softmax(-1)
        return -logprobs.gather(2, tokens[:, 1:, None])[..., 0].mean(1).numpy()

    def moved(pattern):
        pattern = pattern.clone()
        pattern[:, 1:] = 0
        pattern[:, 1:, 1] = 1
        return pattern

    assert got.full == pytest.approx(loss(model.run(tokens).logits), abs=1e-5)
    for n, (layer, head) in enumerate(heads):
        for edit, by_hand in (("zeroed", torch.zeros_like), ("moved", moved)):
            if edit not in got.edited:  # attention code of its own: no such edit
                assert name == "gptj"
                continue
            place = "pattern" if "moved" in got.edited else "z"
            site = Site(place, layer, head=head)
            want = loss(model.run(tokens, edit={site: by_hand}).logits)
            assert got.edited[edit][:, n] == pytest.approx(want, abs=1e-5)
            assert np.abs(want - got.full).max() > 1e-3


def test_models_that_cannot_be_continued_run_whole(planted, monkeypatch):
    from mechsink.models.continuation import CannotContinueError
    from mechsink.sinks.dormant import losses as dormant_losses

    tokens = planted.sample("work", 4, 0)
    model = ToyModel(planted.model)
    want = head_losses(model, tokens, [(0, 2), (1, 1)])

    def refuse(model, tokens):
        raise CannotContinueError("no")

    monkeypatch.setattr(dormant_losses, "base_run", refuse)
    got = head_losses(model, tokens, [(0, 2), (1, 1)])
    assert (want.path, got.path) == ("continued", "whole runs")
    for edit in ("zeroed", "moved"):
        np.testing.assert_allclose(got.edited[edit], want.edited[edit], atol=1e-5)


def test_the_contrast_is_welchs_by_scipy():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0.1, 1, (9, 3)), rng.normal(0, 3, (14, 3))])
    domain = np.repeat([0, 1], [9, 14])
    weights = np.array([1.0, -1.0])
    got = contrasts(values, domain, weights, rounding=0.0)
    want = ttest_ind(values[:9], values[9:], equal_var=False)
    ends = want.confidence_interval(0.95)
    np.testing.assert_allclose(got["low"], ends.low)
    np.testing.assert_allclose(got["high"], ends.high)
    np.testing.assert_allclose(got["p_value"], want.pvalue, atol=0.02)
    # Three domains, the third empty of weight: the same contrast of the first two.
    more = np.concatenate([values, rng.normal(5, 1, (4, 3))])
    three = contrasts(
        more, np.append(domain, [2] * 4), np.array([1.0, -1.0, 0.0]), rounding=0.0
    )
    for name in ("difference", "low", "high"):
        np.testing.assert_allclose(three[name], got[name])


def test_few_texts_are_permuted_exactly():
    """3 and 3 texts, fully apart: 2 of the 20 splits reach it, p = .1; by hand."""
    values = np.array([[1.0], [2.0], [3.0], [11.0], [12.0], [13.0]])
    domain = np.repeat([0, 1], 3)
    row = contrasts(values, domain, np.array([1.0, -1.0]), rounding=1e-6).iloc[0]
    assert row["p_value"] == pytest.approx(0.1)
    assert row["difference"] == pytest.approx(-10)
    assert row["effect_size"] == pytest.approx(-10 * (1 - 3 / 15))  # spread 1, df 4
    assert least_p_value(np.array([3, 3]), 1) == pytest.approx(0.1)
    assert least_p_value(np.array([2, 4]), 1) == pytest.approx(1 / 15)


def test_rounding_counts_as_no_difference():
    values = np.repeat([[0.5, 0.5], [0.5 + 1e-8, 0.7]], 10, axis=0)
    got = contrasts(values, np.repeat([0, 1], 10), np.array([1.0, -1.0]), rounding=1e-6)
    assert got["p_value"][0] == 1
    assert got["p_value"][1] < 1e-4
    assert got["effect_size"].isna().all()  # no spread to compare with


def test_q_values_by_hand():
    got = q_values(np.array([0.01, 0.04, 0.03, 0.5]))  # p * 4 / rank, made monotone
    assert got.tolist() == pytest.approx([0.04, 0.16 / 3, 0.16 / 3, 0.5])


def shares(repeats):
    """Share of p < .05 and of repeats with any q < .05, with their errors."""
    p = [(r < ALPHA).mean() for r in repeats]
    any_found = [(q_values(r) < ALPHA).any() for r in repeats]
    n = len(repeats)
    assert n == 100
    error = np.std(p, ddof=1) / np.sqrt(n)
    return np.mean(p), error, np.mean(any_found), np.sqrt(ALPHA * (1 - ALPHA) / n)


@pytest.mark.first_case
@pytest.mark.parametrize("n", [6, 24])
def test_null_heads_are_flagged_at_the_stated_rate(n):
    """One domain, fresh texts for each of 100 repeats, heads of a real forward pass."""
    case = dormant_head(planted=False, seed=3)
    tokens = case.sample("rest", 100 * 2 * n, (n, 7))
    keys, dormancy = _dormancy(ToyModel(case.model), tokens, 0)
    of_text = np.repeat([0, 1], n)
    repeats = [
        compared(some, of_text, ["a", "b"], keys, seed=r)["p_value"].to_numpy()
        for r, some in enumerate(np.split(dormancy, 100))
    ]
    share, error, any_found, any_error = shares(repeats)
    assert share <= ALPHA + 2 * error
    assert share >= ALPHA / 2  # and it is no test that never speaks
    assert any_found <= ALPHA + 2 * any_error


DRAWS = {
    "normal": lambda rng, size: rng.normal(size=size),
    "heavy tails": lambda rng, size: rng.standard_t(2.5, size=size),
    "skewed": lambda rng, size: rng.lognormal(size=size),
    "near one": lambda rng, size: rng.beta(20, 0.5, size=size),
}


@pytest.mark.matrix
@pytest.mark.parametrize("n", [(6, 6), (24, 24), (6, 24)])
@pytest.mark.parametrize("law", DRAWS)
@pytest.mark.some_cases(3)
def test_null_of_many_heads_with_heavy_tails(law, n):
    """100 heads that share a part, as heads of one model do."""
    rng = np.random.default_rng([len(law), *n])
    of_text = np.repeat([0, 1], n)
    weights = np.array([1.0, -1.0])
    repeats = []
    for r in range(100):
        values = DRAWS[law](rng, (sum(n), 100)) + DRAWS[law](rng, (sum(n), 1)) / 3
        found = contrasts(values, of_text, weights, rounding=1e-6, seed=r)
        repeats.append(found["p_value"].to_numpy())
    share, error, any_found, any_error = shares(repeats)
    print(f"{law} {n}: p < .05 {share:.4f} +- {error:.4f}, any q {any_found:.2f}")
    assert share <= ALPHA + 2 * error
    assert any_found <= ALPHA + 2 * any_error


@pytest.mark.matrix
def test_intervals_cover_and_false_discoveries_are_few_beside_true_ones():
    """100 repeats, 270 heads of which 27 differ by one spread; 24 texts a domain."""
    rng = np.random.default_rng(5)
    of_text, truth = np.repeat([0, 1], 24), np.zeros(270)
    truth[:27] = 1.0
    covered, false_share, power = [], [], []
    for r in range(100):
        values = rng.normal(size=(48, 270)) * rng.uniform(0.5, 2, 270)
        values[:24] += truth
        table = contrasts(values, of_text, np.array([1.0, -1.0]), rounding=0.0, seed=r)
        covered.append(((table["low"] <= truth) & (truth <= table["high"])).mean())
        flagged = q_values(table["p_value"].to_numpy()) < ALPHA
        false_share.append(flagged[27:].sum() / max(1, flagged.sum()))
        power.append(flagged[:27].mean())
    errors = [np.std(x, ddof=1) / 10 for x in (covered, false_share)]
    assert abs(np.mean(covered) - 0.95) < 2 * errors[0] + 0.005
    assert np.mean(false_share) <= ALPHA + 2 * errors[1]
    assert np.mean(power) > 0.3


def test_more_than_two_domains_are_each_compared_with_the_rest(planted):
    """One active domain of three: it differs from the others, and they from it."""
    domains = {"x": "rest", "y": "rest", "z": "work"}
    texts = {
        name: planted.sample(domain, 20, (8, n))
        for n, (name, domain) in enumerate(domains.items())
    }
    got = active_dormant(ToyModel(planted.model), texts, n_pos=16)
    assert list(got.table)[:6] == ["layer", "head", "domain", "x", "y", "z"]
    assert len(got.table) == 3 * 2 * N_HEADS
    assert got.heads(domain="z", confirmed=True) == [planted.head]
    table = got.table.set_index(["layer", "head", "domain"])
    row = table.loc[(*planted.head, "z")]
    assert row["difference"] == pytest.approx(row["z"] - (row["x"] + row["y"]) / 2)
    tested = got.confirmation.set_index(["layer", "head"]).loc[[planted.head]]
    tested = tested[tested["edit"] == "zeroed"].set_index("domain")
    assert tested["active"].to_dict() == {"x": "others", "y": "others", "z": "z"}
    assert tested.loc["z", "is_confirmed"]
    loss = tested.loc["z", "z"] - (tested.loc["z", "x"] + tested.loc["z", "y"]) / 2
    assert tested.loc["z", "difference"] == pytest.approx(loss)
    assert "z" in got.plot(domain="z").get_xlabel()
    with pytest.raises(ValueError, match=r"domain='w'\. Allowed: x, y, z"):
        got.rows_of("w")


def test_texts_of_every_form_are_the_same(planted):
    model = ToyModel(planted.model)
    tensor = planted.sample("rest", 4, 0)
    forms = [tensor, list(tensor), list(tensor.split(1)), [tensor[:3], tensor[3]]]
    work = planted.sample("work", 4, 1)
    tables = [
        active_dormant(model, {"a": f, "b": work}, n_pos=12, confirm="none").table
        for f in forms
    ]
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0])
    again = active_dormant(
        model, {"a": tensor[[0, 0, 1]], "b": work}, n_pos=12, confirm="none"
    )
    assert any("1 of 7 texts repeat" in note for note in again.meta["notes"])
    assert not any("different tokens at" in note for note in again.meta["notes"])
    no_bos = {"a": tensor[:, 1:], "b": work[:, 1:]}
    bare = active_dormant(model, no_bos, n_pos=12, confirm="none")
    assert any("different tokens at position 0" in n for n in bare.meta["notes"])


def test_bad_input(planted):
    model = ToyModel(planted.model)
    two = planted.sample("rest", 2, 0)

    def refused(message, texts, **options):
        with pytest.raises(ValueError, match=message):
            active_dormant(model, texts, **{"n_pos": 16, **options})

    refused("1 domain", {"a": two})
    refused("has 1 text", {"a": two, "b": two[:1]})
    refused("called 'layer'", {"layer": two, "b": two})
    refused("called 'zeroed_b'", {"zeroed_b": two, "b": two})
    short = {"a": [two[0], two[1, :9]], "b": two}
    refused(r"text 1 of 'a' has 9 tokens.*n_pos=9", short)
    active_dormant(model, short, n_pos=9, confirm="none")  # the advice
    refused("leaves no later query", {"a": two, "b": two}, position=15)
    refused("floating|axes", {"a": two, "b": [two[0].float(), two[1]]})
    refused(r"names \(2, 0\)", {"a": two, "b": two}, confirm=[(2, 0)])
    refused("q=0", {"a": two, "b": two}, q=0.0)
    refused("text 0 of 'a' is empty", {"a": ["", "x"], "b": two})


@pytest.mark.slow
def test_a_trained_bigram_backcopy_head_rests_without_triggers(tmp_path):
    """Domains with and without triggers: the one head is dormant on the second."""
    task = BigramBackcopy.from_text()
    preset = replace(PRESETS["bb-cpu"], steps=1200, checkpoints=(1200,))
    run = train(task, preset, tmp_path, seed=0)
    model = ToyModel.from_folder(run.folder)
    law = task.table.clone()
    law[:, task.triggers] = 0
    plain = replace(task, table=law / law.sum(1, keepdim=True))
    texts = {
        "triggers": task.sample(50, 64, 1),
        "none": plain.sample(50, 64, 2),
    }
    assert not task.is_trigger(texts["none"]).any()
    found = active_dormant(model, texts, n_pos=64)
    print(found.describe())
    print(found.confirmation.to_string())
    assert found.heads(min_difference=0.1, confirmed=True) == [(0, 0)]
    row = found.table.iloc[0]
    assert row["none"] > 0.5 > 0.2 + row["difference"]
    assert row["zeroed_triggers"] > row["zeroed_none"] + 0.1


def code_texts(n: int) -> list[str]:
    """Pieces of the standard library's source, one a module, from its middle."""
    root = Path(sysconfig.get_paths()["stdlib"])
    names = """argparse ast bdb calendar cmd codecs configparser copy csv dataclasses
        datetime difflib dis doctest enum ftplib functools gettext heapq inspect locale
        mailbox optparse pdb pickle platform pprint pydoc random shelve shutil"""
    found = []
    for name in names.split():
        lines = (root / f"{name}.py").read_text(encoding="utf-8").splitlines(True)
        middle = len(lines) // 2
        starts = (
            i
            for i in range(middle, len(lines))
            if re.match(r"\s*(def|class) ", lines[i])
        )
        piece = "".join(lines[next(starts, middle) :])[:900]
        if len(piece) == 900:
            found.append(piece)
    return found[:n]


@pytest.mark.slow
def test_smollm2_prose_against_code():
    """Means .40 and .44 over all heads; three heads that a prototype found strong.

    The prototype's texts were others: single heads may be .05 off.
    """
    model = load_model("smollm2")
    texts = {"prose": default_texts(24, 128), "code": code_texts(24)}
    known = {(15, 3): (0.519, 0.654), (26, 7): (0.687, 0.819), (25, 0): (0.641, 0.781)}
    found = active_dormant(model, texts, confirm=[*known, (23, 6)])
    print(found.describe(), found.confirmation.to_string(), sep="\n")
    means = found.table[["prose", "code"]].mean()
    assert means.tolist() == pytest.approx([0.401, 0.443], abs=0.03)
    table = found.table.set_index(["layer", "head"])
    for head, want in known.items():
        row = table.loc[head]
        assert row[["prose", "code"]].tolist() == pytest.approx(want, abs=0.05)
        assert row["high"] < -0.05 and row["q_value"] < 0.01
    strongest = found.heads(0.01)[: len(table) // 4]
    assert len(set(strongest) & set(known)) >= 2
    # The linear path and the bridge's whole patterns are the same attention.
    tokens = model.to_tokens(texts["code"][0])[:, :128]
    site = Site("pattern", 26, head=7)
    pattern = model.run(tokens, read=[site]).cache[site]
    one = found.texts.query("domain == 'code' and text == 0").set_index(
        ["layer", "head"]
    )
    want = pattern[0, 1:, 0].mean().item()
    assert one["dormancy"].loc[(26, 7)] == pytest.approx(want, abs=1e-5)
    assert {"continued"} == {found.meta["settings"]["losses"]}
    assert found.confirmation[["prose", "code"]].notna().all(axis=None)
