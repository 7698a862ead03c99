"""Differences between configurations, many of them judged at once.

Everything that compares configurations stands on one model,

    value = configuration + seed + noise,

by least squares: what a seed does to all configurations alike (order of the images, the split) does
not count. A comparison is a contrast of configurations: one minus another, the mean of some minus
that of others. :func:`judge` gives a family of them intervals that *all* hold their value in
``CONFIDENCE`` of studies, from the largest of correlated t statistics (Hothorn, Bretz and Westfall,
Biometrical Journal 50, 2008); for comparisons with one baseline this is Dunnett's test (1955).

Why not a paired t test each, with Holm's correction? It would assume less: the noise is taken to be
alike in all configurations here. But of the three seeds of a usual study it has two degrees of
freedom, and among five comparisons the first would have to reach t = 9.9; together with what the
other configurations tell of the noise it is 3.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
import pandas as pd

from analysis.statistics import CONFIDENCE

ENOUGH = 4
"""Degrees of freedom: fewer tell so little of the noise that its size says nothing."""
COLUMNS = ("difference", "low", "high", "p", "effect")
"""What is told of a contrast, see :func:`judge`."""
_EXACT = 1e-12  # of the largest value
_DRAWS = 200_000  # a probability of 5 % is known to ± 0.1 points


@dataclass(frozen=True)
class Fit:
    """Least squares of configuration + seed."""

    effects: pd.Series
    """Of each configuration; only differences mean something."""
    variance: float
    """Of the noise."""
    freedom: int
    """Degrees of freedom that tell the noise."""
    _design: Design

    def contrast(self, weights: Mapping[str, float]) -> np.ndarray:
        """As a row over the columns of the design; weights are by configuration, their sum is 0."""
        row = np.zeros(len(self._design.inverse))
        for group, weight in weights.items():
            row[self.effects.index.get_loc(group)] += weight
        return row

    def is_told(self, contrast: np.ndarray) -> bool:
        """Whether it is a combination of what was seen: common seeds connect all its parts."""
        return bool(np.abs(contrast @ self._design.seen - contrast).max() <= 1e-6)

    def covariance(self, contrasts: np.ndarray, least: float = 0.0) -> np.ndarray:
        """Of the estimates of ``contrasts`` (rows), with a variance of ``least`` or more."""
        return max(self.variance, least) * contrasts @ self._design.inverse @ contrasts.T

    def error(self, group: str, other: str, least: float = 0.0) -> float:
        """Standard error of a difference; infinite where no seeds connect the two."""
        row = self.contrast({group: 1.0, other: -1.0} if group != other else {})
        if not self.is_told(row):
            return np.inf
        return float(np.sqrt(max(self.covariance(row[None], least).item(), 0)))


@dataclass(frozen=True)
class Design:
    """Which configuration and seed each value is of.

    Attributes:
        matrix: values down; configurations, then seeds, across; 1 where it is of this one.
        inverse: of the normal equations (the pseudoinverse: only differences are told).
        seen: what leaves those contrasts as they are that the values tell.
        freedom: values beyond those that the configurations and seeds take.
    """

    matrix: np.ndarray
    inverse: np.ndarray
    seen: np.ndarray
    freedom: int


@lru_cache(maxsize=64)
def _design(there: bytes, configurations: int) -> Design:
    seeds, groups = np.nonzero(np.frombuffer(there, dtype=bool).reshape(-1, configurations))
    matrix = np.zeros((len(seeds), configurations + len(there) // configurations))
    rows = np.arange(len(seeds))
    matrix[rows, groups] = 1
    matrix[rows, configurations + seeds] = 1
    normal = matrix.T @ matrix
    inverse = np.linalg.pinv(normal, hermitian=True)
    rank = int(np.linalg.matrix_rank(matrix)) if len(seeds) else 0
    return Design(matrix, inverse, inverse @ normal, len(seeds) - rank)


def fit(values: pd.DataFrame) -> Fit:
    """Fit ``values``: seeds down, configurations across, empty where there is none."""
    numbers = values.to_numpy()
    there = ~np.isnan(numbers)
    design = _design(there.tobytes(), len(values.columns))
    y = numbers[there]
    solution = design.inverse @ (design.matrix.T @ y)
    variance = float(((y - design.matrix @ solution) ** 2).sum() / max(design.freedom, 1))
    exact = len(y) and variance < (_EXACT * np.abs(y).max()) ** 2  # what floats make of it
    effects = pd.Series(solution[: len(values.columns)], index=values.columns)
    return Fit(effects, 0.0 if exact else variance, design.freedom, design)


def rounding(step: float) -> float:
    """Variance of rounding to multiples of ``step``: noise is taken to be no less."""
    return step * step / 12


def judge(
    fitted: Fit, family: Mapping[str, Mapping[str, float]], step: float = 0.0
) -> pd.DataFrame:
    """A family of contrasts, each by its name with its weights by configuration.

    ``step`` is what the values are multiples of, such as one test image.

    Returns:
        One row per contrast with

        - difference: its estimate;
        - low, high: simultaneous interval of the whole family;
        - p: probability of a t as large as this somewhere in the family if nothing differed;
        - effect: the difference in standard deviations of the noise (Hedges' *g*: corrected for
          the few degrees of freedom that tell it); NaN below ``ENOUGH`` of them.

        NaN where no common seeds tell it, and all but the difference where nothing tells the noise.
    """
    rows = np.array([fitted.contrast(weights) for weights in family.values()])
    told = np.array([fitted.is_told(row) for row in rows], dtype=bool)
    found = {name: np.full(len(rows), np.nan) for name in COLUMNS}
    if told.any():
        for name, values in _judged(fitted, rows[told], rounding(step)).items():
            found[name][told] = values
    return pd.DataFrame(found, index=list(family))


def _judged(fitted: Fit, contrasts: np.ndarray, least: float) -> dict[str, np.ndarray]:
    seeds = contrasts.shape[1] - len(fitted.effects)
    differences = contrasts @ np.concatenate([fitted.effects, np.zeros(seeds)])
    found = {"difference": differences}
    if fitted.freedom < 1:
        return found
    covariance = fitted.covariance(contrasts, least)
    errors = np.sqrt(np.diag(covariance))
    if not errors.all():  # no noise at all: what differs, differs
        same = np.abs(differences) <= _EXACT * np.abs(fitted.effects).max()
        return found | {"low": differences, "high": differences, "p": np.where(same, 1.0, 0.0)}
    largest = Largest.of(covariance / np.outer(errors, errors), fitted.freedom)
    half = largest.bound * errors
    found |= {"low": differences - half, "high": differences + half}
    found["p"] = np.array([largest.beyond(abs(t)) for t in differences / errors])
    if fitted.freedom >= ENOUGH:
        noise = np.sqrt(max(fitted.variance, least))
        found["effect"] = _unbiased(fitted.freedom) * differences / noise
    return found


def _unbiased(freedom: int) -> float:
    """What makes a difference in estimated standard deviations unbiased (Hedges 1981)."""
    from scipy.special import gammaln

    log = gammaln(freedom / 2) - gammaln((freedom - 1) / 2) - np.log(freedom / 2) / 2
    return float(np.exp(log))


@dataclass(frozen=True)
class Largest:
    """Distribution of the largest absolute value of correlated t statistics."""

    bound: float
    """What it exceeds with probability 1 - ``CONFIDENCE`` where nothing differs."""
    _freedom: int
    _sorted: np.ndarray | None

    @classmethod
    def of(cls, correlation: np.ndarray, freedom: int) -> Largest:
        """From a sample of Student's multivariate t, the same in every run."""
        return _largest(np.round(correlation, 9).tobytes(), len(correlation), freedom)

    def beyond(self, t: float) -> float:
        """Probability of a larger one."""
        if self._sorted is None:
            from scipy.special import stdtr

            return float(2 * stdtr(self._freedom, -t))
        return float(1 - np.searchsorted(self._sorted, t) / len(self._sorted))


@cache
def _largest(correlation: bytes, size: int, freedom: int) -> Largest:
    from scipy.special import stdtrit
    from scipy.stats import multivariate_t  # half a second to load

    if size == 1:
        return Largest(float(stdtrit(freedom, 0.5 + CONFIDENCE / 2)), freedom, None)
    shape = np.frombuffer(correlation).reshape(size, size)
    draws = multivariate_t(shape=shape, df=freedom, allow_singular=True, seed=0).rvs(_DRAWS)
    found = np.sort(np.abs(draws).max(axis=1))
    return Largest(float(np.quantile(found, CONFIDENCE)), freedom, found)
