"""Files that several processes may want to make at once, and how files are called."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


def cache_folder() -> Path:
    """Where downloads and decoded images go: ``$XDG_CACHE_HOME/msvit`` or ``~/.cache/msvit``."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "msvit"


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


def one_line(error: BaseException) -> str:
    """What others say of an ``error`` in several lines."""
    return " ".join(str(error).split())


def shown(path: Path | str | bytes) -> str:
    """A path that can be printed: bytes that are not UTF-8 as ``\\xe9``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def some(names: Sequence[str], most: int = 20) -> str:
    """``a, b, c``, of many the first."""
    text = ", ".join(names[:most])
    return text if len(names) <= most else f"{text} and {len(names) - most:,} more"
