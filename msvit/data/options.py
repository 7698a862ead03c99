"""What every data set's options have in common. Needs no torch."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

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
    statistics of other images, a model would train, and worse.

    Raises:
        TypeError: for a subclass that leaves one of them out, when it is defined.
    """

    name: ClassVar[str]
    num_classes: ClassVar[int]
    in_channels: ClassVar[int]
    mean: ClassVar[tuple[float, ...] | None]
    """Of the training images' pixels in [0, 1], one per channel; ``None``: measured by ``load``."""
    std: ClassVar[tuple[float, ...] | None]

    train_per_class: int | None = Field(None, gt=0)
    """Train on a stratified subset of this many images a class; ``None`` takes all."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        missing = [key for key in _OWN if key not in vars(cls)]
        missing += [k for k in _SIZES if not hasattr(cls, k) and k not in cls.model_fields]
        if cls.load is DataOptions.load:
            missing.append("load()")
        if missing:
            raise TypeError(
                f"data set {cls.__name__}: it states no {', '.join(missing)} of its own"
            )

    def check(self, data_dir: Path | None) -> None:
        """Whether the images are there, as far as a look at the files tells; nothing is decoded.

        Studies ask before they start. A data set that is part of a package need not answer.

        Raises:
            DataError: where files are missing or cannot be opened.
        """

    @abstractmethod
    def load(self, data_dir: Path | None) -> Splits:
        """Read the images; ``data_dir`` is where the user keeps data sets.

        Raises:
            DataError: where files are missing or broken.
        """
