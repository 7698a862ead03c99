"""The results folder: what stands where, written so that no crash leaves half a file.

::

    <results>/cells/<id>/record.json     all that one finished cell leaves (written last)
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
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from msvit.cells import SCHEMA, Cell


class RecordError(RuntimeError):
    """A results folder or file that cannot be read or written; the message says what to do."""


Share = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[float, Field(ge=0)]


class CellFields(TypedDict):
    model: dict[str, Any]
    data: dict[str, Any]
    training: dict[str, Any]
    seed: int


class Epoch(TypedDict):
    epoch: int
    lr: float
    train_loss: float
    train_accuracy: Share | None
    val_loss: float
    val_accuracy: Share
    seconds: Amount


class Score(TypedDict):
    images: int
    loss: float
    accuracy: Share


class Firing(TypedDict):
    layer: str
    timestep: int  # from 0
    rate: Amount  # spikes per neuron in this time step
    neurons: int  # per image


class Operations(TypedDict):
    """Per image, summed over all time steps."""

    layer: str
    kind: str  # conv, linear, product, mask
    input: str  # analog, spikes, integer
    dense_macs: Amount
    input_rate: Amount | None
    macs: Amount
    acs: Amount


class Record(TypedDict):
    schema: int
    id: str
    cell: CellFields
    parameters: int
    history: list[Epoch]
    selected_epoch: int
    test: Score
    firing: list[Firing]
    firing_rate: Amount
    operations: list[Operations]
    energy_mj: dict[str, Amount]
    training_seconds: Amount
    images_per_second: Amount
    peak_memory_gb: Amount
    precision: str
    kernels: str
    environment: dict[str, Any]


class Failure(TypedDict):
    schema: int
    id: str
    cell: CellFields
    error: str
    message: str
    traceback: str
    attempts: int
    failed_at: str


class StudyCell(TypedDict):
    id: str
    label: str
    group: str
    seed: int


class Manifest(TypedDict):
    schema: int
    name: str
    question: str
    grid_file: str
    axes: list[str]
    overrides: NotRequired[list[str]]  # command-line settings, as they were given
    cells: list[StudyCell]


class SearchManifest(TypedDict):
    schema: int
    name: str  # of the Optuna study too
    question: str
    space_file: str
    storage: str  # of the Optuna study: a URL, or a journal file (relative: to this folder)
    data: str
    trials: int
    sampler: str
    pruner: dict[str, Any]
    base: dict[str, Any]
    parameters: dict[str, dict[str, Any]]  # as written in the space
    objectives: list[list[str]]  # figure, direction; the first one decides early stopping
    constraints: list[str]
    seeds: list[int]


_RECORD, _FAILURE, _MANIFEST, _SEARCH = (
    TypeAdapter(shape) for shape in (Record, Failure, Manifest, SearchManifest)
)
_RETRAIN = "Delete it to have the cell run again."
_RESTART = "Delete it; the next run writes it again."
_AGAIN = f"{_RESTART} If the search had a --storage of its own, give it again."


_FULL = "Free some space and run the same command again; nothing finished is lost."
_RIGHTS = "Choose a folder that you may write to with --results."
_ELSEWHERE = "Choose another folder with --results."
_IN_THE_WAY = "A file stands where a folder is needed; choose another folder with --results."
_HINTS = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EROFS: _RIGHTS,
    errno.ENOTDIR: _IN_THE_WAY,
    errno.EEXIST: _IN_THE_WAY,
}


def cell_folder(results: Path, cell_id: str) -> Path:
    """Where all files of one cell are."""
    return results / "cells" / cell_id


def study_folder(results: Path, name: str) -> Path:
    """Where a study's manifest, tables and figures are."""
    return results / "studies" / name


def read_record(results: Path, cell_id: str) -> dict[str, Any] | None:
    """The record of a finished cell, or None where there is none yet.

    Raises:
        RecordError: where the file is there but is not a complete record of this cell.
    """
    return _read_cell_file(cell_folder(results, cell_id) / "record.json", _RECORD)


def read_failure(results: Path, cell_id: str) -> dict[str, Any] | None:
    """Why a cell failed, or None where it has not.

    Raises:
        RecordError: where the file is there but is not a complete failure of this cell.
    """
    return _read_cell_file(cell_folder(results, cell_id) / "failure.json", _FAILURE)


def iter_records(results: Path) -> Iterator[dict[str, Any]]:
    """Every finished cell's record, in the order of their ids."""
    return _iter_cells(results, read_record)


def iter_failures(results: Path) -> Iterator[dict[str, Any]]:
    """Every failed cell's failure, in the order of their ids."""
    return _iter_cells(results, read_failure)


def write_record(results: Path, record: Mapping[str, Any]) -> Path:
    """Write a finished cell's record; a failure of an earlier attempt goes away with it.

    Raises:
        RecordError: where ``record`` lacks a field or the file cannot be written.
    """
    path = cell_folder(results, record["id"]) / "record.json"
    _check(record, _RECORD, path, "This is a bug in the training code.")
    write_json(path, record)
    clear_failure(results, record["id"])
    return path


