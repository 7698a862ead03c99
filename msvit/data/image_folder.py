"""Images of your own, in folders ``{train[,val],test}/<class>/*.{jpg,png}`` in ``--data-dir``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from msvit.data.image_files import ImageFileOptions
from msvit.options import DataError

if TYPE_CHECKING:
    from msvit.data.catalogue import Source
    from msvit.data.views import View


class ImageFolderOptions(ImageFileOptions):
    """``num_classes`` is what the folders have; images of any size become ``image_size`` ones.

    The shorter side is resized to it and the middle is taken. Without ``test``, ``val`` is what is
    reported; with both, ``val`` is what selects. Hugging Face's Parquet files are read as well.
    """

    name: ClassVar[str] = "image_folder"
    mean: ClassVar[None] = None  # measured once, and kept
    std: ClassVar[None] = None
    cut_out: ClassVar[bool] = True

    num_classes: int = Field(10, ge=2, le=65_536)  # type: ignore[misc]  # a constant elsewhere
    image_size: int = Field(32, ge=8, le=1024)

    def find(self, data_dir: Path | None) -> Source:
        from msvit.data.folders import ClassFolders
        from msvit.data.parquet import ParquetFiles

        if data_dir is None:
            raise DataError(
                "image_folder needs --data-dir: a folder with train/<class>/*.png (or .jpg), "
                "test/<class>/* and, if you like, val/<class>/*"
            )
        splits = tuple(s for s in ("train", "val", "test") if (data_dir / s).is_dir())
        wrong = "data.num_classes is {}"
        if "train" in splits and len(splits) > 1:
            return ClassFolders(data_dir, splits, self.num_classes, wrong)
        if (found := ParquetFiles.find(data_dir, self.num_classes, wrong)) is not None:
            return found
        raise DataError(
            f"{data_dir} has neither folders train/<class> and test/<class> (or val/<class>) nor "
            "train-*.parquet and test-*.parquet"
        )

    def view(self) -> View:
        from msvit.data.views import Centre

        return Centre(self.image_size)
