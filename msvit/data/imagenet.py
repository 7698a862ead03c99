"""ImageNet-1K (ILSVRC 2012, Russakovsky et al. 2015): 1,281,167 images to train on, of any size.

In folders ``{train,val}/<class>/*``, in the tar files as they come, or in Hugging Face's Parquet
files. Always streamed: the published recipes crop the images as they are. The 50,000 images of
``val`` are those that everybody reports.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from msvit.data.image_files import ImageFileOptions
from msvit.options import DataError

if TYPE_CHECKING:
    from msvit.data.catalogue import Source
    from msvit.data.views import View

_TRAIN, _VAL_PER_CLASS = 1_281_167, 50


class ImageNetOptions(ImageFileOptions):
    """``image_size`` is that of training and validation; test images may have a size of their own.

    What is shown of a test image is its middle: 7/8 of the shorter side up to 224 pixels, and all
    of it above, as in the code of MAE, QKFormer and MSVIT.
    """

    name: ClassVar[str] = "imagenet"
    num_classes: ClassVar[int] = 1000
    mean: ClassVar[tuple[float, ...]] = (0.485, 0.456, 0.406)
    std: ClassVar[tuple[float, ...]] = (0.229, 0.224, 0.225)
    held_out: ClassVar[float] = 0.02  # 14 of each class: 14,000 are enough to select an epoch on
    streams: ClassVar[bool] = True
    cut_out: ClassVar[bool] = True

    image_size: int = Field(224, ge=32, le=512)
    test_image_size: int | None = Field(None, ge=32, le=512)
    """``None`` is ``image_size``; 288 beside 224 is what is published of some models."""
    train_per_class: int | None = Field(None, gt=0, le=718)  # the rarest class has 732

    @classmethod
    def idle(cls, values: Mapping[str, object]) -> dict[str, str]:
        if values["test_image_size"] == values["image_size"]:
            return {"test_image_size": "test images have the image_size anyway"}
        return {}

    def find(self, data_dir: Path | None) -> Source:
        from msvit.data.folders import ClassFolders
        from msvit.data.ilsvrc import IlsvrcArchives
        from msvit.data.parquet import ParquetFiles

        places = [data_dir, data_dir / "imagenet"] if data_dir else []
        for root in places:
            if (root / "train").is_dir() and (root / "val").is_dir():
                return ClassFolders(root, ("train", "val"), self.num_classes)
            if (archives := IlsvrcArchives.find(root, self.num_classes)) is not None:
                return archives
            if (files := ParquetFiles.find(root, self.num_classes)) is not None:
                return files
        where = " nor ".join(map(str, places)) if places else "it is not given"
        raise DataError(
            "imagenet needs --data-dir: a folder with train/<class>/* and val/<class>/*, or with "
            "ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz, or "
            f"with train-*.parquet and validation-*.parquet; {'neither ' if places else ''}{where}"
        )

    def view(self) -> View:
        return _middle(self.image_size)

    def tested_size(self) -> int:
        return self.test_image_size or self.image_size

    def test_view(self) -> View:
        return _middle(self.tested_size())

    @classmethod
    def unlike_published(cls, counts: Mapping[str, Sequence[int]]) -> str | None:
        train, val = counts.get("train", []), counts.get("val", [])
        if sum(train) == _TRAIN and list(val) == [_VAL_PER_CLASS] * cls.num_classes:
            return None
        return (
            f"not the published imagenet: {sum(train):,} train and {sum(val):,} val images were "
            f"found, and it has {_TRAIN:,} and {_VAL_PER_CLASS * cls.num_classes:,}"
        )


def _middle(size: int) -> View:
    from msvit.data.views import Centre

    return Centre(size, 224 / 256 if size <= 224 else 1.0)
