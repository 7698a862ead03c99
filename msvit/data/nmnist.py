"""N-MNIST (Orchard et al. 2015, Frontiers in Neuroscience 9:437): digits seen by an event camera.

The 70,000 digits of MNIST on a screen, before which an ATIS camera made three small saccades in
about 300 ms; 34×34 pixels. Read in their binary layout, five bytes an event.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from msvit.data.events import Events, RecordedOptions, Recordings, resized
from msvit.data.folders_of_events import recordings_in
from msvit.options import DataError

if TYPE_CHECKING:
    import numpy as np

SOURCE = "https://www.garrickorchard.com/datasets/n-mnist"

_CLASSES = [str(digit) for digit in range(10)]
_FOLDERS = {"train": "Train", "test": "Test"}
_EVENT_BYTES = 5


class NmnistOptions(RecordedOptions):
    """57,290 training, 2,710 validation and 10,000 test recordings.

    ``image_size``: pixels per side. Fewer than the recorded 34 are cut out of the middle (at 32,
    0.4% of the events are lost), more have seen nothing.
    """

    name: ClassVar[str] = "nmnist"
    num_classes: ClassVar[int] = 10
    sensor: ClassVar[int] = 34
    mean: ClassVar[tuple[float, ...]] = (0.0, 0.0)
    std: ClassVar[None] = None  # such that counts enter the network

    published: ClassVar[Mapping[str, int | Sequence[int]]] = {
        "train": [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
        "test": [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
    }

    image_size: int = Field(32, ge=8, le=128)

    def recordings(self, data_dir: Path | None) -> Recordings:
        return recordings_in(_find(data_dir), _FOLDERS, _CLASSES, ".bin", read_recording)

    def fitted(self, frames: np.ndarray) -> np.ndarray:
        return resized(frames, self.image_size)

    @property
    def scale(self) -> float:
        return 1.0


def read_recording(file: Path) -> list[tuple[int, Events]]:
    """The one sample in ``file``, whose folder is named by its digit.

    Raises:
        DataError: for a file that is cut off.
    """
    from spikingjelly.datasets import utils

    size = file.stat().st_size
    if size % _EVENT_BYTES or not size:
        raise DataError(f"{file}: {size} bytes are no whole events of {_EVENT_BYTES}; cut off?")
    return [(int(file.parent.name), utils.load_ATIS_bin(file))]


def _find(data_dir: Path | None) -> Path:
    wanted = "the folders Train/<digit> and Test/<digit> of Train.zip and Test.zip"
    if data_dir is None:
        raise DataError(f"N-MNIST needs --data-dir: a folder with {wanted}, from {SOURCE}")
    places = [data_dir, *(data_dir / name for name in ("nmnist", "N-MNIST", "NMNIST"))]
    for root in places:
        if all((root / folder).is_dir() for folder in _FOLDERS.values()):
            return root
    raise DataError(
        f"N-MNIST is not there: neither {data_dir} nor {data_dir / 'nmnist'} has {wanted}, "
        f"which are from {SOURCE}"
    )
