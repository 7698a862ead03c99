"""A finished cell as it was tested: its kept weights, its test images, in its precision."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from msvit.cells import Cell
from msvit.data import load_splits, options_of
from msvit.data.fingerprint import describe_images
from msvit.options import DataError
from msvit.precision import Precision, choose_precision
from msvit.recipes import TrainingOptions
from msvit.records.schema import Record
from msvit.records.store import cell_folder
from msvit.runtime import prepare_process, training_device
from msvit.training.batches import Normalise, time_first
from msvit.training.cell import as_scored
from msvit.training.loading import Loader
from msvit.training.step import Scores
from msvit.training.trained import load_trained


@dataclass(frozen=True)
class KeptCell:
    """What computes again what ``record`` says, batch by batch in the order of the test."""

    folder: Path
    record: Record
    cell: Cell
    model: nn.Module
    test: Loader
    normalise: Normalise
    precision: Precision

    def scores(self) -> Scores:
        """Loss and hits of a batch."""
        return Scores(self.model, self.normalise, self.precision)

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Of raw bytes ``[B, C, H, W]`` or ``[B, T, C, H, W]``, averaged over time: ``[B, K]``."""
        with self.precision.autocast(images.device):
            return self.model(time_first(self.normalise(images))).float().mean(0)


def open_kept(results: Path, record: Record, data_dir: Path | None = None) -> KeptCell:
    """The cell of ``record`` with its weights and test images, on the device of this process.

    Raises:
        CheckpointError: where no weights are kept.
        DataError: where the images are not there, or are others than it was trained on.
    """
    folder = cell_folder(results, record["id"])
    cell = Cell.from_dict(record["cell"])
    model = load_trained(folder)
    prepare_process()
    device = training_device()
    splits = load_splits(options_of(cell.data), data_dir)
    known = record.get("data")
    if known is not None and splits.fingerprint is not None and known != splits.fingerprint:
        raise DataError(
            f"{folder} was trained on {describe_images(known)}, and here are "
            f"{describe_images(splits.fingerprint)}: give the images of then"
        )
    precision = choose_precision(record["precision"].split()[0], device)
    scored = TrainingOptions.parse(cell.training, "training")
    test = Loader(as_scored(splits.test, scored), scored.eval_batch_size, device)
    normalise = Normalise(splits.mean, splits.std, device)
    return KeptCell(folder, record, cell, model.to(device), test, normalise, precision)
