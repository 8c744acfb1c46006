"""A study: a table, what it was to show, and whether it did.

Every experiment returns a `Study`: numbers in `table`, one row a claim in `claims`.
`check` turns a claim that failed into an error, so that a script or CI can assert it.
"""

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from mechsink.intervals import student_t
from mechsink.plotting import Figure
from mechsink.results import Result
from mechsink.shown import table_html

COLUMNS = ["claim", "measured", "low", "high", "wanted", "holds"]


class ClaimFailed(RuntimeError):
    """A study measured something else than what it was to show.

    Examples:
        >>> import pandas as pd
        >>> from mechsink.experiments.study import as_claims, claim
        >>> claims = as_claims([claim("a sink forms", 0.1, above=0.3)])
        >>> study = ms.Study(pd.DataFrame({"score": [0.1]}), {}, claims)
        >>> study.check()
        Traceback (most recent call last):
            ...
        mechsink.experiments.study.ClaimFailed: Study: 1 of 1 claims do not hold...
    """


@dataclass(frozen=True, eq=False)
class Study(Result):
    """An experiment's numbers and its claims.

    `table`: as the subclass says. `claims`: claim (a sentence), measured, low, high
    (95 % interval; NaN where one number was measured), wanted ("> 0.3"), holds.

    Examples:
        >>> import pandas as pd
        >>> from mechsink.experiments.study import as_claims, claim
        >>> claims = as_claims([claim("a sink forms", 0.8, above=0.3)])
        >>> study = ms.Study(pd.DataFrame({"score": [0.8]}), {}, claims)
        >>> study.check()
        >>> study.claims[["claim", "wanted", "holds"]].values.tolist()
        [['a sink forms', '> 0.3', True]]
    """

    claims: pd.DataFrame

    title: ClassVar[str] = "Study"

    def about(self) -> str:
        """A sentence on what was studied, where the title leaves it open."""
        return ""

    def figures(self) -> dict[str, Figure]:
        """Figures by file name, without ending."""
        return {}

    def tables(self) -> dict[str, pd.DataFrame]:
        """What a reader should see first, by heading; the whole is in `table`."""
        return {}

    def _repr_html_(self) -> str:
        """The claims with what was measured, then as every result."""
        claims = table_html(self.claims)
        return f"<p>{html.escape(self.title)}</p>{claims}{super()._repr_html_()}"

    def check(self) -> None:
        """Do nothing if every claim holds.

        Raises:
            ClaimFailed: a claim does not; names each with what was measured.
        """
        failed: Any = self.claims[~self.claims["holds"].astype(bool)]
        if len(failed):
            lines = [
                f"{row['claim']}: measured {row['measured']:.4g}"
                + ("" if np.isnan(row["low"]) else f" ({row['low']:.4g} to ")
                + ("" if np.isnan(row["low"]) else f"{row['high']:.4g})")
                + f", wanted {row['wanted']}"
                for row in failed.to_dict("records")
            ]
            raise ClaimFailed(
                f"{self.title}: {len(failed)} of {len(self.claims)} claims do not "
                "hold.\n  " + "\n  ".join(lines)
            )


def claim(
    sentence: str,
    measured: float | Sequence[float],
    *,
    above: float | None = None,
    below: float | None = None,
    interval: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """One row of `Study.claims`: a number beside the bound that it should keep.

    Args:
        sentence: what is claimed, in words.
        measured: one number, or one a seed: then their mean is judged by its
            Student-t interval, which must lie on the wanted side whole; of fewer
            than five seeds, every one must.
        above, below: the bound; both for a band.
        interval: 95 % interval of a single number, judged in the same way.
    """
    values = list(measured) if isinstance(measured, Sequence) else [measured]
    mean = float(np.mean(values))
    low, high = student_t(values) if interval is None else interval
    few = interval is None and len(values) < 5  # an interval of two would be endless
    ends = (min(values), max(values)) if few else (low, high)
    holds = (above is None or ends[0] > above) and (below is None or ends[1] < below)
    bounds = ((">", above), ("<", below))
    wanted = " and ".join(f"{sign} {at:g}" for sign, at in bounds if at is not None)
    row = (sentence, mean, low, high, wanted, bool(holds))
    return dict(zip(COLUMNS, row, strict=True))


def as_claims(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows of `claim` as the table of a `Study`."""
    return pd.DataFrame(list(rows), columns=COLUMNS)
