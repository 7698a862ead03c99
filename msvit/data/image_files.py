"""Data sets whose images are encoded in files, whatever the form in which these come.

Sets that are small once decoded are decoded once and kept in memory (:mod:`msvit.data.decoded`),
others stream: they are decoded whenever a batch needs them (:mod:`msvit.training.loading`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from msvit.data.fingerprint import Fingerprint
from msvit.data.options import DataOptions
from msvit.options import DataError

if TYPE_CHECKING:
    from msvit.data.catalogue import Catalogue, Source
    from msvit.data.channel_statistics import Statistics
    from msvit.data.splits import Samples, Splits
    from msvit.data.views import View

MEMORY_BYTES = 2e9
"""A data set that takes more once decoded streams; of all its images, so that a part of them is
shown as the whole is."""


class ImageFileOptions(DataOptions):
    """A data set says where its images are (:meth:`find`) and how they are shown (:meth:`view`).

    What is called ``train`` is trained on, ``test`` (or ``val`` where there is no test) reported,
    and the validation images are ``val`` beside a test, or held out of ``train``.
    """

    in_channels: ClassVar[int] = 3
    held_out: ClassVar[float] = 0.05
    """Share of the training images that validates, where there is no split for it."""
    streams: ClassVar[bool | None] = None
    """None: where it would not fit into :data:`MEMORY_BYTES`."""

    @abstractmethod
    def find(self, data_dir: Path | None) -> Source:
        """The images, in the form in which they are there.

        Raises:
            DataError: where they are not there.
        """

    @abstractmethod
    def view(self) -> View:
        """How an image is shown, unless training has a view of its own."""

    def test_view(self) -> View:
        """How a streamed test image is shown."""
        return self.view()

    def check(self, data_dir: Path | None) -> None:
        """Whether all files and classes are there, as far as a quick look tells."""
        self.find(data_dir).check()

    def counts(self, data_dir: Path | None) -> dict[str, list[int]] | None:
        return None if data_dir is None else self.find(data_dir).counts()

    def left_out(self, data_dir: Path | None) -> str | None:
        return None if data_dir is None else self.find(data_dir).left_out()

    def source(self, data_dir: Path | None) -> str | None:
        return self.find(data_dir).title

    def prepare(self, data_dir: Path | None) -> None:
        from msvit.data.decoded import decoded
        from msvit.data.soundness import check_images_of

        catalogue = self._catalogue(data_dir)
        if self._streams(catalogue):
            check_images_of(catalogue)
            self._statistics(catalogue)
        else:
            decoded(catalogue, self.view())

    def fingerprint(self, data_dir: Path | None) -> Fingerprint | None:
        from msvit.data.decoded import decoded, known_fingerprint

        if data_dir is None:
            return None
        catalogue = self._catalogue(data_dir)
        if self._streams(catalogue):
            return catalogue.fingerprint()
        view = self.view()
        return known_fingerprint(catalogue, view) or decoded(catalogue, view)[1]

    def load(self, data_dir: Path | None) -> Splits:
        import torch

        from msvit.data.channel_statistics import of_array
        from msvit.data.decoded import decoded
        from msvit.data.splits import Images, Splits, Streamed

        catalogue, view = self._catalogue(data_dir), self.view()
        splits: dict[str, Samples]
        labels = {s: torch.from_numpy(found) for s, (_, found) in catalogue.splits.items()}
        if self._streams(catalogue):
            parts = catalogue.splits.items()
            splits = {s: Streamed(encoded, labels[s], view) for s, (encoded, _) in parts}
            found, (mean, std) = catalogue.fingerprint(), self._statistics(catalogue)
        else:
            arrays, found = decoded(catalogue, view)
            splits = {s: Images(torch.from_numpy(a), labels[s]) for s, a in arrays.items()}
            mean, std = self._published_statistics() or of_array(arrays["train"])
        return Splits(*self._divided(splits, catalogue.classes), mean, std, found)

    def _divided(
        self, splits: Mapping[str, Samples], classes: Sequence[str]
    ) -> tuple[Samples, Samples, Samples]:
        """To train on, to select on, and to report."""
        from msvit.data.splits import Streamed, some_per_class, split_train

        train, test = splits["train"], splits["test" if "test" in splits else "val"]
        if isinstance(test, Streamed):
            test = test.seen(self.test_view())
        if "test" in splits and "val" in splits:
            return some_per_class(train, self.train_per_class, classes), splits["val"], test
        return (*split_train(train, self.held_out, self.train_per_class, classes), test)

    def _statistics(self, catalogue: Catalogue) -> Statistics:
        from msvit.data.channel_statistics import of_files

        known = self._published_statistics()
        return known or of_files(catalogue.splits["train"][0], self.view())

    def _published_statistics(self) -> Statistics | None:
        return None if self.mean is None or self.std is None else (self.mean, self.std)

    def _streams(self, catalogue: Catalogue) -> bool:
        if self.streams is not None:
            return self.streams
        return len(catalogue) * 3 * self.view().size ** 2 > MEMORY_BYTES

    def _catalogue(self, data_dir: Path | None) -> Catalogue:
        """All images, whose classes are as many as the data set is said to have."""
        catalogue = self.find(data_dir).catalogue()
        if len(catalogue.classes) != self.num_classes:
            raise DataError(
                f"{catalogue.root}: {len(catalogue.classes)} classes, expected {self.num_classes}"
            )
        return catalogue
