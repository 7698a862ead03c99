"""What one cell runs on, where that is more than one process on a share of a GPU.

::

    resources: {gpus: 8}            # eight workers, each with a GPU
    resources: {gpus: 16, nodes: 2}
    resources: {workers: 2}         # each with a GPU where there are any, else on CPUs

At the top of a grid for all its configurations, in one of its ``include``, or on the command line
(``--set resources.gpus=8``). It is no part of a cell: what is computed has one id wherever it
runs, and the record says how it ran.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

from pydantic import Field, model_validator

from msvit.cells import Cell
from msvit.data import options_of
from msvit.options import ConfigError, Options
from msvit.recipes import TrainingOptions

SECTION = "resources"


class Resources(Options):
    """Totals over all workers of a cell; what is not set is as for any other cell."""

    workers: int | None = Field(None, ge=1)
    """Processes that share every batch; default: one for each of ``gpus``."""
    gpus: int | None = Field(None, ge=0)
    """Default: one for each worker, where there are any. Fewer than workers are shared."""
    cpus: float | None = Field(None, gt=0)
    """Default: as many for each worker as --cpus-per-cell."""
    nodes: int | None = Field(None, ge=1)
    """Machines, with as many workers each; default: as few as have room."""

    @property
    def count(self) -> int:
        """Workers."""
        return self.workers or self.gpus or 1

    @model_validator(mode="after")
    def _come_out_even(self) -> Self:
        count = self.count
        if self.gpus and (self.gpus > count or count % self.gpus):
            raise ValueError(
                f"a worker has one GPU, or a share of one: {self.gpus} GPUs do not go with "
                f"{count} workers"
            )
        if self.nodes and count % self.nodes:
            raise ValueError(f"{count} workers cannot be spread evenly over {self.nodes} nodes")
        return self


NOTHING_SAID = Resources.model_validate({})


def check_batch(cell: Cell, resources: Resources, where: str) -> None:
    """Refuse workers that cannot share every batch evenly.

    A batch is the recipe's, or the training set, where the cell says that it is smaller. What only
    the images tell, workers find out (:class:`msvit.workers.UnevenWorkers`).

    Raises:
        ConfigError: naming ``where``.
    """
    options, data = TrainingOptions.parse(cell.training, "training"), options_of(cell.data)
    images = data.train_per_class and data.train_per_class * data.num_classes
    if problem := options.uneven(resources.count, images):
        raise ConfigError(where, SECTION, problem)


def notes_on_workers(given: Iterable[tuple[Cell, Resources]]) -> list[str]:
    """What a person should know before waiting for cells that run on ``given`` resources."""
    for cell, resources in given:
        if resources.count > 1 and not cell.training.get("sync_batchnorm"):
            return [
                "training.sync_batchnorm is off: each worker normalises its own images, so that "
                "results depend on how many there are"
            ]
    return []
