"""DVS128 Gesture (Amir et al. 2017, CVPR): 11 hand gestures of 29 people before an event camera.

A file is one person in one light and holds several gestures, which a table beside it tells apart.
Two lists name the files to train on and to test on. A trial is a sample, of about six seconds.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from msvit.data.dvs_files import PREPARED, in_signed, read_events
from msvit.data.events import Events, RecordedOptions, Recordings
from msvit.data.folders_of_events import recordings_in
from msvit.options import DataError

SOURCE = "https://ibm.ent.box.com/s/3hiq58ww1pbbjrinh367ykfdf60xsfm8/folder/50167556794"

_CLASSES = 11
_LISTS = {"train": "trials_to_train.txt", "test": "trials_to_test.txt"}
_TRIALS = {"train": 1176, "test": 288}  # that its lists and tables name, as spikingjelly counts

Trial = tuple[int, int, int]
"""Class from 0, first microsecond, and the one after the last."""


class Dvs128Options(RecordedOptions):
    """1,176 trials to train on, of which a twentieth validates, and 288 to test on.

    ``image_size``: pixels per side. Below 128, frames are means over squares of pixels.
    """

    name: ClassVar[str] = "dvs128"
    num_classes: ClassVar[int] = _CLASSES
    sensor: ClassVar[int] = 128
    mean: ClassVar[tuple[float, ...]] = (0.0, 0.0)
    std: ClassVar[None] = None  # such that counts enter the network

    frames_number: int = Field(16, ge=1, le=1024)
    image_size: Literal[128, 64, 32] = 128

    @classmethod
    def unlike_published(cls, counts: Mapping[str, Sequence[int]]) -> str | None:
        found = {split: sum(counts.get(split, [])) for split in _TRIALS}
        if found == _TRIALS:
            return None
        return (
            f"not the published dvs128: {found['train']:,} train and {found['test']:,} test trials "
            f"were found, and it has {_TRIALS['train']:,} and {_TRIALS['test']:,}"
        )

    def recordings(self, data_dir: Path | None) -> Recordings:
        root = _find(data_dir)
        return _prepared(root) if root.name == PREPARED else _as_recorded(root)


def _find(data_dir: Path | None) -> Path:
    wanted = "DvsGesture.tar.gz, unpacked to DvsGesture/"
    if data_dir is None:
        raise DataError(
            f"DVS128 Gesture needs --data-dir: a folder dvs128 in it with {wanted}, from {SOURCE}"
        )
    for root in (data_dir, *(data_dir / n for n in ("dvs128", "dvs128-gesture", "DVS128Gesture"))):
        if all((root / PREPARED / split).is_dir() for split in _LISTS):
            return root / PREPARED
        for folder in (root / "DvsGesture", root / "extract" / "DvsGesture", root):
            if all((folder / name).is_file() for name in _LISTS.values()):
                return folder
    raise DataError(
        f"DVS128 Gesture is not there: fetch {wanted}, from {SOURCE} into {data_dir / 'dvs128'} "
        f"(or spikingjelly's {PREPARED}/{{train,test}}/<label>/*.npz)"
    )


def _prepared(root: Path) -> Recordings:
    """As spikingjelly has divided it into trials."""
    names = [str(label) for label in range(_CLASSES)]

    def read(file: Path) -> list[tuple[int, Events]]:
        return [(int(file.parent.name), read_events(file))]

    return recordings_in(root, {split: split for split in _LISTS}, names, ".npz", read)


def _as_recorded(root: Path) -> Recordings:
    files: dict[str, list[Path]] = {}
    counts = {split: [0] * _CLASSES for split in _LISTS}
    trials: dict[Path, list[Trial]] = {}
    for split, name in _LISTS.items():
        lines = _text(root / name).split()
        files[split] = [root / line for line in lines]
        for file in files[split]:
            if not file.is_file():
                raise DataError(f"{file}: not there, but {root / name} names it")
            trials[file] = _trials(file.with_name(f"{file.stem}_labels.csv"))
            for label, _, _ in trials[file]:
                counts[split][label] += 1
        for label, number in enumerate(counts[split]):
            if not number:
                raise DataError(f"{root / name}: no trial of class {label + 1} in its files")
    return Recordings(root, files, lambda file: _read(file, trials[file]), counts, False)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error})") from error


def _trials(table: Path) -> list[Trial]:
    """What is when in a recording: class (from 1), start and end in microseconds, below a head."""
    rows = list(csv.reader(_text(table).splitlines()))[1:]
    try:
        found = [(int(label) - 1, int(start), int(end)) for label, start, end in rows]
    except ValueError:
        raise DataError(f"{table}: rows of class, start and end are needed") from None
    if bad := [label for label, _, _ in found if not 0 <= label < _CLASSES]:
        raise DataError(f"{table}: class {bad[0] + 1}, expected 1 to {_CLASSES}")
    return found


def _read(file: Path, trials: Sequence[Trial]) -> list[tuple[int, Events]]:
    import numpy as np
    from spikingjelly.datasets import utils

    try:
        events = in_signed(utils.load_aedat_v3(file))
    except Exception as error:  # of struct, where it is cut off
        raise DataError(f"{file}: no AEDAT 3 file that can be read ({error})") from error
    found: list[tuple[int, Events]] = []
    for label, start, end in trials:
        inside = np.flatnonzero((events["t"] >= start) & (events["t"] < end))
        found.append((label, {key: values[inside] for key, values in events.items()}))
    return found
