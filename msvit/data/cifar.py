"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): 60,000 colour images of 32×32 pixels.

From the pickled batches of their author (:mod:`msvit.data.cifar_batches`), or from image folders
``{train,test}/<class>/*``. Images are taken class by class, in the order of their files: the same
images in either form are divided alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from msvit.data.cifar_batches import CIFAR10, CIFAR100, Batches, BatchFiles
from msvit.data.fingerprint import Fingerprint, fingerprint
from msvit.data.image_files import ImageFileOptions

if TYPE_CHECKING:
    from msvit.data.folders import ClassFolders
    from msvit.data.splits import Splits
    from msvit.data.views import View


class Cifar10Options(ImageFileOptions):
    """47,500 training, 2,500 validation and 10,000 test images."""

    name: ClassVar[str] = "cifar10"
    num_classes: ClassVar[int] = 10
    image_size: ClassVar[int] = 32
    mean: ClassVar[tuple[float, ...]] = (0.4914, 0.4822, 0.4465)  # of the 50,000 with labels
    std: ClassVar[tuple[float, ...]] = (0.2470, 0.2435, 0.2616)

    published: ClassVar[Mapping[str, int]] = {"train": 5000, "test": 1000}
    batches: ClassVar[Batches] = CIFAR10

    train_per_class: int | None = Field(None, gt=0, le=4750)

    def find(self, data_dir: Path | None) -> ClassFolders | BatchFiles:
        found = self._found(data_dir)
        return BatchFiles.fetch(self.batches, data_dir) if found is None else found

    def _found(self, data_dir: Path | None) -> ClassFolders | BatchFiles | None:
        """What is there to be read at once."""
        from msvit.data.folders import ClassFolders

        begun = None
        for root in (data_dir, data_dir / self.name) if data_dir else ():
            there = [(root / split).is_dir() for split in ("train", "test")]
            folders = ClassFolders(root, ("train", "test"), self.num_classes)
            if all(there):
                return folders
            begun = folders if begun is None and any(there) else begun
        # Who has one of two folders wants the other: to be told, not to have it downloaded.
        return BatchFiles.find(self.batches, data_dir) or begun

    def view(self) -> View:
        from msvit.data.views import Whole

        return Whole(self.image_size)

    def counts(self, data_dir: Path | None) -> dict[str, list[int]] | None:
        found = self._found(data_dir)
        return None if found is None else found.counts()

    def left_out(self, data_dir: Path | None) -> str | None:
        found = self._found(data_dir)
        return None if found is None else found.left_out()

    def source(self, data_dir: Path | None) -> str:
        found = self._found(data_dir)
        return BatchFiles.will_be(self.batches, data_dir) if found is None else found.title

    def fingerprint(self, data_dir: Path | None) -> Fingerprint | None:
        found = self._found(data_dir)
        if isinstance(found, BatchFiles):
            return fingerprint(found.read())
        return None if found is None else super().fingerprint(data_dir)

    def prepare(self, data_dir: Path | None) -> None:
        if not isinstance(self.find(data_dir), BatchFiles):
            super().prepare(data_dir)

    def load(self, data_dir: Path | None) -> Splits:
        import torch

        from msvit.data.splits import Images, Splits, split_train

        source = self.find(data_dir)
        if not isinstance(source, BatchFiles):
            return super().load(data_dir)
        sets = source.read()
        train, test = (Images(*map(torch.from_numpy, sets[split])) for split in ("train", "test"))
        train, validation = split_train(train, self.held_out, self.train_per_class)
        return Splits(train, validation, test, self.mean, self.std, fingerprint(sets))


class Cifar100Options(Cifar10Options):
    """47,500 training, 2,500 validation and 10,000 test images; the 100 fine classes."""

    name: ClassVar[str] = "cifar100"
    num_classes: ClassVar[int] = 100
    mean: ClassVar[tuple[float, ...]] = (0.5071, 0.4865, 0.4409)  # of the 50,000 with labels
    std: ClassVar[tuple[float, ...]] = (0.2673, 0.2564, 0.2762)

    published: ClassVar[Mapping[str, int]] = {"train": 500, "test": 100}
    batches: ClassVar[Batches] = CIFAR100

    train_per_class: int | None = Field(None, gt=0, le=475)