def write_failure(results: Path, failure: Mapping[str, Any]) -> Path:
    """Write why a cell failed.

    Raises:
        RecordError: where ``failure`` lacks a field or the file cannot be written.
    """
    path = cell_folder(results, failure["id"]) / "failure.json"
    _check(failure, _FAILURE, path, "This is a bug in the study runner.")
    write_json(path, failure)
    return path


def clear_failure(results: Path, cell_id: str) -> None:
    """Forget that a cell failed, so that it is run again."""
    path = cell_folder(results, cell_id) / "failure.json"
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from None


def write_study(results: Path, manifest: Mapping[str, Any]) -> Path:
    """Write a study's manifest.

    Raises:
        RecordError: where it lacks a field or the file cannot be written.
    """
    path = study_folder(results, manifest["name"]) / "study.json"
    return _write_manifest(path, manifest, _MANIFEST, "This is a bug in the study runner.")


def read_study(results: Path, name: str) -> dict[str, Any]:
    """A study's manifest.

    Raises:
        RecordError: where the study was never run here or its manifest cannot be used.
    """
    path = study_folder(results, name) / "study.json"
    return _read_manifest(path, _MANIFEST, f"Run the study first: --grid {name}", _RESTART)


def search_folder(results: Path, name: str) -> Path:
    """Where a search's manifest, study, tables and figures are."""
    return results / "searches" / name


def locate(storage: str, folder: Path) -> str:
    """The URL or path of an Optuna study from what the manifest in ``folder`` says."""
    return storage if "://" in storage else str(folder / storage)


def write_search(results: Path, manifest: Mapping[str, Any]) -> Path:
    """Write a search's manifest.

    Raises:
        RecordError: where it lacks a field or the file cannot be written.
    """
    path = search_folder(results, manifest["name"]) / "search.json"
    return _write_manifest(path, manifest, _SEARCH, "This is a bug in the search runner.")


def read_search(results: Path, name: str) -> dict[str, Any]:
    """A search's manifest.

    Raises:
        RecordError: where the search was never run here or its manifest cannot be used.
    """
    path = search_folder(results, name) / "search.json"
    return _read_manifest(path, _SEARCH, f"Run the search {name!r} first.", _AGAIN)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` so that ``path`` is at any moment either what it was or complete.

    Raises:
        RecordError: where the file cannot be written (rights, disk full, a file in the way).
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # In the same folder: a rename is atomic only within one file system.
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            with temporary.open("x", encoding="utf-8") as file:
                json.dump(value, file, allow_nan=False)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from None


def _write_manifest(
    path: Path, manifest: Mapping[str, Any], shape: TypeAdapter[Any], blame: str
) -> Path:
    _check(manifest, shape, path, blame)
    write_json(path, manifest)
    return path


def _read_manifest(path: Path, shape: TypeAdapter[Any], first: str, remedy: str) -> dict[str, Any]:
    manifest = _read_json(path, remedy)
    if manifest is None:
        raise RecordError(f"{path}: no such file. {first}")
    _check(manifest, shape, path, remedy)
    return manifest


def _unwritable(path: Path, error: OSError) -> RecordError:
    return RecordError(f"{path}: cannot be written {_reason(error)}")


def _reason(error: OSError) -> str:
    reason = error.strerror or type(error).__name__
    return f"({reason}). {_HINTS.get(error.errno, _ELSEWHERE)}"


def _iter_cells(results: Path, read: Any) -> Iterator[dict[str, Any]]:
    folder = results / "cells"
    if not folder.is_dir():
        return
    for cell in sorted(entry for entry in folder.iterdir() if entry.is_dir()):
        content = read(results, cell.name)
        if content is not None:
            yield content


def _read_cell_file(path: Path, shape: TypeAdapter[Any]) -> dict[str, Any] | None:
    content = _read_json(path, _RETRAIN)
    if content is None:
        return None
    _check(content, shape, path, _RETRAIN)
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
        raise RecordError(f"{path}: not a text file. {remedy}") from None
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        reason = "empty" if not text.strip() else f"not complete JSON ({error})"
        raise RecordError(f"{path}: {reason}. {remedy}") from None


def _check(content: Any, shape: TypeAdapter[Any], path: Path, remedy: str) -> None:
    """Refuse what is not of this schema, naming the first field that is wrong."""
    if not isinstance(content, Mapping):
        raise RecordError(f"{path}: a JSON object is needed. {remedy}")
    schema = content.get("schema")
    if not isinstance(schema, int):
        raise RecordError(f"{path}: not a file of this program (no schema number). {remedy}")
    if schema != SCHEMA:
        raise RecordError(
            f"{path}: schema {schema} is not the one that this version reads ({SCHEMA}). "
            "Use the version that wrote it, or another --results folder."
        )
    try:
        shape.validate_python(content, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise RecordError(f"{path}: {field}: {first['msg'].lower()}. {remedy}") from None
    if "cell" in content and Cell.from_dict(content["cell"]).id != content["id"]:
        raise RecordError(f"{path}: its configuration does not have the id it claims. {remedy}")
