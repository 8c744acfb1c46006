"""What the in-context regression experiment claims, judged over seeds."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from mechsink.experiments.study import claim

TRAINED = 40
"""Examples in a training prompt."""


@dataclass(frozen=True, eq=False)
class _Found:
    """The tables, by what a claim asks for: one value a seed."""

    table: Any
    patterns: Any

    def excess(
        self, setting: str, name: str = "heads", at: int = TRAINED, seeds: Any = None
    ) -> list[float]:
        return self.column("excess", setting, name, at, seeds)

    def column(
        self,
        column: str,
        setting: str,
        name: str = "heads",
        at: int = TRAINED,
        seeds: Any = None,
    ) -> list[float]:
        rows = self.table
        rows = rows[(rows["setting"] == setting) & (rows["predictor"] == name)]
        rows = rows[rows["n_examples"] == at]
        if seeds is not None:
            rows = rows[rows["seed"].isin(seeds)]
        return rows[column].tolist()

    def over(self, setting: str, name: str, at: int = TRAINED) -> list[float]:
        """Excess of the heads over that of a known predictor."""
        reference = self.excess(setting, name, at)[0]
        return [value / reference for value in self.excess(setting, at=at)]

    def pattern(self, setting: str, measure: str, seeds: Any = None) -> list[float]:
        rows = self.patterns[self.patterns["head"].isna()]
        rows = rows[(rows["setting"] == setting) & (rows["measure"] == measure)]
        if seeds is not None:
            rows = rows[rows["seed"].isin(seeds)]
        return rows["value"].tolist()

    def signs(self) -> tuple[list[int], list[int]]:
        """Seeds of two heads whose heads have opposite signs, and the others."""
        rows = self.patterns[self.patterns["setting"] == "two heads"]
        rows = rows[rows["measure"] == "omega_sum"]
        opposite = rows["value"] < 0.5  # 0 of a pair with one size, 1 of one sign
        return rows["seed"][opposite].tolist(), rows["seed"][~opposite].tolist()


def regression_claims(
    table: pd.DataFrame, patterns: pd.DataFrame
) -> list[dict[str, Any]]:
    """What the tables of a `LinearRegressionStudy` show of the paper's statements.

    Excess is the risk above that of the Bayes predictor, at the trained length unless
    said otherwise.
    """
    found = _Found(table, patterns)
    return [
        *_pattern_claims(found),
        *_risk_claims(found),
        *_length_claims(found),
        *_covariance_claims(found),
        *_task_claims(found),
    ]


def _pattern_claims(found: _Found) -> list[dict[str, Any]]:
    four = "four heads"
    signed, _ = found.signs()
    claims = [
        claim(
            "four heads: share of KQ on the diagonal of x (even: 0.17)",
            found.pattern(four, "kq_diagonal"),
            above=0.5,
        ),
        claim(
            "four heads: deviation along KQ's diagonal over its mean",
            found.pattern(four, "kq_spread"),
            below=0.35,
        ),
        claim(
            "four heads: share of OV that reads the last entry (even: 0.17)",
            found.pattern(four, "ov_last"),
            above=0.6,
        ),
        claim(
            "four heads: sum of OV over heads, over its absolute sum",
            found.pattern(four, "ov_sum"),
            below=0.1,
        ),
        claim(
            "four heads: cosine of their common step and the best debiased one",
            found.pattern(four, "cos_to_best_step"),
            above=0.98,
        ),
    ]
    if not signed:
        return claims
    for words, measure, above, below in (
        ("share of KQ on the diagonal of x (even: 0.17)", "kq_diagonal", 0.75, None),
        ("deviation along KQ's diagonal over its mean", "kq_spread", None, 0.15),
        ("share of OV that reads the last entry (even: 0.17)", "ov_last", 0.85, None),
        ("sum of OV over heads, over its absolute sum", "ov_sum", None, 0.05),
        ("sum of KQ's diagonals over heads, likewise", "omega_sum", None, 0.1),
        ("deviation of |KQ|'s diagonal over heads, by mean", "omega_spread", None, 0.1),
        ("mu over its closed form at that omega", "mu_over_closed_form", 0.9, 1.1),
    ):
        values = found.pattern("two heads", measure, signed)
        sentence = f"two heads of opposite sign: {words}"
        claims.append(claim(sentence, values, above=above, below=below))
    return claims


def _risk_claims(found: _Found) -> list[dict[str, Any]]:
    four, debiased = "four heads", "debiased gradient step"
    from_debiased, from_plain = (
        found.column(column, four) for column in ("from_debiased_step", "from_step")
    )
    nearer = [a / b for a, b in zip(from_debiased, from_plain, strict=True)]
    one = sum(found.excess("one head")) / len(found.excess("one head"))
    ours: Any = found.table[found.table["predictor"] != "Bayes (ridge)"]
    claims = [
        claim(
            "four heads: excess over that of the best debiased gradient step",
            found.over(four, debiased),
            above=0.95,
            below=1.15,
        ),
        claim(
            "four heads: excess over that of the best plain gradient step",
            found.over(four, "gradient step"),
            above=0.95,
            below=1.2,
        ),
        claim(
            "four heads: squared distance from the debiased step over that from the "
            "plain one",
            nearer,
            below=1.0,
        ),
        claim(
            "four heads: excess over Bayes, y squared",
            found.excess(four),
            above=0.05,
        ),
        claim(
            "four heads: excess over that of one head",
            [value / one for value in found.excess(four)],
            below=0.7,
        ),
        claim(
            "lowest risk minus Bayes of any predictor, in its standard errors",
            float((ours["above_bayes"] / ours["above_bayes_se"]).min()),
            above=-3.0,
        ),
    ]
    _, alike = found.signs()
    if alike:
        values = [value / one for value in found.excess("two heads", seeds=alike)]
        sentence = "two heads of one sign: excess over that of one head"
        claims.append(claim(sentence, values, above=0.9, below=1.1))
    return claims


def _length_claims(found: _Found) -> list[dict[str, Any]]:
    longest = int(found.table["n_examples"].max())
    size = f"debiased gradient step, size for {TRAINED}"
    claims = []
    for setting, words, above, below in (
        ("four heads", "softmax", None, 0.7),
        ("linear attention", "linear attention", 2.0, None),
    ):
        pairs = zip(
            found.excess(setting, at=longest), found.excess(setting), strict=True
        )
        claims.append(
            claim(
                f"{words}: excess at {longest} examples over that at {TRAINED}",
                [a / b for a, b in pairs],
                above=above,
                below=below,
            )
        )
    sentence = f"softmax at {longest} examples: excess over that of the debiased step"
    values = found.over("four heads", size, longest)
    return [*claims, claim(f"{sentence} it was trained for", values, below=1.5)]


def _covariance_claims(found: _Found) -> list[dict[str, Any]]:
    name, step = "correlated x", "debiased preconditioned gradient step"
    best, identity = (
        found.pattern(name, f"cos_to_{of}") for of in ("best_step", "identity")
    )
    return [
        claim(
            f"{name}: excess over that of the best plain gradient step",
            found.over(name, "gradient step"),
            below=0.7,
        ),
        claim(
            f"{name}: excess over that of the best {step}",
            found.over(name, step),
            below=1.2,
        ),
        claim(
            f"{name}: cosine of the common step to the best preconditioner, minus that "
            "to the identity",
            [a - b for a, b in zip(best, identity, strict=True)],
            above=0.05,
        ),
        claim(
            f"{name}: cosine of the common step to the best preconditioner",
            best,
            above=0.98,
        ),
    ]


def _task_claims(found: _Found) -> list[dict[str, Any]]:
    name, step = "two tasks, 3 heads", "debiased preconditioned gradient step"
    share = "share of each head in its larger task (1/2 even, 1 apart)"
    apart = found.pattern("two tasks, 6 heads", "one_task")
    claims = [
        claim(
            f"{name}: excess over that of the best debiased step on all coordinates",
            found.over(name, "debiased gradient step"),
            below=0.9,
        ),
        claim(
            f"{name}: excess over that of the best step for each task",
            found.over(name, step),
            below=1.5,
        ),
        claim(
            f"{name}: {share}",
            found.pattern(name, "one_task"),
            below=0.95,
        ),
        claim(
            f"{name}: common step outside a task's own over inside",
            found.pattern(name, "interference"),
            below=0.5,
        ),
    ]
    if apart:  # not in the quick form
        claims.append(claim(f"two tasks, 6 heads: {share}", apart, above=0.95))
    return claims
