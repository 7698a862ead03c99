"""Printing that never ends what it tells of.

A reader may stop reading (``head``, a ``tee`` that has died), the disk under a redirected output
may be full, a locale may lack the characters: then output is lost or shows ``?``, and the work
goes on.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO


@contextlib.contextmanager
def safe_output() -> Iterator[None]:
    """What is printed in this block, by ``rich`` too, raises no error."""
    _open_what_is_closed()
    kept = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(forgiving, kept)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = kept


def forgiving(stream: TextIO | None) -> Any:
    """``stream`` as one that raises no error; None, as Python calls a closed one, takes all."""
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="replace")
    return _Forgiving(stream)


class _Forgiving:
    """Writes to another stream until that fails, and from then on nowhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with self._mourned():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._mourned():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _mourned(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            # Of the whole process, at the file's number: Python would try once more on its way out,
            # and complain. What a stream without a number held (a test's) is simply lost.
            with contextlib.suppress(OSError), open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())


def _open_what_is_closed() -> None:
    """The next files would get the numbers 0 to 2, and with them what C code prints."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number


@contextlib.contextmanager
def logged_to(stream: TextIO) -> Iterator[None]:
    """Have the library's own log lines (a resume, a damaged checkpoint) written too."""
    log, handler = logging.getLogger("msvit"), logging.StreamHandler(stream)
    level = log.level
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
