"""Images in folders, ``{train,test}/<class>/*.{jpg,png}``: CIFAR-10 (Krizhevsky 2009).

Decoded once to bytes and kept in a cache file beside the folders, which all processes map
into memory instead of decoding again; a file beside it tells which images they are.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from msvit.allotment import usable_cpus
from msvit.data.files import cache_folder, locked
from msvit.data.fingerprint import Fingerprint, fingerprint
from msvit.data.options import DataOptions
from msvit.options import DataError

if TYPE_CHECKING:
    import numpy as np

    from msvit.data.splits import Splits

_log = logging.getLogger("msvit")
_SUFFIXES = {".jpg", ".jpeg", ".png"}
_VALIDATION = 0.05
_NOT_SEEN = {
    *("__macosx", "lost+found", "@eadir", "#recycle", "$recycle.bin", "system volume information"),
    *("thumbs.db", "desktop.ini"),
}
"""What archives and file systems bring along beside hidden files, in lower case."""

Listing = Mapping[str, Mapping[str, list[Path]]]
"""Split → class → its image files, both in the order of names."""


class Cifar10Options(DataOptions):
    """47,500 training, 2,500 validation and 10,000 test images, colour, 32×32."""

    name: ClassVar[str] = "cifar10"
    num_classes: ClassVar[int] = 10
    in_channels: ClassVar[int] = 3
    image_size: ClassVar[int] = 32
    mean: ClassVar[tuple[float, ...]] = (0.4914, 0.4822, 0.4465)  # of the 50,000 with labels
    std: ClassVar[tuple[float, ...]] = (0.2470, 0.2435, 0.2616)

    published: ClassVar[Mapping[str, int]] = {"train": 5000, "test": 1000}

    train_per_class: int | None = Field(None, gt=0, le=4750)

    def check(self, data_dir: Path | None) -> None:
        """Whether train and test have the same class folders, with images in each."""
        _listed(_find(data_dir), self.num_classes)

    def counts(self, data_dir: Path | None) -> dict[str, list[int]] | None:
        if data_dir is None:
            return None
        return _counts(_listed(_find(data_dir), self.num_classes))

    def left_out(self, data_dir: Path | None) -> str | None:
        if data_dir is None:
            return None
        root = _find(data_dir)
        listing = _listed(root, self.num_classes)
        left = [str(path.relative_to(root)) for path in _not_read(root, listing)]
        if not left:
            return None
        return (
            f"{root}: not read: {_some(left, 3)}; images are .jpg and .png files that lie right in "
            "the folder of their class"
        )

    def fingerprint(self, data_dir: Path | None) -> Fingerprint | None:
        if data_dir is None:
            return None
        root = _find(data_dir)
        listing = _listed(root, self.num_classes)
        for folder, name in _caches(root, listing):
            if (known := _read_fingerprint(folder / f"{name}.json")) is not None:
                return known
        return read_folders(root, self.num_classes, self.image_size)[1]

    def load(self, data_dir: Path | None) -> Splits:
        import numpy as np
        import torch

        from msvit.data.splits import Images, Splits, split_train

        root = _find(data_dir)
        arrays, found = read_folders(root, self.num_classes, self.image_size)

        def images(split: str) -> Images:
            labels = np.repeat(np.arange(self.num_classes), found["counts"][split])
            return Images(torch.from_numpy(arrays[split]), torch.from_numpy(labels))

        names = _class_names(root / "train")
        train, validation = split_train(images("train"), _VALIDATION, self.train_per_class, names)
        return Splits(train, validation, images("test"), self.mean, self.std, found)


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


def read_folders(
    root: Path, num_classes: int, size: int
) -> tuple[dict[str, np.ndarray], Fingerprint]:
    """Split → images uint8 ``[N, 3, size, size]``, class by class, and which images they are.

    Classes are in the order of their folders' names; the fingerprint counts the images of each.

    Raises:
        DataError: for a wrong number of classes, different classes in ``test``, or a file
            that is no image of this size.
    """
    listing = _listed(root, num_classes)
    for folder, name in _caches(root, listing):
        try:
            with locked(folder):
                found = _load(folder / name, listing)
                if found is None:
                    _log.info("decoding %s once, into %s", root, folder)
                    found = _decode(listing, size)
                    _save(*found, folder / name)
                return found
        except OSError:
            continue  # this folder cannot be written
    return _decode(listing, size)


def _listed(root: Path, num_classes: int) -> Listing:
    """The image files of train and test by class; nothing is opened.

    Raises:
        DataError: for what :func:`read_folders` refuses, as far as names tell.
    """
    try:
        names = {split: _class_names(root / split) for split in ("train", "test")}
        for split, other in (("train", "test"), ("test", "train")):
            if len(names[split]) != num_classes:
                raise DataError(
                    f"{root / split}: {len(names[split])} class folders, expected {num_classes}"
                    f"{_odd(names[split], names[other], other)}"
                )
        if names["train"] != names["test"]:
            raise DataError(f"{root}: train has the classes {names['train']}, test {names['test']}")
        return {split: _list(root / split, classes) for split, classes in names.items()}
    except OSError as error:
        place = _shown(error.filename or root)
        raise DataError(f"{place}: cannot be read ({error.strerror})") from error


def _odd(names: list[str], others: list[str], other: str) -> str:
    """Which of a wrong number of classes is to blame: those that only one split has, or any."""
    only, lacking = sorted(set(names) - set(others)), sorted(set(others) - set(names))
    if only:
        return f"; {other} has no {_some(only)}"
    return f"; {_some(lacking)} is in {other} alone" if lacking else f": {_some(names)}"


def _some(names: Sequence[str], most: int = 20) -> str:
    """``a, b, c``, of many the first."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most:,} more"


