"""Images in Parquet files, as Hugging Face has them: ``<split>-*.parquet``, read by pyarrow.

A row has an image (a struct whose ``bytes`` are a file) and the number of its class. Parquet is
read in large pieces alone, so that the images are unpacked once into one file a split, from which
each can be read by itself. That takes the room of the data once more.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from msvit.data.caches import cache_places, kept
from msvit.data.catalogue import Catalogue
from msvit.data.encoded import Encoded
from msvit.data.files import one_line
from msvit.data.progress import progress
from msvit.files import replace_file
from msvit.options import DataError

_SPLITS = {"train": ("train",), "val": ("validation", "valid", "val"), "test": ("test",)}
_IMAGES = ("image", "img")
_LABELS = ("label", "labels", "fine_label")


@dataclass(frozen=True)
class ParquetFiles:
    """``files`` of each split in the folder ``root``; a test without labels is none."""

    root: Path
    files: dict[str, list[Path]]
    num_classes: int
    wrong_number: str = "expected {}"

    @classmethod
    def find(
        cls, data_dir: Path, num_classes: int, wrong_number: str = "expected {}"
    ) -> ParquetFiles | None:
        """None where ``data_dir`` and its folder ``data`` have none to train and to test on."""
        for root in (data_dir, data_dir / "data"):
            files = {split: _files(root, names) for split, names in _SPLITS.items()}
            present = {split: found for split, found in files.items() if found}
            if "train" in present and len(present) > 1:
                return cls(root, present, num_classes, wrong_number)
        return None

    @property
    def title(self) -> str:
        return f"Parquet files in {self.root}"

    def check(self) -> None:
        self.counts()

    def left_out(self) -> None:
        return None

    def counts(self) -> dict[str, list[int]]:
        labels = self._labels()
        found = {
            split: np.bincount(values, minlength=self.num_classes).tolist()
            for split, values in labels.items()
        }
        for split, counts in found.items():
            if len(counts) != self.num_classes:
                wrong = self.wrong_number.format(self.num_classes)
                raise DataError(f"{self.root}: {split} has {len(counts)} classes, {wrong}")
            if (fewest := min(counts)) == 0:
                message = f"no {split} image has the label {counts.index(fewest)}"
                raise DataError(f"{self.root}: {message}; the labels are 0 to {len(counts) - 1}")
        return found

    def catalogue(self) -> Catalogue:
        self.check()
        splits = {}
        for split, labels in self._labels().items():
            by_class = np.argsort(labels, kind="stable")
            splits[split] = (self._unpacked(split)[by_class], labels[by_class])
        return Catalogue(self.root, splits, [str(number) for number in range(self.num_classes)])

    def _labels(self) -> dict[str, np.ndarray]:
        """Split → the label of each row, int64; of a split whose labels are all -1, none."""
        found = {}
        for split, files in self.files.items():
            labels = np.concatenate([_labels_of(file) for file in files])
            if split == "test" and "val" in self.files and (labels < 0).all():
                continue
            if not len(labels) or labels.min() < 0:
                what = f"label {labels.min()}" if len(labels) else "no image"
                raise DataError(f"{files[0]}: {what} in the split {split}")
            found[split] = labels
        return found

    def _unpacked(self, split: str) -> Encoded:
        files = self.files[split]
        places = cache_places(self.root, files, f"unpacked-{split}")
        encoded = kept(places, self._read, lambda place: self._unpack(files, place))
        if encoded is None:
            folders = " and ".join(str(place.parent) for place in places)
            raise DataError(f"{files[0]}: there is no room to unpack it, in {folders}")
        return encoded

    def _unpack(self, files: list[Path], place: Path) -> Encoded:
        needed = sum(file.stat().st_size for file in files)
        if shutil.disk_usage(place.parent).free < 1.05 * needed:
            raise OSError(f"{needed / 1e9:.1f} GB are needed")
        lengths: list[int] = []
        called: list[bytes] = []

        def write(out: BinaryIO) -> None:
            rows = sum(_opened(file).metadata.num_rows for file in files)
            with progress(f"unpacking {self.root}", rows) as tell:
                for file in files:
                    for number, content in enumerate(_contents(file)):
                        out.write(content)
                        lengths.append(len(content))
                        called.append(os.fsencode(f"{file.name}, row {number}"))
                        tell(1)

        replace_file(place.with_suffix(".images"), write)
        length, names = np.array(lengths, np.int64), np.array(called)
        index = place.with_suffix(".npz")
        replace_file(index, lambda out: np.savez(out, length=length, called=names))
        found = self._read(place)
        assert found is not None
        return found

    def _read(self, place: Path) -> Encoded | None:
        images = place.with_suffix(".images")
        try:
            with np.load(place.with_suffix(".npz")) as arrays:
                length, called = arrays["length"], arrays["called"]
            if images.stat().st_size != length.sum():
                return None
        except Exception:  # none, or a broken one, which is made again
            return None
        name = np.full(len(length), os.fsencode(images.name))
        return Encoded(place.parent, name, np.cumsum(length) - length, length, called)


def _files(root: Path, names: tuple[str, ...]) -> list[Path]:
    return sorted({file for name in names for file in root.glob(f"{name}-*.parquet")})


def _opened(file: Path) -> Any:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(file)
    except (ArrowException, OSError) as error:
        raise DataError(f"{file}: cannot be read ({one_line(error)})") from error


def _column(file: Path, opened: Any, names: tuple[str, ...], what: str) -> str:
    columns = opened.schema_arrow.names
    found = next((name for name in names if name in columns), None)
    if found is None:
        message = f"no column {' or '.join(names)} of {what}; it has {', '.join(columns)}"
        raise DataError(f"{file}: {message}")
    return found


def _labels_of(file: Path) -> np.ndarray:
    from pyarrow.types import is_integer

    opened = _opened(file)
    name = _column(file, opened, _LABELS, "labels")
    kind = opened.schema_arrow.field(name).type
    if not is_integer(kind):
        raise DataError(f"{file}: the column {name} is {kind}, and labels are whole numbers")
    column = opened.read([name]).column(name)
    if column.null_count:
        raise DataError(f"{file}: {column.null_count} rows have no {name}")
    return np.asarray(column.to_numpy(), np.int64)


def _contents(file: Path) -> Iterator[bytes]:
    """The bytes of each row's image."""
    from pyarrow import ArrowException
    from pyarrow.types import is_struct

    opened = _opened(file)
    name = _column(file, opened, _IMAGES, "images")
    kind = opened.schema_arrow.field(name).type
    if not is_struct(kind) or kind.get_field_index("bytes") < 0:
        raise DataError(f"{file}: the column {name} is {kind}, and a struct with bytes is needed")
    row = 0
    try:
        for batch in opened.iter_batches(batch_size=64, columns=[name]):
            for content in batch.column(0).field("bytes"):
                if not content.is_valid:
                    raise DataError(f"{file}, row {row}: no bytes")
                yield content.as_py()
                row += 1
    except (ArrowException, OSError) as error:
        raise DataError(f"{file}, behind row {row}: cannot be read ({one_line(error)})") from error
