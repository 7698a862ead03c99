"""Encoded images, where their bytes are: whole files, or stretches of a few large ones."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

import numpy as np
from PIL import Image

from msvit.data.decoding import red_green_blue
from msvit.data.files import one_line, shown
from msvit.data.views import View
from msvit.options import DataError

_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
_TAIL_BYTES = 4096  # in which an end is looked for: some files go on behind it


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
    def of_files(cls, root: Path, names: Sequence[str]) -> Self:
        """Whole files, by their ``names`` below ``root``."""
        return cls(root, np.array([os.fsencode(name) for name in names]))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, indices: np.ndarray | slice) -> Self:
        rest = (self.start, self.length, self.called)
        chosen = (None if array is None else array[indices] for array in rest)
        return type(self)(self.root, self.files[indices], *chosen)

    def paths(self) -> Iterator[Path]:
        """The files that hold the images, each once."""
        names = self.files if self.start is None else np.unique(self.files)
        return (self.root / os.fsdecode(name) for name in names)

    def sizes(self) -> Iterator[int]:
        """Bytes of each image.

        Raises:
            DataError: for a file that cannot be looked at.
        """
        if self.length is not None:
            yield from self.length.tolist()
            return
        for path in self.paths():
            try:
                yield path.stat().st_size
            except OSError as error:
                raise DataError(f"{shown(path)}: cannot be read ({error.strerror})") from error

    def own_names(self) -> Iterator[bytes]:
        """What each image is called, without its folders."""
        names = self.files if self.called is None else self.called
        return (name.rsplit(b"/", 1)[-1] for name in names)

    def name(self, index: int) -> str:
        """What errors call an image: its file, and what it is called there."""
        file = shown(self.root / os.fsdecode(self.files[index]))
        return file if self.called is None else f"{file}: {os.fsdecode(self.called[index])}"

    def pixels(self, index: int, view: View, seed: Sequence[int]) -> np.ndarray:
        """What ``view`` shows of an image, uint8 ``[3, size, size]``.

        Raises:
            DataError: naming what cannot be read or shown, in one line.
        """
        with self._opened(index) as image:
            view.check(*image.size)
            seen = view(red_green_blue(image), seed)
            return np.asarray(seen).transpose(2, 0, 1)

    def check(self, index: int) -> None:
        """Whether an image can be opened and has its end; one that seems to lack it is decoded.

        Raises:
            DataError: naming what cannot be read, in one line.
        """
        with self._opened(index) as image:
            end = _ENDS.get(image.format or "")
            if end is None or end not in self._last_bytes(index):
                image.load()

    @contextmanager
    def _opened(self, index: int) -> Iterator[Image.Image]:
        """An image of which nothing is decoded yet; what goes wrong with it is told by its name."""
        try:
            with warnings.catch_warnings():
                # A bomb is refused for its size, by its name.
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                with Image.open(self._bytes(index)) as image:
                    yield image
        except DataError as error:
            raise DataError(f"{self.name(index)}: {error}") from None
        except Exception as error:  # decoders raise whatever they like
            raise DataError(f"{self.name(index)}: cannot be decoded ({one_line(error)})") from error

    def _last_bytes(self, index: int) -> bytes:
        path = self.root / os.fsdecode(self.files[index])
        with path.open("rb") as file:
            if self.start is None or self.length is None:
                length = file.seek(0, os.SEEK_END)
                start = 0
            else:
                start, length = int(self.start[index]), int(self.length[index])
            begin = max(0, length - _TAIL_BYTES)
            file.seek(start + begin)
            return file.read(length - begin)

    def _bytes(self, index: int) -> Path | IO[bytes]:
        path = self.root / os.fsdecode(self.files[index])
        if self.start is None or self.length is None:
            return path
        with path.open("rb") as file:
            file.seek(int(self.start[index]))
            return io.BytesIO(file.read(int(self.length[index])))
