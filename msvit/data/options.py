"""What every data set's options have in common. Needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from msvit.options import Options

if TYPE_CHECKING:
    from msvit.data.splits import Splits


class DataError(RuntimeError):
    """Images that are missing or broken; the message names the files and what would be right."""


class DataOptions(Options):
    """Options of one data set.

    A subclass sets ``name``, ``num_classes`` and ``in_channels``, has an ``image_size``
    (pixels per side; a constant or an option) and implements :meth:`load`.
    """

    name: ClassVar[str]
    num_classes: ClassVar[int]
    in_channels: ClassVar[int]

    train_per_class: int | None = Field(None, gt=0)
    """Train on a stratified subset of this many images a class; ``None`` takes all."""

    def load(self, data_dir: Path | None) -> Splits:
        """Read the images; ``data_dir`` is where the user keeps data sets.

        Raises:
            DataError: where files are missing or broken.
        """
        raise NotImplementedError
