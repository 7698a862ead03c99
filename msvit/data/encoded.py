"""Encoded images, where their bytes are: whole files, or stretches of a few large ones."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

import numpy as np
from PIL import Image

from msvit.data.decoding import red_green_blue
from msvit.data.views import View
from msvit.options import DataError


@dataclass(frozen=True)
class Encoded:
    """``N`` images as JPEG, PNG or the like, below the folder ``root``.

    ``files`` are their names there, as bytes; an image that shares its file with others has its
    ``start`` and ``length`` in it, and a name of its own among ``called``. Arrays, not a million
    objects: processes forked from this one leave them where they are.
    """

    root: Path
    files: np.ndarray
    start: np.ndarray | None = None
    length: np.ndarray | None = None
    called: np.ndarray | None = None

    @classmethod
    def of_files(cls, root: Path, files: Sequence[Path]) -> Self:
        """Whole ``files``, all below ``root``."""
        return cls(root, np.array([os.fsencode(file.relative_to(root)) for file in files]))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, indices: np.ndarray | slice) -> Self:
        rest = (self.start, self.length, self.called)
        chosen = (None if array is None else array[indices] for array in rest)
        return type(self)(self.root, self.files[indices], *chosen)

    def name(self, index: int) -> str:
        """What errors call an image: its file, and what it is called there."""
        file = _shown(self.root / os.fsdecode(self.files[index]))
        return file if self.called is None else f"{file}: {os.fsdecode(self.called[index])}"

    def pixels(self, index: int, view: View, seed: Sequence[int]) -> np.ndarray:
        """What ``view`` shows of an image, uint8 ``[3, size, size]``.

        Raises:
            DataError: naming what cannot be read or shown, in one line.
        """
        try:
            with Image.open(self._bytes(index)) as image:
                view.check(*image.size)
                shown = view(red_green_blue(image), seed)
                return np.asarray(shown).transpose(2, 0, 1)
        except DataError as error:
            raise DataError(f"{self.name(index)}: {error}") from None
        except Exception as error:  # decoders raise whatever they like
            reason = " ".join(str(error).split())
            raise DataError(f"{self.name(index)}: cannot be decoded ({reason})") from error

    def _bytes(self, index: int) -> Path | IO[bytes]:
        path = self.root / os.fsdecode(self.files[index])
        if self.start is None or self.length is None:
            return path
        with path.open("rb") as file:
            file.seek(int(self.start[index]))
            return io.BytesIO(file.read(int(self.length[index])))


def _shown(path: Path) -> str:
    """A path as text: bytes that are not UTF-8 as ``\\xe9``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
