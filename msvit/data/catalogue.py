"""What images there are, before any is decoded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from msvit.data.encoded import Encoded
from msvit.data.fingerprint import DIGITS, Fingerprint

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Catalogue:
    """Split → encoded images and their labels int64 ``[N]``, class by class; the classes' names."""

    root: Path
    splits: Mapping[str, tuple[Encoded, np.ndarray]]
    classes: Sequence[str]

    @classmethod
    def of_files(cls, root: Path, found: Mapping[str, Mapping[str, Sequence[str]]]) -> Catalogue:
        """Of files below ``root``: split → class → their names, the same classes in each split."""
        splits = {}
        for split, classes in found.items():
            names = [name for files in classes.values() for name in files]
            counts = [len(files) for files in classes.values()]
            labels = np.repeat(np.arange(len(counts)), counts)
            splits[split] = (Encoded.of_files(root, names), labels)
        return cls(root, splits, list(next(iter(found.values()))))

    def __len__(self) -> int:
        """Images of all splits."""
        return sum(len(encoded) for encoded, _ in self.splits.values())

    def counts(self) -> dict[str, list[int]]:
        """Split → images of each class."""
        number = len(self.classes)
        return {
            split: np.bincount(labels, minlength=number).tolist()
            for split, (_, labels) in self.splits.items()
        }

    def paths(self) -> Iterator[Path]:
        """All files that hold images."""
        for encoded, _ in self.splits.values():
            yield from encoded.paths()

    def pieces(self, most: int) -> list[tuple[int, tuple[int, int]]]:
        """All images, at most so many at a time: how many, and (which split, the first of them)."""
        return [
            (min(most, len(encoded) - start), (split, start))
            for split, (encoded, _) in enumerate(self.splits.values())
            for start in range(0, len(encoded), most)
        ]

    def fingerprint(self) -> Fingerprint:
        """Of images that are too many to be decoded for it: of their names and sizes as files.

        A copy has the same, and so have files that lie in an archive or unpacked.
        """
        digest = hashlib.sha256()
        for split, (encoded, labels) in self.splits.items():
            digest.update(f"{split} {len(encoded)}".encode())
            for name, size, label in zip(
                encoded.own_names(), encoded.sizes(), labels.tolist(), strict=True
            ):
                digest.update(b"%s %d %d\n" % (name, size, label))
        return {"counts": self.counts(), "digest": digest.hexdigest()[:DIGITS]}


class Source(Protocol):
    """Where a data set's images are, in one of the forms in which it comes."""

    @property
    def title(self) -> str:
        """``class folders in /data/imagenet``."""

    def check(self) -> None:
        """Whether all is there, as far as a quick look tells.

        Raises:
            DataError: naming what is missing or broken.
        """

    def counts(self) -> dict[str, list[int]] | None:
        """Split → images of each class; None where a quick look does not tell.

        Raises:
            DataError: naming what is missing or broken.
        """

    def left_out(self) -> str | None:
        """A sentence where files lie beside the images that would not be read.

        Raises:
            DataError: naming what is missing or broken.
        """

    def catalogue(self) -> Catalogue:
        """All images.

        Raises:
            DataError: naming what is missing or broken.
        """
