"""How many cells share a GPU, on GPUs that are not there."""

import json
import os
import stat
import time

import pytest

from msvit.allotment import GPU_CONTEXT_GB, GPU_SHARE, gpu_memory_share
from msvit.cells import resolve_cell
from msvit.records.store import cell_folder, read_failure, read_record
from studies.cluster import Place
from studies.executor import run_cells
from studies.grids import load_study
from studies.packing import (
    MOST,
    USABLE,
    Device,
    Need,
    Packing,
    configuration,
    guess,
    look_at_machine,
    share,
)
from studies.progress import Display
from tests.ray_cluster import ENVIRONMENT, ray_of
from tests.test_run import bare_record, tiny  # noqa: F401 -- a fixture

H100 = Device("NVIDIA H100 80GB HBM3", 85.5)
SMALL = Device("NVIDIA T4", 16.1)


def cell(name="msvit", data="digits", seed=0, **sections):
    model = {"name": name, **sections.get("model", {})}
    training = {"batch_size": 64, **sections.get("training", {})}
    raw = {"model": model, "data": {"name": data}, "training": training, "seed": seed}
    return resolve_cell(raw, "test")


def digits(seed=0):
    return cell(seed=seed, model={"dim": 64, "heads": 8})


def said(memory, busy, device=H100):
    told = {"gpu": device.name, "gpu_memory_gb": memory, "epoch": 1, "epochs": 9}
    return told | {"gpu_seconds": 100 * busy, "cell_seconds": 100.0}


@pytest.mark.parametrize(
    ("need", "device", "cells"),
    [
        (Need(1.0, 0.01), H100, MOST),
        (Need(10.0, 0.1), H100, 7),  # 92 % of 85.5 GB hold seven
        (Need(10.0, 0.1), SMALL, 1),
        (Need(1.0, 0.5), H100, 3),
        (Need(1.0, 1.0), H100, 1),
        (Need(1e9, 0.1), H100, 1),
        (Need(float("inf"), 0.0), H100, 1),
    ],
)
def test_a_share_is_what_fits_and_keeps_busy(need, device, cells):
    assert int(1 / share(need, device) + 1e-9) == cells
    if cells > 1:
        assert cells * need.memory_gb <= USABLE * device.memory_gb


def test_guesses_are_right_in_size():
    """Measured on an H100: 4.0 GB at batch 64, 15.2 at 256 in bf16, 8.3 GB in fp32."""

    def memory(batch, precision):
        training = {"batch_size": batch, "precision": precision, "eval_batch_size": batch}
        return guess(cell("msvit_cifar10", "cifar10", training=training)).memory_gb

    for found, measured in (
        (memory(64, "bf16"), 4.0),
        (memory(256, "bf16"), 15.2),
        (memory(64, "fp32"), 8.3),
    ):
        assert measured < found < 3 * measured
    assert guess(cell("msvit_cifar10", "cifar10")).busy > 0.9
    assert share(guess(digits()), H100) == pytest.approx(1 / MOST, abs=1e-4)


@pytest.mark.parametrize("name", ["qkformer", "spikformer", "sdt", "vit", "metaspikeformer"])
def test_more_images_or_width_need_more(name):
    batch = guess(cell(name, "cifar10", training={"batch_size": 128})).memory_gb
    dim = guess(cell(name, "cifar10", model={"dim": 768})).memory_gb
    assert min(batch, dim) > guess(cell(name, "cifar10")).memory_gb > GPU_CONTEXT_GB


def test_what_was_measured_is_remembered_by_configuration(tmp_path):
    packing = Packing(tmp_path, H100)
    packing.learn(digits(), said(20.0, 0.3), 1)
    assert packing.gpus(digits(seed=1)) == share(Need(20.0, 0.3), H100)
    assert packing.gpus(cell()) == share(guess(cell()), H100)
    # Of memory the most counts, of times the least: cells side by side look busier than they are.
    packing.learn(digits(), said(21.0, 0.9), 1)
    again = Packing(tmp_path, H100)
    assert again.gpus(digits(seed=2)) == share(Need(21.0, 0.3), H100)
    assert Packing(tmp_path, SMALL).gpus(digits()) == share(guess(digits()), SMALL)
    assert configuration(digits()) == configuration(digits(seed=5)) != configuration(cell())
    packing.learn(cell(), {"epoch": 1, "epochs": 9}, 1)  # on a CPU
    (tmp_path / "devices.json").write_text('{"NVIDIA')
    assert Packing(tmp_path, H100).gpus(digits()) == share(guess(digits()), H100)


