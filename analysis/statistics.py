"""What the seeds of each configuration say for themselves: mean, spread, intervals.

Spread is the standard deviation over seeds with ``ddof=1``; intervals are two-sided Student-t
intervals of the mean at level ``CONFIDENCE``, cut off where a measure ends (a share at 0 and 1).
With the handful of seeds of a usual study the t interval keeps its level under roughly normal
noise, where a bootstrap is far too narrow; from ``MANY`` seeds on there is one beside it, of a mean
that outliers do not move (:func:`interquartile`). One seed has neither spread nor interval: both
are NaN, and are never shown as a number. That the test images are a sample as well is in
:func:`on_new_images` only.

Configurations are compared in :mod:`analysis.comparisons`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.collect import StudyResults
from msvit.records.measures import all_measures

CONFIDENCE = 0.95
POWER = 0.8
"""Share of studies that would see the difference that is called visible."""
MANY = 20
"""Seeds from which on a bootstrap holds its level nearly (92 to 94 % where it says 95)."""


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
    values = by_seed(study, column)
    rows = {group: _statistics(values[group].dropna()) for group in study.groups}
    columns = ["mean", "std", "low", "high", "n"]
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("group")
    frame[["low", "high"]] = frame[["low", "high"]].clip(0, all_measures()[column].most)
    return frame


def on_new_images(study: StudyResults) -> pd.DataFrame:
    """Intervals of the mean test accuracy (shares) where other test images are asked as well.

    The errors of the seeds and of the images, each at level ``CONFIDENCE``, add as squares. That of
    the images is the same however many seeds there are: all are asked the same ones.

    Returns:
        One row per configuration with low and high; NaN with fewer than two seeds.
    """
    summary = summarize(study, "test_accuracy")
    images = study.finished.groupby("group")["test_images"].min().reindex(summary.index)
    rows = {
        group: _both_errors(row["mean"], (row["low"], row["high"]), images[group])
        for group, row in summary.iterrows()
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=["low", "high"])


def _both_errors(mean: float, seeds: tuple[float, float], images: float) -> tuple[float, float]:
    if np.isnan(seeds[0]):
        return (np.nan, np.nan)
    low, high = image_interval(mean, int(images))
    below, above = np.hypot(mean - seeds[0], mean - low), np.hypot(seeds[1] - mean, high - mean)
    return (max(0.0, mean - float(below)), min(1.0, mean + float(above)))


def interquartile(study: StudyResults, column: str) -> pd.DataFrame:
    """Mean of the middle half of the finished seeds, with a bootstrap interval.

    Of many runs a few may fail; this mean (Agarwal et al., arXiv 2108.13264) says what the usual
    one does. The interval is bias-corrected and accelerated (Efron 1987), of 2,000 samples.

    Returns:
        One row per configuration that has ``MANY`` seeds, with mean, low, high.
    """
    from scipy.stats import bootstrap, trim_mean  # half a second to load

    def middle(values: np.ndarray, axis: int = -1) -> np.ndarray:
        return trim_mean(values, 0.25, axis=axis)

    rows = {}
    for group, column_values in by_seed(study, column).items():
        values = column_values.dropna().to_numpy()
        if len(values) < MANY:
            continue
        mean = float(middle(values))
        low = high = mean
        if values.std():
            options = {"confidence_level": CONFIDENCE, "n_resamples": 2000, "rng": 0}
            low, high = bootstrap((values,), middle, **options).confidence_interval
        rows[group] = (mean, float(low), float(high))
    return pd.DataFrame.from_dict(rows, orient="index", columns=["mean", "low", "high"])


def image_interval(share: float, images: int) -> tuple[float, float]:
    """The interval that finitely many test images alone give a share.

    Wilson's (1927) at level ``CONFIDENCE``.
    """
    from scipy.special import ndtri

    z = float(ndtri(0.5 + CONFIDENCE / 2))
    center = (share + z * z / (2 * images)) / (1 + z * z / images)
    spread = share * (1 - share) / images + z * z / (4 * images * images)
    half = z * float(np.sqrt(spread)) / (1 + z * z / images)
    return center - half, center + half


def image_error(share: float, images: int) -> float:
    """Half the width of :func:`image_interval`."""
    low, high = image_interval(share, images)
    return (high - low) / 2


def by_seed(study: StudyResults, column: str) -> pd.DataFrame:
    """Finished values of one column of ``cells``, seeds down, configurations across."""
    wide = study.finished.pivot_table(index="seed", columns="group", values=column)
    return wide.reindex(columns=list(study.groups)).astype(float)


def _statistics(values: pd.Series) -> tuple[float, float, float, float, int]:
    n = len(values)
    mean = float(np.mean(values)) if n else np.nan
    std = float(np.std(values, ddof=1)) if n > 1 else np.nan
    return (mean, std, *t_interval(values), n)
