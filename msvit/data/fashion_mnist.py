"""Fashion-MNIST (Xiao et al. 2017, arXiv 1708.07747): the serious data set for a CPU.

70,000 grey images of clothes in idx files, 28×28, padded here to 32×32.
"""

from __future__ import annotations

import gzip
import itertools
import logging
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from msvit.data.files import one_line
from msvit.data.fingerprint import Fingerprint, fingerprint
from msvit.data.options import DataOptions
from msvit.files import cache_folder, locked
from msvit.options import DataError

if TYPE_CHECKING:
    import numpy as np

    from msvit.data.splits import Splits

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")

_log = logging.getLogger("msvit")
_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_VALIDATION = 0.05
_IDX_BYTES = b"\0\0\x08"


class FashionMnistOptions(DataOptions):
    """57,000 training, 3,000 validation and 10,000 test images."""

    name: ClassVar[str] = "fashion_mnist"
    num_classes: ClassVar[int] = 10
    in_channels: ClassVar[int] = 1
    image_size: ClassVar[int] = 32
    mean: ClassVar[tuple[float, ...]] = (0.219,)  # of 60,000 images with their padding
    std: ClassVar[tuple[float, ...]] = (0.332,)

    published: ClassVar[Mapping[str, int]] = {"train": 6000, "test": 1000}

    train_per_class: int | None = Field(None, gt=0, le=5700)

    def check(self, data_dir: Path | None) -> None:
        """Whether the four files are there, or can be downloaded now, once for all cells."""
        folder = _find(data_dir)
        for name in itertools.chain.from_iterable(_FILES.values()):
            _check_head(_file(folder, name))

    def source(self, data_dir: Path | None) -> str:
        folder = _found(data_dir)
        if folder is None:
            return f"to be downloaded to {data_dir or cache_folder()}"
        return f"idx files in {folder}"

    def counts(self, data_dir: Path | None) -> dict[str, list[int]] | None:
        import numpy as np

        if (folder := _found(data_dir)) is None:
            return None
        labels = {split: read_idx(_file(folder, pair[1])) for split, pair in _FILES.items()}
        return {split: np.bincount(values.ravel()).tolist() for split, values in labels.items()}

    def fingerprint(self, data_dir: Path | None) -> Fingerprint | None:
        folder = _found(data_dir)
        return None if folder is None else fingerprint(_read(folder))

    def load(self, data_dir: Path | None) -> Splits:
        import torch
        from torch.nn.functional import pad

        from msvit.data.splits import Images, Splits, split_train

        arrays = _read(_find(data_dir))

        def images(split: str) -> Images:
            pixels, labels = (torch.from_numpy(array) for array in arrays[split])
            return Images(pad(pixels[:, None], (2, 2, 2, 2)), labels.long())

        train, validation = split_train(images("train"), _VALIDATION, self.train_per_class)
        found = fingerprint(arrays)
        return Splits(train, validation, images("test"), self.mean, self.std, found)


def _found(data_dir: Path | None) -> Path | None:
    """The folder that holds all four files, if there is one."""
    names = ("", "fashion-mnist", "FashionMNIST", "FashionMNIST/raw")
    given = [data_dir / name for name in names] if data_dir else []
    own = (data_dir or cache_folder()) / "FashionMNIST" / "raw"  # where they are downloaded to
    return next((f for f in (*given, DEBIAN_FOLDER, own) if _complete(f)), None)


def _find(data_dir: Path | None) -> Path:
    """The folder that holds all four files, downloaded if need be."""
    if (folder := _found(data_dir)) is not None:
        return folder
    target = data_dir or cache_folder()
    try:
        with locked(target / "FashionMNIST"):
            folder = target / "FashionMNIST" / "raw"
            if not _complete(folder):
                _log.info("downloading Fashion-MNIST to %s", folder)
                _download(target)
            return folder
    except (OSError, RuntimeError) as error:
        place = f"in --data-dir ({data_dir})" if data_dir else "in --data-dir (not given)"
        raise DataError(
            f"Fashion-MNIST is not there: looked for {_FILES['train'][0]}.gz and three more "
            f"{place}, in {DEBIAN_FOLDER} (Debian package dataset-fashion-mnist), "
            f"and torchvision could not download it to {target} ({one_line(error)})"
        ) from error


def _download(target: Path) -> None:
    from torchvision.datasets import FashionMNIST

    FashionMNIST(target, download=True)


def _complete(folder: Path) -> bool:
    return all(_file(folder, name).is_file() for pair in _FILES.values() for name in pair)


def _file(folder: Path, name: str) -> Path:
    """The file of this name, packed or not; the packed one's name where there is neither."""
    packed, plain = folder / f"{name}.gz", folder / name
    return plain if plain.is_file() and not packed.is_file() else packed


def _read(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Split → images uint8 ``[N, 28, 28]`` and their labels ``[N]``."""
    import numpy as np

    arrays = {}
    for split, names in _FILES.items():
        image_file, label_file = (_file(folder, name) for name in names)
        images, labels = read_idx(image_file), read_idx(label_file)
        if images.ndim != 3 or images.shape[1:] != (28, 28):
            raise DataError(f"{image_file}: images of {images.shape[1:]}, expected (28, 28)")
        if labels.ndim != 1 or len(labels) != len(images):
            raise DataError(f"{label_file}: {len(labels)} labels for {len(images)} images")
        if not len(labels) or labels.max() > 9:
            what = f"label {labels.max()}" if len(labels) else "no label"
            raise DataError(f"{label_file}: {what}, expected 0 to 9")
        if (counts := np.bincount(labels, minlength=10)).min() == 0:
            raise DataError(f"{label_file}: no image has the label {counts.argmin()}")
        arrays[split] = (images, labels)
    return arrays


def _check_head(file: Path) -> None:
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as opened:
            head = opened.read(len(_IDX_BYTES))
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file}: cannot be read ({error})") from error
    if head != _IDX_BYTES:
        raise DataError(f"{file}: not an idx file of bytes")


def read_idx(file: Path) -> np.ndarray:
    """A uint8 idx file (plain or gzip): two zero bytes, type 8, rank, sizes, values.

    Raises:
        DataError: if the file is cut short or no such file.
    """
    import numpy as np

    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file}: cannot be read ({error})") from error
    if len(content) < 4 or content[:3] != _IDX_BYTES:
        raise DataError(f"{file}: not an idx file of bytes")
    rank = content[3]
    shape = [int(size) for size in np.frombuffer(content, ">u4", rank, 4)]
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * rank)
    if len(values) != np.prod(shape, dtype=np.int64):
        raise DataError(f"{file}: {len(values)} bytes for the shape {tuple(shape)}; is it cut off?")
    return values.reshape(shape).copy()  # of bytes: could not be written to
