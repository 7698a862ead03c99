"""Figures from papers, for the columns marked † beside our own.

They stand in ``published.csv`` with their source. A row belongs to a configuration only if
architecture and data set are the same, the number of parameters is within ``TOLERANCE``, which
tells an ablation from the published model, and image size and time steps are those that the
row states. A row that does not state its parameters is kept for reading and matches nothing.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

TOLERANCE = 0.01  # share; counts in papers are rounded and leave out unused modules


def read_published() -> pd.DataFrame:
    """One row per published result.

    Returns:
        Columns model (``architecture-size``), dataset, image_size (pixels), timesteps,
        parameters_m (million), energy_mj (millijoule per image), top1 (%), coupled_batches
        (yes: the released code lets membrane potential pass from one image of a batch to the next,
        so that its accuracy depends on the batch), source. Empty where nobody says.
    """
    return pd.read_csv(Path(__file__).with_name("published.csv"))


def find_published(cell: pd.Series, published: pd.DataFrame) -> pd.Series | None:
    """The published result of exactly this configuration, if there is one.

    ``cell`` is a finished row of ``StudyResults.cells``.
    """
    model, data = str(cell["model"]), _plain(cell["data"])
    for _, row in published.iterrows():
        architecture = row["model"].split("-")[0]
        if (
            (model == architecture or model.startswith(f"{architecture}_"))
            and data == _plain(row["dataset"])
            and _agrees(row["image_size"], cell.get("model.image_size"))
            and _agrees(row["timesteps"], cell.get("model.timesteps"))
            and abs(cell["parameters"] / 1e6 - row["parameters_m"])
            <= TOLERANCE * row["parameters_m"]
        ):
            return row
    return None


def published_on(data: str, published: pd.DataFrame) -> pd.DataFrame:
    """All published results on one data set, the best first."""
    same = published["dataset"].map(_plain) == _plain(data)
    return published[same].sort_values("top1", ascending=False, kind="stable")


def _plain(name: str) -> str:
    """``cifar10-dvs`` and ``CIFAR10_DVS`` are one data set."""
    return "".join(c for c in str(name).lower() if c.isalnum())


def _agrees(stated: float, ours: float | None) -> bool:
    return bool(pd.isna(stated)) or ours == stated
