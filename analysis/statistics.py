"""What the seeds of a study say: mean, spread, interval, and differences by seed.

Spread is the standard deviation over seeds with ``ddof=1``; intervals are two-sided Student-t
intervals of the mean at level ``CONFIDENCE``, cut off where a measure ends (a share at 0 and 1).
With the handful of seeds of a usual study the t interval keeps its level under roughly normal
noise, where a bootstrap is far too narrow. One seed has neither: both are NaN, and are never shown
as a number. Neither spread nor interval knows that the test images are a sample as well:
:func:`image_error` does.

Which configurations can be told apart from the best is asked of all at once
(:func:`compare_with_best`): the best was chosen from the same numbers, so that each pair for itself
would call a third of all studies without any difference decided.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd

from analysis.collect import StudyResults
from msvit.records.measures import Direction, all_measures

CONFIDENCE = 0.95
POWER = 0.8
"""Share of studies that would see the difference that is called visible."""
_ENOUGH = 4  # degrees of freedom: fewer tell so little of the noise that its size says nothing


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
    frame = _frame({group: _statistics(by_seed[group].dropna()) for group in study.groups})
    frame[["low", "high"]] = frame[["low", "high"]].clip(0, all_measures()[column].most)
    return frame


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


@dataclass(frozen=True)
class Comparison:
    """Every configuration against the best, decided together.

    Attributes:
        best: the configuration with the best fitted value (the best mean where all seeds are done).
        apart: those that are worse than it, by a simultaneous interval without 0.
        ties: the others; nothing can be said of them.
        visible: about the difference (unit of the measure) between two configurations that such a
            study sees with probability ``POWER``; NaN where too few seeds tell the noise.
        uneven: how many times larger the largest standard deviation over seeds is than the usual
            one (the median); NaN where there are too few seeds.
        seeds_differ: whether configurations have finished different seeds, so that means of theirs
            are no comparison.
    """

    best: str
    apart: tuple[str, ...]
    ties: tuple[str, ...]
    visible: float = np.nan
    uneven: float = np.nan
    seeds_differ: bool = False


def compare_with_best(study: StudyResults, column: str = "test_accuracy") -> Comparison | None:
    """Which configurations the seeds tell apart from the best; None without a finished cell."""
    values = _by_seed(study, column).dropna(axis=1, how="all")
    if values.empty:
        return None
    step = 1 / study.finished["test_images"].min() if column == "test_accuracy" else 0.0
    return tell_apart(values, all_measures()[column].better, step)


def tell_apart(
    values: pd.DataFrame, better: Direction = "maximize", step: float = 0.0
) -> Comparison:
    """Compare the columns of ``values`` (seeds down, configurations across) with the best of them.

    ``step`` is what the values are multiples of, such as one test image: noise is taken to be no
    less than that of rounding to it. With a single degree of freedom nothing is decided.

    Tukey's range test (Tukey 1949; for unequal numbers of seeds Kramer 1956) on the model
    *value = configuration + seed + noise*: what the seeds share does not count, and over all pairs
    together at most 1 - ``CONFIDENCE`` of studies without any difference tell one apart, however
    the best was chosen: it is the one with the best fitted value, not that with the luckiest seeds.
    The noise is taken to be alike in all configurations: where standard deviations go from 1 to 3,
    7 to 8 % of studies of six without any difference tell one apart, instead of 5, and 14 to 18 %
    where one of six is five to ten times noisier than the others.
    """
    sign = 1 if better == "maximize" else -1
    fit = _fit(values)
    best = max(values.columns, key=lambda group: sign * fit.effects[group])
    others = [group for group in values.columns if group != best]
    seeds_differ = bool(values.isna().any(axis=None))
    if fit.freedom < 2 or not others:
        return Comparison(best, (), tuple(others), seeds_differ=seeds_differ)
    bound, visible = _bounds(len(values.columns), fit.freedom)
    errors = {group: fit.error(group, best, step * step / 12) for group in others}
    ahead = {group: sign * (fit.effects[best] - fit.effects[group]) for group in others}
    apart = tuple(group for group in others if ahead[group] > bound * errors[group])
    known = [error for error in errors.values() if np.isfinite(error)]
    spreads = values.std(ddof=1).dropna().clip(lower=step / 12**0.5)
    return Comparison(
        best,
        apart,
        tuple(group for group in others if group not in apart),
        visible * float(np.median(known)) if known and fit.freedom >= _ENOUGH else np.nan,
        float(spreads.max() / spreads.median()) if len(spreads) and spreads.median() else np.nan,
        seeds_differ,
    )


@dataclass(frozen=True)
class _Fit:
    """Least squares of configuration + seed."""

    effects: pd.Series
    """Of each configuration; only differences mean something."""
    variance: float
    freedom: int
    _design: np.ndarray
    _inverse: np.ndarray

    def error(self, group: str, other: str, least: float) -> float:
        """Standard error of a difference, with a variance of ``least`` or more.

        Infinite where no seeds connect the two.
        """
        contrast = np.zeros(self._design.shape[1])
        contrast[self.effects.index.get_loc(group)] = 1
        contrast[self.effects.index.get_loc(other)] -= 1
        told = contrast @ self._inverse @ (self._design.T @ self._design)
        if np.abs(told - contrast).max() > 1e-6:  # no combination of what was seen
            return np.inf
        scale = contrast @ self._inverse @ contrast
        return float(np.sqrt(max(max(self.variance, least) * scale, 0)))


def _fit(values: pd.DataFrame) -> _Fit:
    seeds, groups = np.nonzero(values.notna().to_numpy())
    design = np.zeros((len(seeds), len(values.columns) + len(values.index)))
    rows = np.arange(len(seeds))
    design[rows, groups] = 1
    design[rows, len(values.columns) + seeds] = 1
    y = values.to_numpy()[seeds, groups]
    solution, _, rank, _ = np.linalg.lstsq(design, y, rcond=None)
    freedom = len(y) - int(rank)
    return _Fit(
        pd.Series(solution[: len(values.columns)], index=values.columns),
        float(((y - design @ solution) ** 2).sum() / max(freedom, 1)),
        freedom,
        design,
        np.linalg.pinv(design.T @ design),
    )


@cache
def _bounds(configurations: int, freedom: int) -> tuple[float, float]:
    """In standard errors: the difference that decides, and the one that does with ``POWER``."""
    from scipy.optimize import brentq
    from scipy.stats import nct, studentized_range  # half a second to load

    bound = float(studentized_range.ppf(CONFIDENCE, configurations, freedom)) / 2**0.5

    def missing(shift: float) -> float:
        return float(nct.sf(bound, freedom, shift)) - POWER

    return bound, brentq(missing, 0, 10 * bound + 10)


def image_error(share: float, images: int) -> float:
    """Half the width of the interval that finitely many test images alone give a share.

    Wilson's interval (1927) at level ``CONFIDENCE``.
    """
    from scipy.special import ndtri

    z = float(ndtri(0.5 + CONFIDENCE / 2))
    spread = share * (1 - share) / images + z * z / (4 * images * images)
    return z * float(np.sqrt(spread)) / (1 + z * z / images)
