"""The Optuna study of a search: where it is, how it is opened, and how a torn journal is mended.

Importing this loads Optuna.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, JournalStorage, get_storage
from optuna.storages.journal import JournalFileBackend

from msvit.records.schema import RecordError


def locate(storage: str, folder: Path) -> str:
    """The URL or path of an Optuna study from what the manifest in ``folder`` says."""
    return storage if "://" in storage else str(folder / storage)


def quiet_optuna() -> None:
    """No line per trial, and none about the parts of Optuna that may still change."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def open_storage(storage: str) -> BaseStorage:
    """The storage of an Optuna study: a database by its URL, or a journal file by its path.

    Use it inside of :func:`readable`.
    """
    if "://" in storage:
        return get_storage(storage)
    Path(storage).parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(storage))


@contextlib.contextmanager
def readable(storage: str) -> Iterator[None]:
    """Have whatever is wrong with a storage said in one line.

    Raises:
        RecordError: where it cannot be opened or read.
    """
    try:
        yield
    except (json.JSONDecodeError, KeyError, UnicodeDecodeError) as error:
        raise RecordError(f"{storage}: no readable Optuna study ({error})") from None
    except Exception as error:  # drivers of databases raise what they like
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise RecordError(f"{storage}: {reason}") from None


def mend_journal(path: Path) -> bool:
    """Cut off a last line that a full disk or a power cut has left unfinished.

    Optuna would read past it, but write its next line behind it, and never read either again.
    The file as it was stays beside, with ``.bak`` at its end. Returns whether there was one.
    """
    content = path.read_bytes() if path.exists() else b""
    if not content or content.endswith(b"\n"):
        return False
    path.with_name(path.name + ".bak").write_bytes(content)
    with path.open("r+b") as file:
        file.truncate(content.rfind(b"\n") + 1)
    return True
