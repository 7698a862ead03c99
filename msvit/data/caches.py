"""Where what was made of files once is kept: beside them, or else in the user's cache."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from msvit.files import cache_folder, locked
from msvit.options import DataError

if TYPE_CHECKING:
    import numpy as np

_log = logging.getLogger("msvit")

Made = TypeVar("Made")


def cache_places(root: Path, files: Iterable[Path], kind: str, more: str = "") -> list[Path]:
    """Paths (without suffix) at which something made of ``files`` of ``root`` may be kept.

    They change when a file is added, removed, resized, touched or replaced. The second folder is
    shared by all roots, whose paths are therefore in it; copying and unpacking set a file's time
    of change as they like, so that its inode, and when that has changed, are in it as well.
    ``more`` is what else the thing depends on.

    Raises:
        DataError: for a file that cannot be looked at.
    """
    digest = hashlib.sha256(os.fsencode(root.resolve()) + b"\n")
    for file in files:
        try:
            status = file.stat()
        except OSError as error:
            raise DataError(f"{file}: cannot be read ({error.strerror})") from error
        facts = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        name = file.relative_to(root) if file.is_relative_to(root) else file
        digest.update(f"{name} {facts}\n".encode())
    digest.update(more.encode())
    kept_as = f"{kind}-{digest.hexdigest()[:12]}"
    return [folder / kept_as for folder in (root / ".msvit-cache", cache_folder())]


def kept(
    places: Iterable[Path],
    read: Callable[[Path], Made | None],
    make: Callable[[Path], Made],
) -> Made | None:
    """What ``read`` finds at the first of ``places`` that can be used, or ``make`` puts there.

    One process at a time makes it, and the others find it. None where none can be written.
    """
    for place in places:
        try:
            with locked(place.parent):
                found = read(place)
                return make(place) if found is None else found
        except OSError as error:
            _log.info("%s cannot be used (%s)", place.parent, error)
    return None


def mapped_bytes(file: Path, shape: tuple[int, ...]) -> np.memmap:
    """uint8 zeros of ``shape`` in memory that is the ``file``, written as NumPy's .npy.

    Raises:
        OSError: where the disk has no room for all of them.
    """
    import numpy as np

    array = np.lib.format.open_memmap(file, "w+", np.uint8, shape)
    with file.open("r+b") as opened:
        # A page that finds no room on the disk when it is written would end the process.
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
    return array
