"""95 % intervals of a share and of a mean over a handful of seeds.

May import: nothing of mechsink.
"""

from collections.abc import Sequence

import numpy as np


def wilson(n_hits: int, n: int) -> tuple[float, float]:
    """95 % Wilson interval of a share; (NaN, NaN) of nothing."""
    from scipy.stats import binomtest  # here: slow to import

    if n == 0:
        return float("nan"), float("nan")
    ends = binomtest(n_hits, n).proportion_ci(0.95, method="wilson")
    return float(ends.low), float(ends.high)


def student_t(values: Sequence[float]) -> tuple[float, float]:
    """95 % Student-t interval of a mean over seeds; (NaN, NaN) of fewer than two.

    For a handful of values: a bootstrap over five covers 83 %.
    """
    from scipy.stats import t  # here: slow to import

    found = np.asarray(values, dtype=float)
    if len(found) < 2 or np.isnan(found).any():
        return float("nan"), float("nan")
    reach = t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / np.sqrt(len(found))
    return float(found.mean() - reach), float(found.mean() + reach)
