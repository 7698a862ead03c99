"""Images in folders, ``{train,test}/<class>/*.{jpg,png}``: CIFAR-10 (Krizhevsky 2009).

Decoded once to bytes and kept in a cache file beside the folders, which all processes map
into memory instead of decoding again.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from msvit.allotment import usable_cpus
from msvit.data.files import cache_folder, locked
from msvit.data.options import DataOptions
from msvit.options import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from msvit.data.splits import Splits

_log = logging.getLogger("msvit")
_SUFFIXES = {".jpg", ".jpeg", ".png"}
_VALIDATION = 0.05


class Cifar10Options(DataOptions):
    """47,500 training, 2,500 validation and 10,000 test images, colour, 32×32."""

    name: ClassVar[str] = "cifar10"
    num_classes: ClassVar[int] = 10
    in_channels: ClassVar[int] = 3
    image_size: ClassVar[int] = 32
    mean: ClassVar[tuple[float, ...]] = (0.4914, 0.4822, 0.4465)  # of the 50,000 with labels
    std: ClassVar[tuple[float, ...]] = (0.2470, 0.2435, 0.2616)

    train_per_class: int | None = Field(None, gt=0, le=4750)

    def check(self, data_dir: Path | None) -> None:
        """Whether train and test have the same class folders, with images in each."""
        _listed(_find(data_dir), self.num_classes)

    def load(self, data_dir: Path | None) -> Splits:
        from msvit.data.splits import Images, Splits, split_train

        root = _find(data_dir)
        arrays = read_folders(root, self.num_classes, self.image_size)
        images = Images(arrays["train_images"], arrays["train_labels"])
        train, validation = split_train(images, _VALIDATION, self.train_per_class)
        test = Images(arrays["test_images"], arrays["test_labels"])
        return Splits(train, validation, test, self.mean, self.std)


def _find(data_dir: Path | None) -> Path:
    if data_dir is None:
        raise DataError(
            "CIFAR-10 needs --data-dir: a folder with train/<class>/*.png (or .jpg) and "
            "test/<class>/*.png, or one that holds such a folder under the name cifar10"
        )
    for root in (data_dir, data_dir / "cifar10"):
        if (root / "train").is_dir() and (root / "test").is_dir():
            return root
    raise DataError(
        f"CIFAR-10 is not there: neither {data_dir} nor {data_dir / 'cifar10'} "
        "has the folders train/<class> and test/<class>"
    )


def read_folders(root: Path, num_classes: int, size: int) -> dict[str, Tensor]:
    """``{train,test}_images`` uint8 ``[N, 3, size, size]`` and ``{train,test}_labels`` int64.

    Classes are numbered in the order of their folders' names.

    Raises:
        DataError: for a wrong number of classes, different classes in ``test``, or a file
            that is no image of this size.
    """
    listing = _listed(root, num_classes)
    cache = f"images-{_signature(root, listing)}.pt"
    for folder in (root / ".msvit-cache", cache_folder()):
        try:
            with locked(folder):
                arrays = _load(folder / cache)
                if arrays is None:
                    _log.info("decoding %s once, into %s", root, folder / cache)
                    arrays = _decode(listing, size)
                    _save(arrays, folder / cache)
                return arrays
        except OSError:
            continue  # this folder cannot be written
    return _decode(listing, size)


def _listed(root: Path, num_classes: int) -> dict[str, list[tuple[Path, int]]]:
    """The image files of train and test, each with its label."""
    try:
        listing = {split: _list(root / split, num_classes) for split in ("train", "test")}
    except OSError as error:
        raise DataError(f"{error.filename or root}: cannot be read ({error.strerror})") from error
    names = {split: sorted({file.parent.name for file, _ in listing[split]}) for split in listing}
    if names["train"] != names["test"]:
        raise DataError(f"{root}: train has the classes {names['train']}, test {names['test']}")
    return listing


def _list(folder: Path, num_classes: int) -> list[tuple[Path, int]]:
    classes = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(classes) != num_classes:
        raise DataError(f"{folder}: {len(classes)} class folders, expected {num_classes}")
    files = []
    for label, path in enumerate(classes):
        images = sorted(file for file in path.iterdir() if file.suffix.lower() in _SUFFIXES)
        if not images:
            raise DataError(f"{path}: no .jpg or .png file")
        files += [(file, label) for file in images]
    return files


def _signature(root: Path, listing: dict[str, list[tuple[Path, int]]]) -> str:
    """Changes when a file is added, removed, resized or touched."""
    digest = hashlib.sha256()
    for file, _ in listing["train"] + listing["test"]:
        status = file.stat()
        line = f"{file.relative_to(root)} {status.st_size} {status.st_mtime_ns}\n"
        digest.update(line.encode())
    return digest.hexdigest()[:12]


def _decode(listing: dict[str, list[tuple[Path, int]]], size: int) -> dict[str, Tensor]:
    import numpy as np
    import torch
    from PIL import Image

    def pixels(file: Path) -> np.ndarray:
        try:
            with Image.open(file) as image:
                array = np.asarray(image.convert("RGB"))
        except OSError as error:
            raise DataError(f"{file}: cannot be decoded ({error})") from error
        if array.shape != (size, size, 3):
            height, width = array.shape[:2]
            raise DataError(f"{file}: {width}×{height} pixels, expected {size}×{size}")
        return array

    arrays: dict[str, Tensor] = {}
    with ThreadPoolExecutor(usable_cpus()) as pool:
        for split, files in listing.items():
            decoded = np.stack(list(pool.map(pixels, [file for file, _ in files], chunksize=256)))
            images = torch.from_numpy(decoded).permute(0, 3, 1, 2)
            arrays[f"{split}_images"] = images.contiguous()
            arrays[f"{split}_labels"] = torch.tensor([label for _, label in files])
    return arrays


def _load(file: Path) -> dict[str, Tensor] | None:
    import torch

    try:
        # Mapped: processes share one copy, and only the pages that are used are read.
        return torch.load(file, mmap=True, weights_only=True)
    except FileNotFoundError:
        return None
    except Exception as error:
        _log.warning("%s is broken (%s): decoding again", file, error)
        return None


def _save(arrays: dict[str, Tensor], file: Path) -> None:
    import torch

    handle, temporary = tempfile.mkstemp(dir=file.parent)
    os.close(handle)
    try:
        torch.save(arrays, temporary)
        os.replace(temporary, file)
    finally:
        Path(temporary).unlink(missing_ok=True)