def _not_read(root: Path, listing: Listing) -> Iterator[Path]:
    """Files and folders that are seen and hold no image of ``listing``."""
    for split, classes in listing.items():
        yield from (path for path in _entries(root / split) if not path.is_dir())
        for name, files in classes.items():
            read = set(files)
            yield from (path for path in _entries(root / split / name) if path not in read)


def _class_names(folder: Path) -> list[str]:
    """Names of the folders in ``folder`` that are classes, sorted.

    Raises:
        DataError: for a link to nothing or to itself, and a name that is not UTF-8.
    """
    return [path.name for path in _entries(folder) if path.is_dir()]


def _list(folder: Path, names: list[str]) -> dict[str, list[Path]]:
    fewest = 2 if folder.name == "train" else 1
    classes = {}
    for name in names:
        entries = _entries(folder / name)
        files = [p for p in entries if p.suffix.lower() in _SUFFIXES and p.is_file()]
        if len(files) < fewest:
            found = f"{len(files) or 'no'} .jpg or .png file"
            need = "; one to train on and one to hold out are needed" if fewest > 1 else ""
            raise DataError(f"{folder / name}: {found}{need}")
        classes[name] = files
    return classes


def _entries(folder: Path) -> list[Path]:
    """What lies in ``folder``, sorted by name; what is hidden or a system's own is not seen."""
    names = (p for p in folder.iterdir() if p.name[0] != "." and p.name.lower() not in _NOT_SEEN)
    seen = sorted(names)
    for path in seen:
        if path.is_symlink() and not path.exists():
            raise DataError(f"{_shown(path)}: a link to nothing, or to itself")
        if _shown(path.name) != path.name:
            raise DataError(f"{_shown(path)}: a name that is not UTF-8; give it another one")
    return seen


