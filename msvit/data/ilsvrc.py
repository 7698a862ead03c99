"""ImageNet's tar files as they come, read where they are: nothing is unpacked.

An image is a stretch of a tar file, as they are not compressed. Where each one lies is found once,
by a walk over the headers, and kept.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
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

_TRAIN = "ILSVRC2012_img_train.tar"
_VAL = "ILSVRC2012_img_val.tar"
_DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
_SYNSETS = "imagenet_2012_validation_synset_labels.txt"

Stretches = list[tuple[str, int, int]]
"""Name, start and length of each member of a tar file."""


@dataclass(frozen=True)
class IlsvrcArchives:
    """A tar of tars to train on, one a class; a tar of all test images; and the labels of these.

    The labels are in the development kit (numbers, and the synsets that they stand for), or in a
    text file of synsets, one line an image.
    """

    root: Path
    num_classes: int

    @classmethod
    def find(cls, root: Path, num_classes: int) -> IlsvrcArchives | None:
        """None where there is no part of it in ``root``.

        Raises:
            DataError: where there is a part and not the rest.
        """
        there = [name for name in (_TRAIN, _VAL) if (root / name).is_file()]
        if not there:
            return None
        for name in (_TRAIN, _VAL):
            if name not in there:
                raise DataError(f"{root / name}: not there, beside {there[0]}")
        if not (root / _DEVKIT).is_file() and not (root / _SYNSETS).is_file():
            raise DataError(
                f"{root}: neither {_DEVKIT} nor {_SYNSETS}, of which one tells the classes of the "
                f"images in {_VAL}"
            )
        return cls(root, num_classes)

    @property
    def title(self) -> str:
        return f"ILSVRC tar files in {self.root}"

    def check(self) -> None:
        self._classes()
        with _opened(self.root / _VAL) as file:  # its first image, and whether it has its end
            next(iter(_members(file, self.root / _VAL)), None)
        self._val_synsets()

    def counts(self) -> dict[str, list[int]] | None:
        """None before the tar files have been walked over once."""
        found = next(filter(None, map(self._read, self._places())), None)
        return None if found is None else found.counts()

    def left_out(self) -> None:
        return None

    def catalogue(self) -> Catalogue:
        return kept(self._places(), self._read, self._make) or self._walk()

    def _places(self) -> list[Path]:
        names = (_TRAIN, _VAL, _DEVKIT, _SYNSETS)
        files = [self.root / name for name in names if (self.root / name).is_file()]
        return cache_places(self.root, files, "ilsvrc")

    def _classes(self) -> list[tuple[str, int, int]]:
        """The tar file of each class within the large one, in the order of synsets."""
        path = self.root / _TRAIN
        with _opened(path) as file:
            found = sorted(_members(file, path))
        if len(found) != self.num_classes:
            raise DataError(f"{path}: {len(found)} classes, expected {self.num_classes}")
        return found

    def _walk(self) -> Catalogue:
        classes = self._classes()
        names = [Path(name).stem for name, _, _ in classes]
        path = self.root / _TRAIN
        train: Stretches = []
        counts = []
        with _opened(path) as file, progress(f"indexing {path}", len(classes), "classes") as tell:
            for name, start, length in classes:
                images = sorted(_members(file, path, name, start, start + length))
                if len(images) < 2:
                    raise DataError(f"{path}: {name} has {len(images)} images, 2 are needed")
                train += images
                counts.append(len(images))
                tell(1)
        with _opened(self.root / _VAL) as file:
            val = sorted(_members(file, self.root / _VAL))
        numbers = {name: number for number, name in enumerate(names)}
        synsets = self._val_synsets()
        if len(synsets) != len(val):
            raise DataError(f"{self.root / _VAL}: {len(val)} images, and {len(synsets)} labels")
        if unknown := sorted(set(synsets) - set(numbers)):
            raise DataError(f"{self.root}: images of {unknown[0]} in {_VAL}, and none in {_TRAIN}")
        labels = np.array([numbers[synset] for synset in synsets], np.int64)
        by_class = np.argsort(labels, kind="stable")
        splits = {
            "train": (self._encoded(_TRAIN, train), np.repeat(np.arange(len(counts)), counts)),
            "val": (self._encoded(_VAL, val)[by_class], labels[by_class]),
        }
        return Catalogue(self.root, splits, names)

    def _encoded(self, file: str, found: Stretches) -> Encoded:
        names, start, length = zip(*found, strict=True)
        return Encoded(
            self.root,
            np.full(len(found), os.fsencode(file)),
            np.array(start, np.int64),
            np.array(length, np.int64),
            np.array([os.fsencode(name) for name in names]),
        )

    def _val_synsets(self) -> list[str]:
        """The class of each test image, in the order of their names."""
        if (self.root / _SYNSETS).is_file():
            return (self.root / _SYNSETS).read_text().split()
        from scipy.io import loadmat

        path = self.root / _DEVKIT
        try:
            with tarfile.open(path) as kit:
                files = {Path(member.name).name: member for member in kit if member.isfile()}
                meta = _content(kit, files["meta.mat"])
                truth = _content(kit, files["ILSVRC2012_validation_ground_truth.txt"])
            rows = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
            # Those that have no others below them are the classes.
            synsets = {
                int(r["ILSVRC2012_ID"]): str(r["WNID"]) for r in rows if not r["num_children"]
            }
            return [synsets[int(line)] for line in truth.split()]
        except KeyError as error:
            raise DataError(f"{path}: it has no {error}") from error
        except Exception as error:  # readers raise whatever they like
            raise DataError(f"{path}: cannot be read ({one_line(error)})") from error

    def _make(self, place: Path) -> Catalogue:
        catalogue = self._walk()
        arrays: dict[str, Any] = {"classes": np.array(catalogue.classes)}
        for split, (encoded, labels) in catalogue.splits.items():
            for key in ("files", "start", "length", "called"):
                arrays[f"{split} {key}"] = getattr(encoded, key)
            arrays[f"{split} labels"] = labels
        replace_file(place.with_suffix(".npz"), lambda file: np.savez(file, **arrays))
        return catalogue

    def _read(self, place: Path) -> Catalogue | None:
        try:
            with np.load(place.with_suffix(".npz")) as arrays:
                splits = {}
                for split in ("train", "val"):
                    keys = (f"{split} {key}" for key in ("files", "start", "length", "called"))
                    encoded = Encoded(self.root, *(arrays[key] for key in keys))
                    splits[split] = (encoded, arrays[f"{split} labels"])
                return Catalogue(self.root, splits, arrays["classes"].tolist())
        except Exception:  # none, or a broken one, which is made again
            return None


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _members(
    file: BinaryIO, path: Path, within: str = "", start: int = 0, end: int | None = None
) -> Iterator[tuple[str, int, int]]:
    """Name, start and length of each file in a tar at ``start`` of ``file``, which ends at ``end``.

    Raises:
        DataError: where it is no tar file, or cut off.
    """
    end = os.fstat(file.fileno()).st_size if end is None else end
    called = f"{path}: {within}" if within else str(path)
    try:
        file.seek(start)
        with tarfile.TarFile(fileobj=file) as tar:
            for member in tar:
                if member.offset_data + member.size > end:
                    raise DataError(f"{called}: {member.name} is cut off")
                if member.isfile():
                    name = re.sub(r"^\./", "", member.name)
                    yield (f"{within}/{name}" if within else name), member.offset_data, member.size
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{called}: no whole tar file ({error})") from error


def _content(kit: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = kit.extractfile(member)
    assert file is not None
    return file.read()
