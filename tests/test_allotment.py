"""Ray and torch take what this process was given, not what the machine has."""

import os
import subprocess
import sys

import pytest

from msvit import allotment
from msvit.allotment import usable_cpus


@pytest.fixture
def alone(monkeypatch):
    """A process that may use 64 CPUs."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("own", "files", "cpus"),
    [
        ("0::/job/step", {"job/step/cpu.max": "200000 100000"}, 2),
        ("0::/job/step", {"job/cpu.max": "350000 100000", "job/step/cpu.max": "max 100000"}, 3),
        ("0::/job", {"job/cpu.max": "50000 100000"}, 1),
        ("0::/job", {"job/cpu.max": "max 100000"}, 64),
        ("0::/", {}, 64),
        ("0::/", {"cpu.max": "400000 100000"}, 4),
        (
            "4:cpu,cpuacct:/job\n1:name=systemd:/job",
            {
                "cpu,cpuacct/job/cpu.cfs_quota_us": "800000",
                "cpu,cpuacct/job/cpu.cfs_period_us": "100000",
            },
            8,
        ),
        (
            "4:cpu,cpuacct:/job",
            {
                "cpu,cpuacct/job/cpu.cfs_quota_us": "-1",
                "cpu,cpuacct/job/cpu.cfs_period_us": "100000",
            },
            64,
        ),
    ],
)
def test_control_groups_count(alone, tmp_path, own, files, cpus):
    (tmp_path / "own").write_text(own)
    for name, content in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(content + "\n")
    assert usable_cpus(tmp_path / "groups", tmp_path / "own") == cpus


@pytest.mark.parametrize(
    ("variables", "cpus"),
    [
        ({"SLURM_CPUS_PER_TASK": "2", "SLURM_CPUS_ON_NODE": "16"}, 2),
        ({"SLURM_CPUS_ON_NODE": "16"}, 16),
        ({"SLURM_CPUS_PER_TASK": "128"}, 64),
        ({"SLURM_CPUS_PER_TASK": "many"}, 64),
    ],
)
def test_slurm_counts(alone, monkeypatch, tmp_path, variables, cpus):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert usable_cpus(tmp_path, tmp_path / "none") == cpus


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_the_cpus_beside_a_gpu_are_shared_by_all_who_use_one(monkeypatch, tmp_path):
    monkeypatch.setattr(allotment, "usable_cpus", lambda: 16)
    assert allotment.cpus_beside_gpu(tmp_path) == 16
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert allotment.cpus_beside_gpu(tmp_path) == 8
    monkeypatch.setenv(allotment.GPU_SHARE, "0.25")
    assert allotment.cpus_beside_gpu(tmp_path) == 2
    monkeypatch.setenv(allotment.GPU_SHARE, "0.01")
    assert allotment.cpus_beside_gpu(tmp_path) == 1


def test_affinity_counts():
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from msvit.allotment import usable_cpus; print(usable_cpus())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["1"], done.stderr
