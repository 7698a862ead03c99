"""Which configurations the seeds tell apart: from the best, and from a baseline named beforehand.

Both stand on the model of :mod:`analysis.contrasts`. Which can be told apart from the best is asked
of all pairs at once (:func:`compare_with_best`): the best was chosen from the same numbers, so that
each pair for itself would call a third of all studies without any difference decided. With a
baseline that was named before looking (:func:`paired_differences`) there are fewer questions, and
smaller differences are seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd

from analysis.collect import StudyResults
from analysis.contrasts import COLUMNS, ENOUGH, Largest, fit, judge, rounding
from analysis.statistics import CONFIDENCE, POWER, by_seed
from msvit.records.measures import Direction, all_measures

MOST_SEEDS = 1000
"""More are not counted: no study has them."""


def resolution(study: StudyResults, column: str) -> float:
    """What the values of a measure are multiples of: one test image, or 0 for the others."""
    return 1 / study.finished["test_images"].min() if column == "test_accuracy" else 0.0


def paired_differences(study: StudyResults, column: str, baseline: str) -> pd.DataFrame:
    """Differences of every other configuration to ``baseline``, paired by seed, judged together.

    Returns:
        :func:`differences_to` of the finished seeds (unit of ``column``), in grid order;
        configurations without any are rows of NaN.

    Raises:
        KeyError: if ``baseline`` is no configuration of the study.
    """
    if baseline not in study.groups:
        raise KeyError(baseline)
    values = by_seed(study, column)
    others = [group for group in study.groups if group != baseline]
    step = resolution(study, column) if len(study.finished) else 0.0
    return differences_to(values, baseline, step).reindex(others).rename_axis("group")


def differences_to(values: pd.DataFrame, baseline: str, step: float = 0.0) -> pd.DataFrame:
    """Every other column of ``values`` (seeds down, configurations across) minus ``baseline``.

    Returns:
        What :func:`analysis.contrasts.judge` tells of each (an interval without 0 tells the two
        apart, with 1 - ``CONFIDENCE`` error for all of them together); std of the differences, and
        n, the number of seeds that both have.
    """
    values = values.dropna(axis=1, how="all")
    others = [group for group in values.columns if group != baseline]
    if baseline not in values or not others:
        return pd.DataFrame(columns=[*COLUMNS, "std", "n"], dtype=float)
    family = {group: {group: 1.0, baseline: -1.0} for group in others}
    found = judge(fit(values), family, step)
    pairs = values[others].sub(values[baseline], axis=0)
    return found.assign(std=pairs.std(ddof=1), n=pairs.notna().sum())


@dataclass(frozen=True)
class Outlook:
    """What more seeds would tell, as far as the noise of these tells it.

    Attributes:
        noise: standard deviation of one run once what the seeds share is taken away.
        visible: the difference to the baseline that such a study sees with probability ``POWER``.
        configurations: how many there are, the baseline included.
    """

    noise: float
    visible: float
    configurations: int

    def seeds_for(self, difference: float) -> int | None:
        """Seeds with which ``POWER`` of studies see this difference; None beyond ``MOST_SEEDS``."""
        return _fewest(lambda seeds: self._sees(difference, seeds))

    def _sees(self, difference: float, seeds: int) -> bool:
        from scipy.stats import nct

        others = self.configurations - 1
        freedom = others * (seeds - 1)
        bound = Largest.of((np.eye(others) + 1) / 2, freedom).bound
        shift = difference / (self.noise * (2 / seeds) ** 0.5)
        return bool(nct.sf(bound, freedom, shift) >= POWER)


def _fewest(enough: Callable[[int], bool]) -> int | None:
    """The smallest number from 2 to ``MOST_SEEDS`` that is ``enough``; larger ones are as well."""
    low, high = 1, 2
    while not enough(high):
        if high >= MOST_SEEDS:
            return None
        low, high = high, min(2 * high, MOST_SEEDS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def outlook(study: StudyResults, column: str, baseline: str) -> Outlook | None:
    """What the noise of ``column`` says of larger studies; None where too few seeds tell it."""
    values = by_seed(study, column).dropna(axis=1, how="all")
    if baseline not in values or values.shape[1] < 2:
        return None
    fitted = fit(values)
    if fitted.freedom < ENOUGH:
        return None
    least = rounding(resolution(study, column))
    others = [group for group in values.columns if group != baseline]
    errors = np.array([fitted.error(group, baseline, least) for group in others])
    noise = float(np.sqrt(max(fitted.variance, least)))
    if not np.isfinite(errors).any() or not noise:
        return None
    bound = Largest.of((np.eye(len(others)) + 1) / 2, fitted.freedom).bound
    typical = float(np.median(errors[np.isfinite(errors)]))
    return Outlook(noise, _seen(bound, fitted.freedom) * typical, len(others) + 1)


@cache
def _seen(bound: float, freedom: int) -> float:
    """The difference, in standard errors, that exceeds ``bound`` of them with ``POWER``."""
    from scipy.optimize import brentq
    from scipy.stats import nct

    def missing(shift: float) -> float:
        return float(nct.sf(bound, freedom, shift)) - POWER

    return float(brentq(missing, 0, 10 * bound + 10))


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
        decided: whether there are seeds enough for any test; else all others are ``ties``.
    """

    best: str
    apart: tuple[str, ...]
    ties: tuple[str, ...]
    visible: float = np.nan
    uneven: float = np.nan
    seeds_differ: bool = False
    decided: bool = True


def compare_with_best(study: StudyResults, column: str = "test_accuracy") -> Comparison | None:
    """Which configurations the seeds tell apart from the best; None without a finished cell."""
    values = by_seed(study, column).dropna(axis=1, how="all")
    if values.empty:
        return None
    return tell_apart(values, all_measures()[column].better, resolution(study, column))


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
    fitted = fit(values)
    best = max(values.columns, key=lambda group: sign * fitted.effects[group])
    others = [group for group in values.columns if group != best]
    seeds_differ = bool(values.isna().any(axis=None))
    if fitted.freedom < 2 or not others:
        return Comparison(best, (), tuple(others), seeds_differ=seeds_differ, decided=False)
    bound, visible = _bounds(len(values.columns), fitted.freedom)
    errors = {group: fitted.error(group, best, rounding(step)) for group in others}
    ahead = {group: sign * (fitted.effects[best] - fitted.effects[group]) for group in others}
    apart = tuple(group for group in others if ahead[group] > bound * errors[group])
    known = [error for error in errors.values() if np.isfinite(error)]
    spreads = values.std(ddof=1).dropna().clip(lower=rounding(step) ** 0.5)
    return Comparison(
        best,
        apart,
        tuple(group for group in others if group not in apart),
        visible * float(np.median(known)) if known and fitted.freedom >= ENOUGH else np.nan,
        float(spreads.max() / spreads.median()) if len(spreads) and spreads.median() else np.nan,
        seeds_differ,
    )


@cache
def _bounds(configurations: int, freedom: int) -> tuple[float, float]:
    """In standard errors: the difference that decides, and the one that does with ``POWER``."""
    from scipy.stats import studentized_range  # half a second to load

    bound = float(studentized_range.ppf(CONFIDENCE, configurations, freedom)) / 2**0.5
    return bound, _seen(bound, freedom)
