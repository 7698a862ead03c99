"""Files that are whole or absent, and the folder of what can be made again."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


def cache_folder() -> Path:
    """Where downloads, decoded images and compiled kernels go, unless they find a nearer place.

    ``$MSVIT_CACHE``, or ``msvit`` in ``$XDG_CACHE_HOME`` or in ``~/.cache``.

    Raises:
        RuntimeError: where none is set and nobody is at home.
    """
    if own := os.environ.get("MSVIT_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "msvit"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time in ``folder`` (created if missing); freed when a process dies.

    Raises:
        OSError: if the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        try:
            import fcntl
        except ImportError:  # Windows: no lock, the last writer wins
            yield
            return
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The name of a file that takes the place of ``path`` after the block, unless that raises.

    It lies on the disk before it does, so that ``path`` is at any moment what it was or complete.

    Raises:
        OSError: where it cannot be written.
    """
    # In the same folder: a rename is atomic only within one file system.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def replace_file(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Have ``write`` fill a file that then takes the place of ``path``, whose folder is made.

    Raises:
        OSError: where it cannot be written; what was there stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("xb") as file:
        write(file)
