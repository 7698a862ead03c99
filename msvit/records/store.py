"""The results folder: what stands where, written so that no crash leaves half a file.

::

    <results>/cells/<id>/record.json     all that one finished cell leaves (written last)
                        /weights.safetensors  its selected weights
                        /failure.json    why a cell has no record
                        /log.txt         what its process printed
    <results>/studies/<name>/study.json  which cells answer which question
    <results>/searches/<name>/search.json  what was searched, and where its Optuna study is

A file is either absent or complete and of the schema that this version knows. Anything else
ends in one :class:`RecordError` line that names the file and says what to do.
"""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter
from pydantic_core import from_json

from msvit.files import replace_file
from msvit.options import DataError
from msvit.records.schema import (
    FAILURE,
    MANIFEST,
    RECORD,
    SEARCH_MANIFEST,
    Failure,
    Manifest,
    Record,
    RecordError,
    SearchManifest,
    check,
)

_RETRAIN = "Delete it to have the cell run again."
_RESTART = "Delete it; the next run writes it again."
_AGAIN = f"{_RESTART} If the search had a --storage of its own, give it again."


_FULL = "Free some space and run the same command again; nothing finished is lost."
_RIGHTS = "Choose a folder that you may write to (--results, or --out)."
_ELSEWHERE = "Choose another folder (--results, or --out)."
_IN_THE_WAY = "A file stands where a folder is needed; choose another folder (--results, or --out)."
_HINTS: dict[int | None, str] = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: "A limit on the size of files is in force here (ulimit -f); raise it.",
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EROFS: _RIGHTS,
    errno.ENOTDIR: _IN_THE_WAY,
    errno.EEXIST: _IN_THE_WAY,
}


def cell_folder(results: Path, cell_id: str) -> Path:
    """Where all files of one cell are."""
    return results / "cells" / cell_id


WEIGHTS = "weights.safetensors"
_CELL_ID = re.compile(r"[0-9a-f]{12}")


def start_file(results: Path, start_from: str) -> Path:
    """Where the weights are that ``training.start_from`` names, a cell or a file.

    Raises:
        DataError: where there is no such cell that is finished, or no such file.
    """
    if not _CELL_ID.fullmatch(start_from):
        path = results / start_from
        if not path.is_file():
            hint = "" if Path(start_from).is_absolute() else " (it is seen from the results folder)"
            raise DataError(f"training.start_from: {path}: no such file{hint}")
        return path
    path = cell_folder(results, start_from) / WEIGHTS
    if not has_record(results, start_from) or not path.is_file():
        raise DataError(
            f"training.start_from: cell {start_from} has left no weights in {results}; "
            "run it first, in this results folder"
        )
    return path


def study_folder(results: Path, name: str) -> Path:
    """Where a study's manifest, tables and figures are."""
    return results / "studies" / name


def has_record(results: Path, cell_id: str) -> bool:
    """Whether a cell is finished; its record is not read, and so not checked."""
    return (cell_folder(results, cell_id) / "record.json").is_file()


def read_record(results: Path, cell_id: str) -> Record | None:
    """The record of a finished cell, or None where there is none yet.

    Raises:
        RecordError: where the file is there but is not a complete record of this cell.
    """
    return _read_cell_file(cell_folder(results, cell_id) / "record.json", RECORD)


def read_failure(results: Path, cell_id: str) -> Failure | None:
    """Why a cell failed, or None where it has not.

    Raises:
        RecordError: where the file is there but is not a complete failure of this cell.
    """
    return _read_cell_file(cell_folder(results, cell_id) / "failure.json", FAILURE)


def iter_records(results: Path) -> Iterator[Record]:
    """Every finished cell's record, in the order of their ids."""
    return _iter_cells(results, read_record)


def iter_failures(results: Path) -> Iterator[Failure]:
    """Every failed cell's failure, in the order of their ids."""
    return _iter_cells(results, read_failure)


T = TypeVar("T")


class Records(Generic[T]):
    """The records of one results folder, each read and checked once however often it is asked for.

    Not the record is remembered, which may be large, but what ``keep`` makes of it.
    """

    def __init__(self, results: Path, keep: Callable[[Record], T]) -> None:
        self.results = results
        self._keep = keep
        self._known: dict[str, T] = {}

    def get(self, cell_id: str) -> T | None:
        """What is kept of a finished cell's record, None where there is none yet.

        Raises:
            RecordError: where the file is there but is not a complete record of this cell.
        """
        if cell_id not in self._known:
            record = read_record(self.results, cell_id)
            if record is None:
                return None
            self.add(record)
        return self._known[cell_id]

    def add(self, record: Record) -> None:
        """Take in a record that is at hand, so that its file need not be read."""
        self._known[record["id"]] = self._keep(record)


