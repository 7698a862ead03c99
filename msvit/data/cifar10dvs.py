"""CIFAR10-DVS (Li et al. 2017, Frontiers in Neuroscience 11:309): CIFAR-10 before an event camera.

1,000 recordings of each class on 128×128 pixels, without a division of their own: as in the
published code (Spikformer, QKFormer, MSVIT), the first 90% of each class, in the order of their
files' names, are trained on. What is selected by is held out of these here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from msvit.data.dvs_files import PREPARED, read_events
from msvit.data.events import Events, RecordedOptions, Recordings
from msvit.data.files import some
from msvit.data.folders_of_events import class_files
from msvit.options import DataError

SOURCE = "https://figshare.com/articles/dataset/CIFAR10-DVS_New/4724671"

CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)

_TRAINED_ON = 0.9


class Cifar10DvsOptions(RecordedOptions):
    """8,550 training, 450 validation and 1,000 test recordings.

    ``image_size``: pixels per side. Below 128, frames are means over squares of pixels, as the
    released SDT code makes them.
    """

    name: ClassVar[str] = "cifar10dvs"
    num_classes: ClassVar[int] = 10
    classes: ClassVar[Sequence[str]] = CLASSES
    sensor: ClassVar[int] = 128
    mean: ClassVar[tuple[float, ...]] = (0.0, 0.0)
    std: ClassVar[None] = None  # such that counts enter the network

    published: ClassVar[Mapping[str, int | Sequence[int]]] = {"train": 900, "test": 100}

    image_size: Literal[128, 64, 32] = 128

    def recordings(self, data_dir: Path | None) -> Recordings:
        root = _find(data_dir)
        suffixes = (".npz",) if root.name == PREPARED else (".aedat",)
        classes = class_files(root, CLASSES, suffixes, fewest=3)
        train, test = [], []
        counts: dict[str, list[int]] = {"train": [], "test": []}
        for files in classes.values():
            first = math.ceil(_TRAINED_ON * len(files))
            if first == len(files):
                first -= 1  # of fewer than ten, one is left to test on
            train += files[:first]
            test += files[first:]
            counts["train"].append(first)
            counts["test"].append(len(files) - first)
        return Recordings(root, {"train": train, "test": test}, _read, counts)


def _read(file: Path) -> list[tuple[int, Events]]:
    return [(CLASSES.index(file.parent.name), read_events(file))]


def _find(data_dir: Path | None) -> Path:
    """The folder of the class folders."""
    wanted = "airplane.zip to truck.zip, unpacked to <class>/*.aedat"
    if data_dir is None:
        raise DataError(
            f"CIFAR10-DVS needs --data-dir: a folder cifar10dvs in it with {wanted}, from {SOURCE}"
        )
    begun = ""
    for root in (data_dir, *(data_dir / n for n in ("cifar10dvs", "cifar10-dvs", "CIFAR10DVS"))):
        for folder in (root / PREPARED, root / "extract", root):  # the first two: spikingjelly's
            lacking = [name for name in CLASSES if not (folder / name).is_dir()]
            if not lacking:
                return folder
            if len(lacking) < len(CLASSES):
                begun = begun or f"{folder}: it has no folder {some(lacking)}; "
    raise DataError(
        f"{begun}CIFAR10-DVS is not {'all ' if begun else ''}there: fetch {wanted}, from {SOURCE} "
        f"into {data_dir / 'cifar10dvs'} (or spikingjelly's {PREPARED}/<class>/*.npz)"
    )
