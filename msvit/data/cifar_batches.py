"""CIFAR as its author has packed it: pickled batches of rows of 3,072 bytes, and their labels.

In a folder, or in the ``tar.gz`` as it comes, which is unpacked beside itself; where there is
neither, torchvision downloads it.
"""

from __future__ import annotations

import logging
import pickle
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from msvit.data.files import one_line
from msvit.files import cache_folder, locked
from msvit.options import DataError

if TYPE_CHECKING:
    import numpy as np


_log = logging.getLogger("msvit")


@dataclass(frozen=True)
class Batches:
    """How one of the two is packed: split → its files in ``folder`` of ``archive``."""

    title: str
    folder: str
    archive: str
    files: Mapping[str, tuple[str, ...]]
    labels: str
    num_classes: int
    torchvision: str
    """The class of torchvision that downloads it."""


CIFAR10 = Batches(
    "CIFAR-10",
    "cifar-10-batches-py",
    "cifar-10-python.tar.gz",
    {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)},
    "labels",
    10,
    "CIFAR10",
)
CIFAR100 = Batches(
    "CIFAR-100",
    "cifar-100-python",
    "cifar-100-python.tar.gz",
    {"train": ("train",), "test": ("test",)},
    "fine_labels",
    100,
    "CIFAR100",
)


