"""What the seeds of a study say: mean, spread, interval, and differences by seed.

Spread is the standard deviation over seeds with ``ddof=1``; intervals are two-sided Student-t
intervals of the mean at level ``CONFIDENCE``. With the handful of seeds of a usual study the
t interval keeps its level under roughly normal noise, where a bootstrap is far too narrow.
One seed has neither: both are NaN, and are never shown as a number.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.collect import StudyResults

CONFIDENCE = 0.95


def t_interval(values: pd.Series | np.ndarray) -> tuple[float, float]:
    """Interval of the mean of independent ``values``; (NaN, NaN) for fewer than two."""
    from scipy.special import stdtrit  # the quantile of Student's t, without all of scipy.stats

    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return (np.nan, np.nan)
    error = values.std(ddof=1) / np.sqrt(len(values))
    half = float(stdtrit(len(values) - 1, 0.5 + CONFIDENCE / 2)) * error
    return (float(values.mean() - half), float(values.mean() + half))


def summarize(study: StudyResults, column: str) -> pd.DataFrame:
    """Statistics of one numeric column of ``cells`` over the finished seeds.

    Returns:
        One row per configuration (index ``group``, grid order) with mean, std, low, high (unit
        of ``column``) and n, the number of seeds. Without finished seeds n is 0, the rest NaN.
    """
    by_seed = _by_seed(study, column)
    return _frame({group: _statistics(by_seed[group].dropna()) for group in study.groups})


def paired_differences(study: StudyResults, column: str, baseline: str) -> pd.DataFrame:
    """Differences of every other configuration to ``baseline``, paired by seed.

    Returns:
        Like :func:`summarize`, of (configuration minus baseline) over the seeds finished in both;
        an interval without 0 tells the two apart at level ``CONFIDENCE``, for one comparison.

    Raises:
        KeyError: if ``baseline`` is no configuration of the study.
    """
    if baseline not in study.groups:
        raise KeyError(baseline)
    by_seed = _by_seed(study, column)
    differences = by_seed.sub(by_seed[baseline], axis=0)
    rows = {g: _statistics(differences[g].dropna()) for g in study.groups if g != baseline}
    return _frame(rows)


def _by_seed(study: StudyResults, column: str) -> pd.DataFrame:
    """Finished values, seeds down, configurations across."""
    wide = study.finished.pivot_table(index="seed", columns="group", values=column)
    return wide.reindex(columns=list(study.groups)).astype(float)


def _statistics(values: pd.Series) -> tuple[float, float, float, float, int]:
    n = len(values)
    mean = float(np.mean(values)) if n else np.nan
    std = float(np.std(values, ddof=1)) if n > 1 else np.nan
    return (mean, std, *t_interval(values), n)


def _frame(rows: dict[str, tuple[float, float, float, float, int]]) -> pd.DataFrame:
    columns = ["mean", "std", "low", "high", "n"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("group")


def best_and_ties(
    study: StudyResults, column: str = "test_accuracy"
) -> tuple[str | None, list[str]]:
    """The configuration with the highest mean, and those that cannot be told apart from it.

    Not told apart: the paired interval holds 0, or there are too few common seeds for one.
    Without a finished cell the best is None.
    """
    means = summarize(study, column)["mean"].dropna()
    if means.empty:
        return None, []
    best = str(means.idxmax())
    differences = paired_differences(study, column, best)
    apart = (differences["high"] < 0) | (differences["low"] > 0)
    return best, [group for group in means.index if group != best and not apart[group]]
