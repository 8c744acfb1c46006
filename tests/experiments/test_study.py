"""Claims, and measures over seeds, by hand."""

import pandas as pd
import pytest

from mechsink.experiments.formation.study import formation_study
from mechsink.experiments.grids.seeds import by_run, overview, seed_panels, summary
from mechsink.experiments.mitigation import mitigation_study
from mechsink.experiments.operators import operator_study
from mechsink.experiments.study import ClaimFailed, Study, as_claims, claim
from mechsink.intervals import student_t
from mechsink.report.studies import markdown, write_study

FIVE = [1.0, 2.0, 3.0, 4.0, 5.0]


def test_student_t_by_hand():
    # mean 3, s = sqrt(2.5), t(.975, 4) = 2.776: 3 +- 2.776 * sqrt(.5) = 1.963
    assert student_t(FIVE) == pytest.approx((1.0368, 4.9632), abs=1e-3)
    assert all(end != end for end in student_t([1.0]))  # NaN


@pytest.mark.parametrize(
    ("study", "option"),
    [
        (operator_study, "names"),
        (formation_study, "settings"),
        (mitigation_study, "remedies"),
    ],
)
def test_an_unknown_setting_is_refused_before_any_training(study, option, tmp_path):
    with pytest.raises(ValueError, match=r"'softmaxx'.*Allowed: "):
        study(tmp_path, **{option: ["softmaxx"]})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("measured", "bounds", "holds"),
    [
        (FIVE, {"above": 1.0}, True),
        (FIVE, {"above": 1.1}, False),  # the mean is above, the end is not
        ([0.6, 0.9], {"above": 0.5}, True),  # two seeds: each must
        ([0.4, 0.9], {"above": 0.5}, False),
        (0.6, {"above": 0.5, "below": 0.7}, True),
        (0.6, {"below": 0.5}, False),
        (float("nan"), {"above": 0.5}, False),
        (0.0, {"above": -1.0}, True),
    ],
)
def test_a_claim_holds_where_its_interval_does(measured, bounds, holds):
    assert claim("it does", measured, **bounds)["holds"] is holds


def test_an_interval_that_is_given_is_the_one_that_is_judged():
    assert not claim("x", 1.0, above=0.0, interval=(-0.1, 2.1))["holds"]


def test_check_names_what_failed_with_its_numbers():
    rows = [claim("Sinks form", 0.2, above=0.5), claim("Peaks form", 3.0, above=2.0)]
    study = Study(pd.DataFrame(), {}, as_claims(rows))
    with pytest.raises(ClaimFailed, match=r"1 of 2 .*\n  Sinks form: .* 0\.2, wanted "):
        study.check()


TABLE = pd.DataFrame(
    [
        ("b", 0, 0.0, 0.0, "bos_markov", 0.2),
        ("b", 0, 0.0, 1.0, "bos_markov", 0.9),  # the strongest sink counts
        ("b", 1, 0.0, 0.0, "bos_markov", 0.5),
        ("a", 0, 0.0, 0.0, "bos_markov", 0.1),
        ("b", 0, 0.0, 0.0, "sink_score", 0.2),
        ("b", 0, 0.0, 1.0, "sink_score", 0.4),  # the mean counts
    ],
    columns=["setting", "seed", "layer", "head", "measure", "value"],
)


def test_layers_and_heads_become_one_number():
    runs = by_run(TABLE).set_index(["setting", "seed"])
    assert list(runs.index) == [("b", 0), ("b", 1), ("a", 0)]  # order of the table
    assert runs.loc[("b", 0), "bos_markov"] == 0.9
    assert runs.loc[("b", 0), "sink_score"] == pytest.approx(0.3)
    means = summary(TABLE, ["bos_markov"]).set_index("setting")
    assert means.loc["b", "mean"] == pytest.approx(0.7)
    assert means.loc["b", "n"] == 2 and means.loc["a", "n"] == 1
    cells = overview(TABLE, {"bos_markov": "to <s>", "sink_score": "score"})
    assert cells["score"].tolist() == ["0.3", "-"]


def test_a_study_folder_is_read_without_mechsink(tmp_path):
    class Drawn(Study):
        title = "What | is it?"

        def figures(self):
            return {"dots": seed_panels(TABLE, {"bos_markov": "to <s>"})}

        def tables(self):
            return {"All": TABLE}

    rows = [claim("a | b", [0.5, 0.6], above=0.4), claim("c", 2.0, above=3.0)]
    study = Drawn(TABLE, {"seeds": [0, 1], "duration_s": 3.2}, as_claims(rows))
    text = write_study(study, tmp_path / "out", "mechsink experiment x").read_text()
    assert "    mechsink experiment x\n" in text and "seeds 0, 1; 3 s" in text
    assert "| a \\| b | 0.55 " in text and "| **no** |" in text
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("README.md", "report.html", "dots.png", "dots.svg"),
        *("table.csv", "claims.csv", "meta.json"),
    }


def test_markdown_by_hand():
    table = pd.DataFrame({"x": [0.12345, float("nan")], "ok": [True, False]})
    assert markdown(table) == ("| x | ok |\n| - | - |\n| 0.123 | yes |\n| - | **no** |")