def test_waiting_for_each_other_is_no_work(tmp_path):
    """Ten cells, each of which works for 3 s and does other things for 12."""
    alone, together = Packing(tmp_path / "alone", H100), Packing(tmp_path / "together", H100)
    alone.learn(digits(), said(1.0, 0.0) | {"gpu_seconds": 3.0, "cell_seconds": 15.0}, 1)
    together.learn(digits(), said(1.0, 0.0) | {"gpu_seconds": 30.0, "cell_seconds": 42.0}, 10)
    assert together.gpus(digits()) == alone.gpus(digits()) == share(Need(1.0, 0.2), H100)


def test_what_is_forced_or_not_known_is_not_guessed(tmp_path):
    forced = Packing(tmp_path, H100, 0.16)
    forced.learn(digits(), said(80.0, 1.0), 6)
    assert forced.gpus(digits()) == 0.16
    assert Packing(tmp_path, None).gpus(digits()) == 1.0
    forced.give_all(digits())
    assert forced.gpus(digits(seed=3)) == 1.0
    assert forced.gpus(cell()) == 0.16


def nvidia_smi(folder, text):
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("NVIDIA T4, 15360, [N/A]\nNVIDIA H100, 81559, Disabled", Device("NVIDIA T4", 16.10612736)),
        ("NVIDIA H100, 81559, Enabled", None),
        ("NVIDIA-SMI has failed", None),
    ],
)
def test_the_smallest_gpu_of_a_machine_counts(text, expected, tmp_path, monkeypatch):
    nvidia_smi(tmp_path, text)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    assert look_at_machine() == (expected, False)
    (tmp_path / "control").touch()  # what the daemon of MPS listens at
    assert look_at_machine() == (expected, True)


def test_a_process_keeps_to_its_share(monkeypatch):
    monkeypatch.delenv(GPU_SHARE, raising=False)
    assert gpu_memory_share(80.0) == 1.0
    monkeypatch.setenv(GPU_SHARE, "0.25")
    assert gpu_memory_share(80.0) == pytest.approx(0.25 - GPU_CONTEXT_GB / 80)
    monkeypatch.setenv(GPU_SHARE, "2")
    assert gpu_memory_share(80.0) == 1.0


class OutOfMemoryError(RuntimeError):
    """As torch calls it."""


@pytest.fixture
def one_gpu(tmp_path):
    """The address of a cluster that says it has one GPU, an H100."""
    nvidia_smi(tmp_path, "NVIDIA H100 80GB HBM3, 81559, Disabled")
    path = f"{tmp_path}:{os.environ['PATH']}"
    with ray_of([{"num_cpus": 4, "num_gpus": 1}], PATH=path) as address:
        yield address


@pytest.mark.slow
def test_cells_share_a_gpu_and_one_that_runs_out_gets_it_whole(
    one_gpu,
    tiny,  # noqa: F811
    tmp_path,
    monkeypatch,
    capsys,
):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)

    def train(cell, folder, *, data_dir, report):
        given = os.environ[GPU_SHARE]
        with (folder / "shares").open("a") as file:
            file.write(f"{given} ")
        report({**said(2.0, 0.5), "val_accuracy": 0.5})
        if (cell.seed == 1 and float(given) < 1) or cell.seed == 2:
            raise OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.")
        time.sleep(1)
        return bare_record(cell)

    entries = load_study(str(tiny), ["model.scales=[1]"], seeds=3).cells
    results = tmp_path / "results"
    run_cells(entries, results, Place(one_gpu), Display(entries, 0, 3), train=train)

    def shares(seed):
        path = cell_folder(results, entries[seed].cell.id) / "shares"
        return [float(text) for text in path.read_text().split()]

    assert shares(0) == [0.0625]
    assert shares(1)[-1] == shares(2)[-1] == 1.0
    assert all(given < 1 for seed in (1, 2) for given in shares(seed)[:-1])
    for seed in (0, 1):
        assert read_record(results, entries[seed].cell.id) == bare_record(entries[seed].cell)
        assert read_failure(results, entries[seed].cell.id) is None
    failure = read_failure(results, entries[2].cell.id)
    assert failure["error"] == "OutOfMemoryError"
    assert "had a whole GPU: a smaller training.batch_size" in failure["message"]
    printed = capsys.readouterr().out
    assert printed.count("again with a whole GPU") >= 1
    assert "nvidia-cuda-mps-control -d" in printed
    (need,) = json.loads((results / "devices.json").read_text())[H100.name].values()
    assert need["memory_gb"] == 2.0
    assert need["busy"] <= 0.5
