"""Tiny-ImageNet (Stanford CS231n): 200 classes of ImageNet, 64×64 pixels.

As its archive unpacks: ``train/<class>/images/*``, ``val/images/*`` with ``val_annotations.txt``,
and ``wnids.txt``; or in folders ``{train,val}/<class>/*``. The images of ``test`` have no labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from msvit.data.image_files import ImageFileOptions
from msvit.options import DataError

if TYPE_CHECKING:
    from msvit.data.catalogue import Catalogue, Source
    from msvit.data.views import View

_ANNOTATIONS = "val/val_annotations.txt"
_CLASSES = "wnids.txt"


class TinyImageNetOptions(ImageFileOptions):
    """95,000 training, 5,000 validation and 10,000 test images, which are those of ``val``."""

    name: ClassVar[str] = "tiny_imagenet"
    num_classes: ClassVar[int] = 200
    image_size: ClassVar[int] = 64
    mean: ClassVar[None] = None  # of several in use, none is its author's: measured and kept
    std: ClassVar[None] = None

    published: ClassVar[Mapping[str, int]] = {"train": 500, "val": 50}

    train_per_class: int | None = Field(None, gt=0, le=475)

    def find(self, data_dir: Path | None) -> Source:
        from msvit.data.folders import ClassFolders
        from msvit.data.parquet import ParquetFiles

        names = ("", "tiny-imagenet-200", "tiny_imagenet")
        places = [data_dir / name for name in names] if data_dir else []
        for root in places:
            if (root / _ANNOTATIONS).is_file():
                return AnnotatedImages(root, self.num_classes)
            if _has_class_folders(root):
                return ClassFolders(root, ("train", "val"), self.num_classes)
            if _are_loose(root):
                raise DataError(f"{root / _ANNOTATIONS}: not there, and says what val/images are")
            if (found := ParquetFiles.find(root, self.num_classes)) is not None:
                return found
        where = f"{places[0]} has none, nor has {names[1]} in it" if places else "it is not given"
        raise DataError(
            "tiny_imagenet needs --data-dir: the folder tiny-imagenet-200 as its archive unpacks, "
            f"or one with folders {{train,val}}/<class>, or with train-*.parquet; {where}"
        )

    def view(self) -> View:
        from msvit.data.views import Whole

        return Whole(self.image_size)


def _has_class_folders(root: Path) -> bool:
    """And not the one folder of the archive's layout, without the annotations."""
    return (root / "train").is_dir() and (root / "val").is_dir() and not _are_loose(root)


def _are_loose(root: Path) -> bool:
    """Whether ``val/images`` is no class among others."""
    return (root / "val" / "images").is_dir() and not (root / "train" / "images").is_dir()


@dataclass(frozen=True)
class AnnotatedImages:
    """The layout of the archive, in the folder ``root``."""

    root: Path
    num_classes: int

    @property
    def title(self) -> str:
        return f"Tiny-ImageNet's folders in {self.root}"

    def check(self) -> None:
        self._listed()

    def counts(self) -> dict[str, list[int]]:
        listed = self._listed()
        return {split: [len(files) for files in c.values()] for split, c in listed.items()}

    def left_out(self) -> None:
        return None

    def catalogue(self) -> Catalogue:
        from msvit.data.catalogue import Catalogue

        return Catalogue.of_files(self.root, self._listed())

    def _classes(self) -> list[str]:
        classes = sorted((self.root / _CLASSES).read_text().split())
        if len(set(classes)) != self.num_classes:
            message = f"{len(set(classes))} classes, expected {self.num_classes}"
            raise DataError(f"{self.root / _CLASSES}: {message}")
        return classes

    def _listed(self) -> dict[str, dict[str, list[str]]]:
        """Split → class → names of its images below ``root``."""
        from msvit.data.folders import enough, image_names, told

        def look() -> dict[str, dict[str, list[str]]]:
            train, val = {}, {}
            annotated = self._annotated()
            for name in self._classes():
                folder = self.root / "train" / name / "images"
                files = enough(folder.parent, image_names(folder))
                train[name] = [f"train/{name}/images/{file}" for file in files]
                if not annotated.get(name):
                    raise DataError(f"{self.root / _ANNOTATIONS}: no image of the class {name}")
                val[name] = sorted(f"val/images/{file}" for file in annotated[name])
            there = set(image_names(self.root / "val" / "images"))
            lacking = sorted(f for files in annotated.values() for f in files if f not in there)
            if lacking:
                raise DataError(f"{self.root / 'val/images' / lacking[0]}: no such file")
            return {"train": train, "val": val}

        return told(self.root, look)

    def _annotated(self) -> dict[str, list[str]]:
        """Class → its images in ``val``: the first two columns of the annotations."""
        found: dict[str, list[str]] = {}
        file, known = self.root / _ANNOTATIONS, set(self._classes())
        for number, line in enumerate(file.read_text().splitlines(), start=1):
            image, label, *_ = (*line.split("\t"), "", "")
            if label not in known:
                raise DataError(f"{file}, line {number}: {label!r} is no class of {_CLASSES}")
            found.setdefault(label, []).append(image)
        return found