@dataclass(frozen=True)
class BatchFiles:
    """The batches ``kind`` in the folder ``root``, all there."""

    kind: Batches
    root: Path

    @classmethod
    def find(cls, kind: Batches, data_dir: Path | None) -> BatchFiles | None:
        """In ``data_dir`` or the user's cache; None where they are in neither."""
        folders = (f for place in _places(data_dir) for f in (place / kind.folder, place))
        found = next((folder for folder in folders if _complete(kind, folder)), None)
        return None if found is None else cls(kind, found)

    @classmethod
    def fetch(cls, kind: Batches, data_dir: Path | None) -> BatchFiles:
        """Unpacked or downloaded now.

        Raises:
            DataError: where that cannot be, and where some of the files are there.
        """
        archive = _archive(kind, data_dir)
        if not archive:
            _check_none_is_there(kind, data_dir)
        folder = _unpacked(kind, archive) if archive else _downloaded(kind, data_dir)
        return cls(kind, folder)

    @classmethod
    def will_be(cls, kind: Batches, data_dir: Path | None) -> str:
        """What :meth:`fetch` would do, which it says as that does where it cannot."""
        archive = _archive(kind, data_dir)
        if archive:
            return f"to be unpacked from {archive}"
        _check_none_is_there(kind, data_dir)
        return f"to be downloaded to {_places(data_dir)[0]}"

    @property
    def title(self) -> str:
        return f"pickled batches in {self.root}"

    def check(self) -> None:
        self.counts()

    def counts(self) -> dict[str, list[int]]:
        import numpy as np

        number = self.kind.num_classes
        return {
            split: np.bincount(labels, minlength=number).tolist()
            for split, (_, labels) in self.read().items()
        }

    def left_out(self) -> None:
        return None

    def catalogue(self) -> NoReturn:
        raise TypeError("these images are not encoded")

    def read(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Split → images uint8 ``[N, 3, 32, 32]`` and labels int64 ``[N]``, class by class.

        Raises:
            DataError: for a file that is broken, or not what it should be.
        """
        import numpy as np

        sets = {}
        for split, names in self.kind.files.items():
            parts = [_batch(self.root / name, self.kind) for name in names]
            images, labels = (np.concatenate(values) for values in zip(*parts, strict=True))
            counts = np.bincount(labels, minlength=self.kind.num_classes)
            if counts.min() == 0:
                raise DataError(f"{self.root}: no {split} image has the label {counts.argmin()}")
            by_class = np.argsort(labels, kind="stable")
            sets[split] = (images[by_class].reshape(-1, 3, 32, 32), labels[by_class])
        return sets


def _places(data_dir: Path | None) -> list[Path]:
    return [data_dir, cache_folder()] if data_dir else [cache_folder()]


def _archive(kind: Batches, data_dir: Path | None) -> Path | None:
    archives = (place / kind.archive for place in _places(data_dir))
    return next((archive for archive in archives if archive.is_file()), None)


def _complete(kind: Batches, folder: Path) -> bool:
    return all((folder / name).is_file() for names in kind.files.values() for name in names)


def _check_none_is_there(kind: Batches, data_dir: Path | None) -> None:
    """Who has some of the files wants the others: to be told, not to have all downloaded."""
    names = [name for part in kind.files.values() for name in part]
    for folder in (data_dir / kind.folder, data_dir) if data_dir else ():
        lacking = [name for name in names if not (folder / name).is_file()]
        if len(lacking) < len(names):
            raise DataError(f"{folder}: it has no {', '.join(lacking)} of {kind.title}")


def _unpacked(kind: Batches, archive: Path) -> Path:
    """The folder of batches that ``archive`` holds, beside it or in the user's cache."""
    problem: Exception | None = None
    for place in (archive.parent, cache_folder()):
        try:
            with locked(place):
                if not _complete(kind, place / kind.folder):
                    _log.info("unpacking %s into %s", archive, place)
                    with tarfile.open(archive) as packed:
                        packed.extractall(place, filter="data")
        except (tarfile.TarError, EOFError, zlib.error) as error:
            raise DataError(f"{archive}: cannot be unpacked ({one_line(error)})") from error
        except OSError as error:
            problem = error
            continue
        if not _complete(kind, place / kind.folder):
            raise DataError(f"{archive}: it has no {kind.folder} with all batches")
        return place / kind.folder
    assert problem is not None, "neither place could be written"
    raise DataError(f"{archive}: cannot be unpacked ({one_line(problem)})")


def _downloaded(kind: Batches, data_dir: Path | None) -> Path:
    target = _places(data_dir)[0]
    try:
        with locked(target):
            if not _complete(kind, target / kind.folder):
                _log.info("downloading %s to %s", kind.title, target)
                _download(kind, target)
    except (OSError, RuntimeError) as error:
        place = f"in --data-dir ({data_dir})" if data_dir else "in --data-dir (not given)"
        raise DataError(
            f"{kind.title} is not there: {place} is neither {kind.archive} nor the folder "
            f"{kind.folder}, nor are there folders train/<class> and test/<class> of .png or .jpg "
            f"files, and torchvision could not download it to {target} ({one_line(error)})"
        ) from error
    return target / kind.folder


def _download(kind: Batches, target: Path) -> None:
    from torchvision import datasets

    getattr(datasets, kind.torchvision)(target, download=True)


def _batch(file: Path, kind: Batches) -> tuple[np.ndarray, np.ndarray]:
    """Rows uint8 ``[N, 3072]``, red before green before blue, and labels ``[N]``."""
    import numpy as np

    try:
        with file.open("rb") as opened:
            content = _Plain(opened, encoding="latin1").load()
        rows, labels = np.asarray(content["data"]), np.asarray(content[kind.labels], np.int64)
    except KeyError as error:
        raise DataError(f"{file}: it has no {error}, as a batch of {kind.title} has") from error
    except Exception as error:  # pickle raises whatever it likes
        raise DataError(f"{file}: no batch of {kind.title} ({one_line(error)})") from error
    if rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != 3072:
        raise DataError(f"{file}: {rows.dtype} of {rows.shape}, expected uint8 of (N, 3072)")
    if labels.shape != (len(rows),):
        raise DataError(f"{file}: {labels.size} labels for {len(rows)} images")
    if len(labels) and not 0 <= labels.min() <= labels.max() < kind.num_classes:
        wrong = labels.max() if labels.max() >= kind.num_classes else labels.min()
        raise DataError(f"{file}: label {wrong}, expected 0 to {kind.num_classes - 1}")
    return rows, labels


class _Plain(pickle.Unpickler):
    """Arrays, numbers, text and their containers: nothing in a file is run."""

    _MODULES = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray", "_codecs")
    _NAMES = ("ndarray", "dtype", "_reconstruct", "encode")

    def find_class(self, module: str, name: str) -> Any:
        if module in self._MODULES and name in self._NAMES:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")
