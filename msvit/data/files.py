"""How files are called, and what is said of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path


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
