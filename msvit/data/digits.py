"""The handwritten digits inside scikit-learn: 1,797 real images, no download.

Source: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits (UCI), 8×8 pixels
with 17 grey values. A demonstration, not a benchmark: good models come close to each other.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from msvit.data.options import DataOptions

if TYPE_CHECKING:
    import numpy as np

    from msvit.data.splits import Splits

_TEST_PER_CLASS = 34  # of at least 174 images a class
_VALIDATION = 0.15


class DigitsOptions(DataOptions):
    """``image_size``: pixels per side to which the 8×8 images are enlarged (bilinear)."""

    name: ClassVar[str] = "digits"
    num_classes: ClassVar[int] = 10
    in_channels: ClassVar[int] = 1
    mean: ClassVar[None] = None  # enlarging changes the deviation
    std: ClassVar[None] = None

    image_size: int = Field(16, ge=8, le=64)
    train_per_class: int | None = Field(None, gt=0, le=119)  # the rarest class has so many

    def fingerprint(self, data_dir: Path | None) -> None:
        """Wherever other data sets are, these images are scikit-learn's."""

    def load(self, data_dir: Path | None) -> Splits:
        """1,247 training, 210 validation and 340 test images, the last two balanced."""
        import torch
        from torch.nn.functional import interpolate

        from msvit.data.fingerprint import fingerprint
        from msvit.data.splits import Images, Splits, draw_per_class, split_train

        table = torch.from_numpy(_table())
        pixels = table[:, :-1].reshape(-1, 1, 8, 8).float() * (255 / 16)
        size = (self.image_size, self.image_size)
        pixels = interpolate(pixels, size=size, mode="bilinear", align_corners=False)
        images = Images(pixels.round().to(torch.uint8), table[:, -1].long())

        test, rest = draw_per_class(images.labels, _TEST_PER_CLASS, seed=2)
        train, validation = split_train(images[rest], _VALIDATION, self.train_per_class)
        # Of all images that may be trained on: train_per_class does not change it.
        scaled = images.images[rest].float() / 255
        mean, std = float(scaled.mean()), float(scaled.std())
        original = Images(table[:, :-1].to(torch.uint8), images.labels)  # the same at every size
        found = fingerprint({"train": original[rest].arrays(), "test": original[test].arrays()})
        return Splits(train, validation, images[test], (mean,), (std,), found)


def _table() -> np.ndarray:
    """Rows of 64 pixels (0 to 16) and the label, float64 ``[1797, 65]``."""
    import numpy as np

    # Read from its file: importing sklearn.datasets would take a second in every process.
    found = find_spec("sklearn")
    if found is not None and found.origin is not None:
        file = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
        if file.is_file():
            return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return np.column_stack([pixels, labels])
