"""Failures that are not the cell's own: its data, the disk, memory or the device was not as needed.

What such a failure says is true of that moment only. A disk that cannot be written stops a study,
since no other cell could be written either; a cell that failed for another reason of this kind is
tried again by the same command.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from msvit.records.schema import Failure, RecordError
from msvit.records.store import unwritable

_PROBE_BYTES = 1 << 20
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)

_KINDS = {"DataError", "MemoryError", "ImportError", "ModuleNotFoundError"} | {
    name  # every system error; a record tells its kind by name alone
    for name, kind in vars(builtins).items()
    if isinstance(kind, type) and issubclass(kind, OSError)
}
_KINDS_ELSEWHERE = {  # of torch and Ray; a worker also crashes where memory's guards kill it
    *("OutOfMemoryError", "AcceleratorError", "NodeDiedError", "WorkerCrashedError"),
    *("LocalRayletDiedError", "OwnerDiedError", "ObjectLostError", "RuntimeEnvSetupError"),
    *("OutOfDiskError", "ObjectStoreFullError", "RaySystemError", "RpcError", "LostPeers"),
    *("NoRoom", "UnevenWorkers"),
}
# What torch and Python raise as a plain RuntimeError, in lower case: allocators, devices, threads,
# files, processes that load data, a checkpoint cut short.
_WORDS = (
    *("out of memory", "can't allocate memory", "cannot allocate memory", "unable to mmap"),
    *("cuda error", "cuda unknown error", "cuda driver", "no cuda gpus are available"),
    *("no nvidia driver", "cudnn error", "cublas_status", "cudnn_status", "nccl error"),
    *("can't start new thread", "too many open files", "is killed by signal"),
    *("unexpected pos", "pytorchstreamwriter failed"),
)


def is_of_surroundings(failure: Failure) -> bool:
    """Whether what failed was not the cell: the same cell may do well another time."""
    if failure["error"] in _KINDS | _KINDS_ELSEWHERE:
        return True
    message = failure["message"].lower()
    return failure["error"] == "RuntimeError" and any(word in message for word in _WORDS)


@contextlib.contextmanager
def disk_told(folder: Path) -> Iterator[None]:
    """Have a disk that cannot be written, behind whatever a library says, told in one line.

    Raises:
        RecordError: where what fails in this block fails because ``folder``, or the file that
            the error names, cannot be written.
    """
    try:
        yield
    except RecordError:
        raise
    except Exception as error:
        if (found := disk_error(error, folder)) is not None:
            raise found from None
        raise


def disk_error(error: BaseException, folder: Path) -> RecordError | None:
    """The line on a disk that is full or read-only, if that is what made the ``error``."""
    for cause in _chain(error):
        if isinstance(cause, OSError) and cause.errno in _DISK:
            return unwritable(Path(cause.filename or folder), cause)
        for code in _DISK:
            if os.strerror(code) in str(cause):
                return unwritable(folder, OSError(code, os.strerror(code)))
    # Not every library passes the system's word on.
    problem = _probe(folder)
    return None if problem is None else unwritable(folder, problem)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and those that were raised before it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _probe(folder: Path) -> OSError | None:
    """What happens to a file of a megabyte in ``folder``, which may not be there yet."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error
    return None