def _shown(path: Path | str | bytes) -> str:
    """A path that can be printed: bytes that are not UTF-8 as ``\\xe9``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _counts(listing: Listing) -> dict[str, list[int]]:
    return {split: [len(files) for files in c.values()] for split, c in listing.items()}


def _caches(root: Path, listing: Listing) -> list[tuple[Path, str]]:
    """Folders that may keep the decoded images, and their name there.

    It changes when a file is added, removed, resized, touched or replaced. The second folder is
    shared by all roots, whose paths are therefore in it; copying and unpacking set a file's time
    of change as they like, so that its inode, and when that has changed, are in it as well.
    """
    digest = hashlib.sha256(os.fsencode(root.resolve()) + b"\n")
    for file in (file for c in listing.values() for files in c.values() for file in files):
        try:
            status = file.stat()
        except OSError as error:
            raise DataError(f"{file}: cannot be read ({error.strerror})") from error
        facts = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        digest.update(f"{file.relative_to(root)} {facts}\n".encode())
    name = f"images-{digest.hexdigest()[:12]}"
    return [(root / ".msvit-cache", name), (cache_folder(), name)]


def _decode(listing: Listing, size: int) -> tuple[dict[str, np.ndarray], Fingerprint]:
    import numpy as np
    from PIL import Image

    arrays, counts = {}, _counts(listing)
    with ThreadPoolExecutor(usable_cpus()) as pool, warnings.catch_warnings():
        # A bomb is refused for its size, by its name.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        for split, classes in listing.items():
            files = [file for files in classes.values() for file in files]
            decoded = pool.map(lambda file: _pixels(file, size), files, chunksize=256)
            arrays[split] = np.stack(list(decoded)).transpose(0, 3, 1, 2).copy()
    sets = {s: (a, np.repeat(np.arange(len(counts[s])), counts[s])) for s, a in arrays.items()}
    return arrays, fingerprint(sets)


def _pixels(file: Path, size: int) -> np.ndarray:
    """The image in ``file`` in red, green and blue, uint8 ``[size, size, 3]``.

    16 bits are scaled to 8, palettes, grey and CMYK converted, all by Pillow's rules.

    Raises:
        DataError: for what is no image, is of another size, can be seen through, or has pixels
            that 8 bits cannot hold.
    """
    import numpy as np
    from PIL import Image

    from msvit.data.decoding import red_green_blue

    try:
        with Image.open(file) as image:
            width, height = image.size
            if (width, height) != (size, size):
                raise DataError(f"{file}: {width}×{height} pixels, expected {size}×{size}")
            try:
                return np.asarray(red_green_blue(image))
            except DataError as error:
                raise DataError(f"{file}: {error}") from None
    except DataError:
        raise
    except Exception as error:  # decoders raise whatever they like
        reason = " ".join(str(error).split())
        raise DataError(f"{file}: cannot be decoded ({reason})") from error


def _load(cache: Path, listing: Listing) -> tuple[dict[str, np.ndarray], Fingerprint] | None:
    import numpy as np

    known = _read_fingerprint(cache.with_suffix(".json"))
    if known is None:
        return None
    try:
        # Mapped: processes share one copy, and only the pages that are used are read.
        images = np.load(cache.with_suffix(".npy"), mmap_mode="c")
    except FileNotFoundError:
        return None
    except Exception as error:
        _log.warning("%s is broken (%s): decoding again", cache.with_suffix(".npy"), error)
        return None
    ends = np.cumsum([0, *(sum(classes) for classes in _counts(listing).values())])
    parts = zip(listing, ends[:-1], ends[1:], strict=True)
    return {split: images[start:end] for split, start, end in parts}, known


def _read_fingerprint(file: Path) -> Fingerprint | None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return {"counts": found["counts"], "digest": found["digest"]}
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _save(arrays: Mapping[str, np.ndarray], found: Fingerprint, cache: Path) -> None:
    import numpy as np

    images = np.concatenate(list(arrays.values()))
    _replace(cache.with_suffix(".npy"), lambda file: np.save(file, images))
    _replace(cache.with_suffix(".json"), lambda file: file.write(json.dumps(found).encode()))


def _replace(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
