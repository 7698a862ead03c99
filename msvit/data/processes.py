"""Processes that do a part of the work beside this one, and the memory they write to.

They are forked, so that they see what this process holds without a copy of it, and share the
memory that it has made for them: no image goes through a pipe, and none lies in a file system such
as ``/dev/shm``, which is often small. They touch neither torch nor a
device.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from math import prod
from typing import Any, Self, TypeVar

import numpy as np

from msvit.allotment import usable_cpus
from msvit.data.progress import progress
from msvit.options import DataError

Result = TypeVar("Result")

Piece = tuple[int, tuple[Any, ...]]
"""How many images a piece of work is for, and its arguments, which are small."""

_LOOK_SECONDS = 0.5  # between looks of a worker at whether its parent still lives


def shared_bytes(shape: tuple[int, ...]) -> np.ndarray:
    """uint8 zeros of ``shape`` that processes forked from now on share with this one."""
    return np.frombuffer(mmap.mmap(-1, max(1, prod(shape))), np.uint8, prod(shape)).reshape(shape)


class Processes:
    """``count`` processes that call ``work``; as a context, they end with it.

    They also end when this process ends in any way, and leave Ctrl-C to it. With ``count`` 0, and
    in processes that may have none, the work is done here, when it is given.
    """

    def __init__(self, count: int, work: Callable[..., Any]) -> None:
        # Python refuses children to a daemonic process of its own.
        self.count = 0 if multiprocessing.current_process().daemon else count
        self._work = work
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        if self.count:
            self._pool = ProcessPoolExecutor(
                self.count,
                multiprocessing.get_context("fork"),
                initializer=_begin,
                initargs=(os.getpid(), self._work),
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def give(self, *arguments: Any) -> Future[Any]:
        """Have ``work(*arguments)`` done; the arguments are small, as they go through a pipe."""
        if self._pool is not None:
            return self._pool.submit(_do, *arguments)
        done: Future[Any] = Future()
        try:
            done.set_result(self._work(*arguments))
        except Exception as error:
            done.set_exception(error)
        return done


def finish(work: Future[Any]) -> Any:
    """Wait for it; returns what it returns, which has come through a pipe.

    Raises:
        DataError: where its process has died; and whatever the work has raised.
    """
    try:
        return work.result()
    except BrokenProcessPool as error:
        raise DataError(
            "a process that decodes images was ended from outside, perhaps for want of memory"
        ) from error


def by_all_cores(
    what: str, work: Callable[..., Result], pieces: Sequence[Piece], worth_a_process: int
) -> Iterator[Result]:
    """``work(*arguments)`` of each of ``pieces``, in their order; ``what`` it is, is said.

    There is a process for each core, but no more than one for ``worth_a_process`` images.

    Raises:
        DataError: where a process has died; and whatever the work has raised.
    """
    total = sum(images for images, _ in pieces)
    with Processes(min(usable_cpus(), total // worth_a_process), work) as workers:
        given = [(images, workers.give(*arguments)) for images, arguments in pieces]
        # Behind the fork, which must not come while the bar's own thread writes.
        with progress(what, total) as tell:
            for images, done in given:
                yield finish(done)
                tell(images)


_work: Callable[..., Any] | None = None  # of a worker's process


def _begin(parent: int, work: Callable[..., Any]) -> None:
    global _work
    _work = work
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    # A worker holds what the parent held, such as the lock of its cell.
    while os.getppid() == parent:
        time.sleep(_LOOK_SECONDS)
    os._exit(1)


def _do(*arguments: Any) -> Any:
    assert _work is not None
    return _work(*arguments)
