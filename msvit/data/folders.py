"""Images in folders of their class: ``<split>/<class>/*.{jpg,png}``.

Classes are in the order of their folders' names, and images in that of theirs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from msvit.data.catalogue import Catalogue
from msvit.data.files import shown, some
from msvit.options import DataError

_SUFFIXES = (".jpg", ".jpeg", ".png")
_NOT_SEEN = {
    *("__macosx", "lost+found", "@eadir", "#recycle", "$recycle.bin", "system volume information"),
    *("thumbs.db", "desktop.ini"),
}
"""What archives and file systems bring along beside hidden files, in lower case."""

Listing = Mapping[str, Mapping[str, list[str]]]
"""Split → class → names of its image files, both in the order of names."""

Found = TypeVar("Found")


@dataclass(frozen=True)
class ClassFolders:
    """The folders ``splits`` in ``root``, which have the same ``num_classes`` folders of images."""

    root: Path
    splits: tuple[str, ...]
    num_classes: int
    wrong_number: str = "expected {}"
    """What is said of another number of classes than ``{}``."""

    @property
    def title(self) -> str:
        return f"class folders in {self.root}"

    def check(self) -> None:
        self.listed()

    def counts(self) -> dict[str, list[int]]:
        listing = self.listed()
        return {split: [len(files) for files in c.values()] for split, c in listing.items()}

    def left_out(self) -> str | None:
        left = told(self.root, lambda: list(self._not_read()))
        if not left:
            return None
        return (
            f"{self.root}: not read: {some(left, 3)}; images are .jpg and .png files that lie "
            "right in the folder of their class"
        )

    def catalogue(self) -> Catalogue:
        files = {
            split: {name: [f"{split}/{name}/{file}" for file in own] for name, own in found.items()}
            for split, found in self.listed().items()
        }
        return Catalogue.of_files(self.root, files)

    def listed(self) -> Listing:
        """The image files of each split by class; nothing is opened.

        Raises:
            DataError: for a wrong number of classes, other classes in one split than in another,
                or too few images of one, as far as names tell.
        """
        return told(self.root, self._listed)

    def _listed(self) -> Listing:
        first, *others = self.splits
        names = {split: class_names(self.root / split) for split in self.splits}
        for split in self.splits:
            other = first if split != first else others[0]
            if len(names[split]) != self.num_classes:
                raise DataError(
                    f"{self.root / split}: {len(names[split])} class folders, "
                    f"{self.wrong_number.format(self.num_classes)}"
                    f"{_odd(names[split], names[other], other)}"
                )
        for split in others:
            if names[split] != names[first]:
                message = f"{first} has the classes {names[first]}, {split} {names[split]}"
                raise DataError(f"{self.root}: {message}")
        return {split: _list(self.root / split, found) for split, found in names.items()}

    def _not_read(self) -> Iterator[str]:
        """Files and folders that are seen and hold no image, by their names in ``root``."""
        for split in self.splits:
            for entry in entries(self.root / split):
                if not entry.is_dir():
                    yield f"{split}/{entry.name}"
                    continue
                for inner in entries(Path(entry.path)):
                    if not is_image(inner):
                        yield f"{split}/{entry.name}/{inner.name}"


def told(root: Path, look: Callable[[], Found]) -> Found:
    """What ``look`` finds in ``root``.

    Raises:
        DataError: naming what it cannot look at.
    """
    try:
        return look()
    except OSError as error:
        place = shown(error.filename or root)
        raise DataError(f"{place}: cannot be read ({error.strerror})") from error


def class_names(folder: Path) -> list[str]:
    """Names of the folders in ``folder`` that are classes, sorted.

    Raises:
        DataError: for a link to nothing or to itself, and a name that is not UTF-8.
        OSError: where it cannot be looked at.
    """
    return [entry.name for entry in entries(folder) if entry.is_dir()]


def image_names(folder: Path) -> list[str]:
    """Names of the image files in ``folder``, sorted; raises as :func:`class_names` does."""
    return [entry.name for entry in entries(folder) if is_image(entry)]


def is_image(entry: os.DirEntry[str]) -> bool:
    """Whether it is a file that is called an image."""
    return entry.name.lower().endswith(_SUFFIXES) and entry.is_file()


def _list(folder: Path, names: list[str]) -> dict[str, list[str]]:
    return {name: enough(folder / name, image_names(folder / name)) for name in names}


def enough(folder: Path, files: list[str]) -> list[str]:
    """The image ``files`` of a class, which lie in ``folder`` in the folder of their split.

    Raises:
        DataError: where there is none, or, to train on, one alone.
    """
    training = "train" in folder.parts[-3:-1]
    if len(files) < (2 if training else 1):
        found = f"{len(files) or 'no'} .jpg or .png file"
        need = "; one to train on and one to hold out are needed" if training else ""
        raise DataError(f"{folder}: {found}{need}")
    return files


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in ``folder``, sorted by name; what is hidden or a system's own is not seen."""
    with os.scandir(folder) as found:
        seen = [e for e in found if e.name[0] != "." and e.name.lower() not in _NOT_SEEN]
    seen.sort(key=lambda entry: entry.name)
    for entry in seen:
        if entry.is_symlink() and not os.path.exists(entry.path):
            raise DataError(f"{shown(entry.path)}: a link to nothing, or to itself")
        if not entry.name.isascii() and shown(entry.name) != entry.name:
            raise DataError(f"{shown(entry.path)}: a name that is not UTF-8; give it another one")
    return seen


def _odd(names: Sequence[str], others: Sequence[str], other: str) -> str:
    """Which of a wrong number of classes is to blame: those that only one split has, or any."""
    only, lacking = sorted(set(names) - set(others)), sorted(set(others) - set(names))
    if only:
        return f"; {other} has no {some(only)}"
    return f"; {some(lacking)} is in {other} alone" if lacking else f": {some(names)}"
