"""Ray and torch take what this process was given, not what the machine has."""

import os
import subprocess
import sys

import pytest

from msvit import allotment
from msvit.allotment import usable_cpus, usable_memory
from studies.cluster import cpus_with_memory

MB, GB = 1 << 20, 1 << 30


@pytest.fixture
def alone(monkeypatch):
    """A process that may use 64 CPUs and 128 GB."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 32 * MB}.get)
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)


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
    assert usable_cpus(*_groups(tmp_path, own, files)) == cpus


def _groups(folder, own, files):
    """Where control groups are "mounted", and the file that names those of the process."""
    (folder / "own").write_text(own)
    for name, content in files.items():
        (folder / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "groups" / name).write_text(content + "\n")
    return folder / "groups", folder / "own"


@pytest.mark.parametrize(
    ("own", "files", "size"),
    [
        ("0::/job/step", {"job/step/memory.max": f"{2 * GB}", "job/memory.max": "max"}, 2 * GB),
        ("0::/job/step", {"job/step/memory.max": "max", "job/memory.max": f"{3 * GB}"}, 3 * GB),
        ("0::/", {"memory.max": f"{4 * GB}"}, 4 * GB),
        ("0::/job", {"job/memory.max": f"{999 * GB}"}, 128 * GB),
        ("9:memory:/job", {"memory/job/memory.limit_in_bytes": f"{5 * GB}"}, 5 * GB),
        ("9:memory:/of/host", {"memory/memory.limit_in_bytes": f"{6 * GB}"}, 6 * GB),
        ("9:memory:/job", {"memory/job/memory.limit_in_bytes": "9223372036854771712"}, 128 * GB),
        ("9:cpu:/job", {"memory/job/memory.limit_in_bytes": f"{5 * GB}"}, 128 * GB),
    ],
)
def test_control_groups_limit_memory(alone, tmp_path, own, files, size):
    assert usable_memory(*_groups(tmp_path, own, files)) == size


@pytest.mark.parametrize(
    ("variables", "size"),
    [
        ({"SLURM_MEM_PER_NODE": "4096"}, 4 * GB),
        ({"SLURM_MEM_PER_NODE": "0"}, 128 * GB),  # all that the node has
        ({"SLURM_MEM_PER_CPU": "2048", "SLURM_CPUS_ON_NODE": "16"}, 32 * GB),
        ({"SLURM_MEM_PER_CPU": "2048", "SLURM_CPUS_PER_TASK": "2"}, 4 * GB),
        ({"SLURM_MEM_PER_GPU": "8192", "SLURM_GPUS_ON_NODE": "2"}, 16 * GB),
        ({"SLURM_MEM_PER_NODE": "much"}, 128 * GB),
    ],
)
def test_slurm_limits_memory(alone, monkeypatch, tmp_path, variables, size):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert usable_memory(tmp_path, tmp_path / "none") == size


def test_as_many_cells_at_once_as_find_memory(alone, monkeypatch):
    given = {"usable_memory": 128 * GB, "usable_cpus": 64}
    for name in given:
        monkeypatch.setattr(f"studies.cluster.{name}", lambda name=name: given[name])
    assert cpus_with_memory(1) == 64
    given["usable_memory"] = 8 * GB
    assert cpus_with_memory(1) == 7  # Ray's object store takes a little
    assert cpus_with_memory(2) == 14
    given["usable_memory"] = GB // 2
    assert cpus_with_memory(4) == 4  # one cell is tried


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
