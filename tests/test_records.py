"""The results folder: complete or absent, never misread, and clear about what to do."""

import errno
import json
import os
import threading
from pathlib import Path

import pytest

from msvit.cells import Cell
from msvit.records.schema import RecordError
from msvit.records.store import (
    iter_failures,
    iter_records,
    read_failure,
    read_record,
    read_study,
    write_failure,
    write_json,
    write_record,
    write_study,
)


def cell(seed=0):
    return Cell({"name": "msvit"}, {"name": "digits"}, {"epochs": 1}, seed)


def record(seed=0, **changes):
    return {
        "schema": 1,
        "id": cell(seed).id,
        "cell": cell(seed).as_dict(),
        "parameters": 10,
        "history": [
            {
                "epoch": 1,
                "lr": 0.1,
                "train_loss": 1.0,
                "train_accuracy": None,
                "val_loss": 1.0,
                "val_accuracy": 0.5,
                "seconds": 1,
            }
        ],
        "selected_epoch": 1,
        "test": {"images": 3, "loss": 1.0, "accuracy": 0.5},
        "firing": [{"layer": "stem", "timestep": 0, "rate": 0.1, "neurons": 8}],
        "firing_rate": 0.1,
        "operations": [],
        "energy_mj": {"sop_spikformer": 1e-3},
        "training_seconds": 1.0,
        "images_per_second": 100.0,
        "peak_memory_gb": 0.1,
        "precision": "fp32",
        "kernels": "off",
        "environment": {"python": "3.11"},
        **changes,
    }


def failure(seed=0):
    return {
        "schema": 1,
        "id": cell(seed).id,
        "cell": cell(seed).as_dict(),
        "error": "ValueError",
        "message": "no",
        "traceback": "...",
        "attempts": 1,
        "failed_at": "2026-01-01T00:00:00+00:00",
    }


def manifest(**changes):
    entry = {"id": cell().id, "label": "msvit seed 0", "group": "msvit", "seed": 0}
    return {
        "schema": 1,
        "name": "scales",
        "question": "?",
        "grid_file": "scales.yaml",
        "axes": ["model.scales"],
        "cells": [entry],
        **changes,
    }


def test_what_was_written_is_read_again(tmp_path):
    write_record(tmp_path, record(0))
    write_record(tmp_path, record(1))
    write_failure(tmp_path, failure(2))
    write_study(tmp_path, manifest())
    assert read_record(tmp_path, cell(1).id) == record(1)
    assert read_failure(tmp_path, cell(2).id) == failure(2)
    assert {r["id"] for r in iter_records(tmp_path)} == {cell(0).id, cell(1).id}
    assert list(iter_failures(tmp_path)) == [failure(2)]
    assert read_study(tmp_path, "scales") == manifest()


def test_what_is_not_there_is_none(tmp_path):
    assert read_record(tmp_path, "0" * 12) is None
    assert list(iter_records(tmp_path / "nowhere")) == []
    with pytest.raises(RecordError, match="--grid scales"):
        read_study(tmp_path, "scales")


def test_success_clears_an_earlier_failure(tmp_path):
    write_failure(tmp_path, failure())
    write_record(tmp_path, record())
    assert read_failure(tmp_path, cell().id) is None


def cut(path):
    path.write_text(path.read_text()[:200])


def change(**changes):
    return lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (cut, ("not complete JSON", "Delete it")),
        (lambda path: path.write_text(""), ("empty", "Delete it")),
        (lambda path: path.write_bytes(b"\xff\xfe\x00"), ("not UTF-8 text", "Delete it")),
        (lambda path: path.write_text("[1]"), ("object", "Delete it")),
        (lambda path: path.write_text('{"a": 1}'), ("schema", "Delete it")),
        (lambda path: path.write_text("[" * 100_000), ("JSON", "Delete it")),
        (change(schema=2), ("schema 2", "version")),
        (change(parameters="many"), ("parameters", "Delete it")),
        (change(test={"images": 3, "loss": 1.0}), ("test.accuracy", "Delete it")),
        (change(cell=cell(5).as_dict()), ("id it claims", "Delete it")),
        (change(id=cell(5).id, cell=cell(5).as_dict()), ("belongs to cell", "Delete it")),
    ],
)
def test_a_damaged_or_foreign_record_is_refused_by_name(tmp_path, damage, says):
    path = write_record(tmp_path, record())
    damage(path)
    for read in (lambda: read_record(tmp_path, cell().id), lambda: list(iter_records(tmp_path))):
        with pytest.raises(RecordError) as caught:
            read()
        message = str(caught.value)
        assert all(part in message for part in (str(path), *says)), message
        assert len(message.splitlines()) == 1


def test_a_record_that_lacks_a_field_is_not_written(tmp_path):
    incomplete = record()
    del incomplete["firing"]
    with pytest.raises(RecordError, match="firing"):
        write_record(tmp_path, incomplete)
    assert read_record(tmp_path, cell().id) is None


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = write_record(tmp_path, record())

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RecordError, match=r"record\.json.*No space left.*Free some space"):
        write_record(tmp_path, record(firing_rate=0.2))
    assert read_record(tmp_path, cell().id) == record()
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "results").write_text("a file")
    with pytest.raises(RecordError, match="--results"):
        write_record(tmp_path / "results", record())
    with pytest.raises(RecordError, match=r"/proc/.*cannot be written"):
        write_record(Path("/proc/msvit"), record())


def test_a_reader_never_sees_half_a_file(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, [0] * 20_000)
    stop = threading.Event()

    def write():
        number = 0
        while not stop.is_set():
            number += 1
            write_json(path, [number] * 20_000)

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    try:
        for _ in range(100):
            numbers = json.loads(path.read_text())
            assert len(numbers) == 20_000
            assert len(set(numbers)) == 1
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert list(tmp_path.iterdir()) == [path]