def write_record(results: Path, record: Mapping[str, Any]) -> Path:
    """Write a finished cell's record; a failure of an earlier attempt goes away with it.

    Raises:
        RecordError: where ``record`` lacks a field or the file cannot be written.
    """
    path = cell_folder(results, record["id"]) / "record.json"
    check(record, RECORD, path, "This is a bug in the training code.")
    write_json(path, record)
    clear_failure(results, record["id"])
    return path


def write_failure(results: Path, failure: Mapping[str, Any]) -> Path:
    """Write why a cell failed.

    Raises:
        RecordError: where ``failure`` lacks a field or the file cannot be written.
    """
    path = cell_folder(results, failure["id"]) / "failure.json"
    check(failure, FAILURE, path, "This is a bug in the study runner.")
    write_json(path, failure)
    return path


def clear_failure(results: Path, cell_id: str) -> None:
    """Forget that a cell failed, so that it is run again."""
    path = cell_folder(results, cell_id) / "failure.json"
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(path, error) from None


def write_study(results: Path, manifest: Mapping[str, Any]) -> Path:
    """Write a study's manifest.

    Raises:
        RecordError: where it lacks a field or the file cannot be written.
    """
    path = study_folder(results, manifest["name"]) / "study.json"
    return _write_manifest(path, manifest, MANIFEST, "This is a bug in the study runner.")


def read_study(results: Path, name: str) -> Manifest:
    """A study's manifest.

    Raises:
        RecordError: where the study was never run here or its manifest cannot be used.
    """
    path = study_folder(results, name) / "study.json"
    return _read_manifest(path, MANIFEST, f"Run the study first: --grid {name}", _RESTART)


def list_studies(results: Path) -> list[str]:
    """Names of the studies that a results folder holds, sorted."""
    return sorted(path.parent.name for path in results.glob("studies/*/study.json"))


def search_folder(results: Path, name: str) -> Path:
    """Where a search's manifest, study, tables and figures are."""
    return results / "searches" / name


def write_search(results: Path, manifest: Mapping[str, Any]) -> Path:
    """Write a search's manifest.

    Raises:
        RecordError: where it lacks a field or the file cannot be written.
    """
    path = search_folder(results, manifest["name"]) / "search.json"
    return _write_manifest(path, manifest, SEARCH_MANIFEST, "This is a bug in the search runner.")


def read_search(results: Path, name: str) -> SearchManifest:
    """A search's manifest.

    Raises:
        RecordError: where the search was never run here or its manifest cannot be used.
    """
    path = search_folder(results, name) / "search.json"
    return _read_manifest(path, SEARCH_MANIFEST, f"Run the search {name!r} first.", _AGAIN)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` so that ``path`` is at any moment either what it was or complete.

    Raises:
        RecordError: where the file cannot be written (rights, disk full, a file in the way).
    """
    try:
        content = f"{json.dumps(value, allow_nan=False)}\n".encode()
        replace_file(path, lambda file: file.write(content))
    except OSError as error:
        raise unwritable(path, error) from None


def _write_manifest(
    path: Path, manifest: Mapping[str, Any], shape: TypeAdapter[Any], blame: str
) -> Path:
    check(manifest, shape, path, blame)
    write_json(path, manifest)
    return path


def _read_manifest(path: Path, shape: TypeAdapter[T], first: str, remedy: str) -> T:
    manifest = _read_json(path, remedy)
    if manifest is None:
        raise RecordError(f"{path}: no such file. {first}")
    check(manifest, shape, path, remedy)
    return manifest


def unwritable(path: Path, error: OSError) -> RecordError:
    """What is said of a file or folder that cannot be written."""
    return RecordError(f"{path}: cannot be written {_reason(error)}")


def _reason(error: OSError) -> str:
    reason = error.strerror or type(error).__name__
    return f"({reason}). {_HINTS.get(error.errno, _ELSEWHERE)}"


def _iter_cells(results: Path, read: Callable[[Path, str], T | None]) -> Iterator[T]:
    folder = results / "cells"
    if not folder.is_dir():
        return
    for cell in sorted(entry for entry in folder.iterdir() if entry.is_dir()):
        content = read(results, cell.name)
        if content is not None:
            yield content


def _read_cell_file(path: Path, shape: TypeAdapter[T]) -> T | None:
    content = _read_json(path, _RETRAIN)
    if content is None:
        return None
    check(content, shape, path, _RETRAIN)
    if content["id"] != path.parent.name:
        raise RecordError(
            f"{path}: belongs to cell {content['id']}, not to {path.parent.name}. {_RETRAIN}"
        )
    return content


def _read_json(path: Path, remedy: str) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RecordError(f"{path}: cannot be read {_reason(error)}") from None
    except UnicodeDecodeError:
        raise RecordError(f"{path}: not UTF-8 text. {remedy}") from None
    try:
        return from_json(text, cache_strings="all")  # twice as fast as json, and of half the size
    except ValueError as error:
        reason = "empty" if not text.strip() else f"not complete JSON ({error})"
        raise RecordError(f"{path}: {reason}. {remedy}") from None
