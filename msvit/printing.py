"""Printing: what a reader of our output may do without ending ours."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def for_reading() -> Iterator[None]:
    """What is printed here may be piped to something like ``head``, which stops reading."""
    try:
        yield
        if sys.stdout is not None:  # closed from the start
            sys.stdout.flush()
    except BrokenPipeError:
        # Else Python would try again, and complain, on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
