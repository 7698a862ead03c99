"""What every data set's options have in common. Needs no torch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from msvit.data.fingerprint import Fingerprint, describe_counts
from msvit.options import Options

if TYPE_CHECKING:
    from msvit.data.splits import Splits


_OWN = ("name", "mean", "std")
_SIZES = ("num_classes", "in_channels", "image_size")


class DataOptions(Options):
    """Options of one data set, and what its images are.

    A subclass states ``name``, ``num_classes``, ``in_channels``, ``image_size`` (pixels per side),
    ``mean`` and ``std``, and implements :meth:`load`. Sizes may be constants or options. ``name``,
    ``mean`` and ``std`` are its own even where it refines another data set: normalised with the
    statistics of other images, a model would train, and worse. A base of several data sets has
    abstract methods of its own.

    Raises:
        TypeError: for a subclass that leaves one of them out, or whose ``std`` is not above 0, when
            it is defined.
    """

    name: ClassVar[str]
    num_classes: ClassVar[int]
    in_channels: ClassVar[int]
    mean: ClassVar[tuple[float, ...] | None]
    """Of the training images' pixels in [0, 1], one per channel; ``None``: measured by ``load``."""
    std: ClassVar[tuple[float, ...] | None]

    events: ClassVar[bool] = False
    """Whether samples are frames of events ``[T, C, H, W]``, one a time step, not images."""

    cut_out: ClassVar[bool] = False
    """Whether what is shown of an image is the middle of a larger one of any size."""

    remark: ClassVar[str | None] = None
    """A sentence that belongs beside every number that was measured on these data."""

    published: ClassVar[Mapping[str, int | Sequence[int]] | None] = None
    """Split → images of each class (one number: of all) that the data set of this name has."""

    train_per_class: int | None = Field(None, gt=0)
    """Train on a stratified subset of this many images a class; ``None`` takes all."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        abstract = (getattr(own, "__isabstractmethod__", False) for own in vars(cls).values())
        if any(abstract):
            return  # what several data sets have in common, and no data set yet
        for of_one in ("published", "remark"):  # another data set's
            if of_one not in vars(cls):
                setattr(cls, of_one, None)
        missing = [key for key in _OWN if key not in vars(cls)]
        missing += [k for k in _SIZES if not hasattr(cls, k) and k not in cls.model_fields]
        if cls.load is DataOptions.load:
            missing.append("load()")
        if missing:
            raise TypeError(
                f"data set {cls.__name__}: it states no {', '.join(missing)} of its own"
            )
        if cls.std is not None and not all(value > 0 for value in cls.std):
            raise TypeError(f"data set {cls.__name__}: std {cls.std}: above 0 is needed")

    def check(self, data_dir: Path | None) -> None:
        """Whether the images are there, as far as a look at the files tells; nothing is decoded.

        Studies ask before they start. A data set that is part of a package need not answer.

        Raises:
            DataError: where files are missing or cannot be opened.
        """

    def counts(self, data_dir: Path | None) -> dict[str, list[int]] | None:
        """Split → images of each class, as far as a look at the files tells; nothing is decoded.

        None where the images are part of a package, or nobody says where they are.

        Raises:
            DataError: where files are missing or cannot be opened.
        """
        return None

    def left_out(self, data_dir: Path | None) -> str | None:
        """A sentence where files lie beside the images that :meth:`load` would not read.

        Raises:
            DataError: where files are missing or cannot be opened.
        """
        return None

    def tested_size(self) -> int:
        """Pixels per side of test images; those of training and validation are ``image_size``."""
        return self.image_size  # type: ignore[attr-defined]  # a constant or an option

    def source(self, data_dir: Path | None) -> str | None:
        """Where the images are, such as ``class folders in /data/cifar10``; nothing is decoded.

        None where they are part of a package.

        Raises:
            DataError: where files are missing or cannot be opened.
        """
        return None

    def prepare(self, data_dir: Path | None) -> None:
        """Do now, once for all cells, what :meth:`load` would do first and keep, if that is much.

        Raises:
            DataError: where files are missing or broken.
        """

    def fingerprint(self, data_dir: Path | None) -> Fingerprint | None:
        """Which images :meth:`load` would read now: here by reading them.

        None where they are part of a package, or nobody says where they are.

        Raises:
            DataError: where files are missing or broken.
        """
        from msvit.data import load_splits

        return None if data_dir is None else load_splits(self, data_dir).fingerprint

    @classmethod
    def unlike_published(cls, counts: Mapping[str, Sequence[int]]) -> str | None:
        """A sentence where ``counts`` are not those of the data set of this name."""
        known = cls.published
        if known is None:
            return None
        usual = {
            split: [number] * cls.num_classes if isinstance(number, int) else list(number)
            for split, number in known.items()
        }
        if {split: list(numbers) for split, numbers in counts.items()} == usual:
            return None
        return (
            f"not the published {cls.name}: {describe_counts(counts)} were found "
            f"({_per_class(counts)}), and it has {describe_counts(usual)} ({_per_class(usual)})"
        )

    @abstractmethod
    def load(self, data_dir: Path | None) -> Splits:
        """Read the images; ``data_dir`` is where the user keeps data sets.

        Raises:
            DataError: where files are missing or broken.
        """


def _per_class(counts: Mapping[str, Sequence[int]]) -> str:
    """``90 to 100 and 20 a class``."""
    ranges = [sorted({min(numbers), max(numbers)}) for numbers in counts.values() if numbers]
    return " and ".join(" to ".join(f"{n:,}" for n in ends) for ends in ranges) + " a class"
