"""How much of the machine this process may use, which may be less than the machine has.

A scheduler's allotment shows in the affinity of the process (``taskset``, Slurm), in its control
group (containers, Slurm), or only in Slurm's variables. Torch-free. What Slurm's variables say of
memory, nobody enforces here; a control group's limit the kernel does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

GPU_SHARE = "MSVIT_GPU_SHARE"
"""Environment variable: the share of its GPU that this process may use; unset or from 1 on, all."""

GPU_CONTEXT_GB = 0.7
"""What a process takes of a GPU before any tensor, about: its context and the kernels it loads."""

_SLURM = ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE")
"""The first that is set counts: CPUs of one task, CPUs of all tasks of the job on this node."""

_MB = 1 << 20  # as Slurm counts


def gpu_memory_share(total_gb: float) -> float:
    """The share of a GPU's memory that this process's tensors may take."""
    share = _gpu_share()
    return 1.0 if share == 1 else max(0.01, share - GPU_CONTEXT_GB / total_gb)


def cpus_beside_gpu(devices: Path = Path("/dev")) -> int:
    """CPUs that may work for the GPU of this process: its share of those that it may use.

    Every GPU of the machine has as many, and every process on one its share of them.
    """
    gpus = sum(1 for device in devices.glob("nvidia[0-9]*")) or 1
    return max(1, int(usable_cpus() * _gpu_share() / gpus))


def _gpu_share() -> float:
    try:
        share = float(os.environ.get(GPU_SHARE, "1"))
    except ValueError:
        return 1.0
    return share if 0 < share < 1 else 1.0


def usable_cpus(
    cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> int:
    """CPUs that this process may use, at least 1; of a share of one, whole CPUs only.

    ``cgroups`` is where control groups are mounted, ``own`` names those of this process.
    """
    quotas = _limits(cgroups, own, "cpu", _quota, _quota_of_version_1)
    limits = [_affinity(), *map(int, quotas), *_of_slurm(*_SLURM)]
    return max(1, min(limits))


def usable_memory(
    cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> int:
    """Bytes of memory that this process and those it starts may use, all together.

    The arguments are those of :func:`usable_cpus`.
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    limits += map(int, _limits(cgroups, own, "memory", _most, _most_of_version_1))
    limits += [_MB * size for size in _of_slurm("SLURM_MEM_PER_NODE")]
    for unit, counts in (("CPU", _SLURM), ("GPU", ("SLURM_GPUS_ON_NODE",))):
        sizes, number = _of_slurm(f"SLURM_MEM_PER_{unit}"), _of_slurm(*counts)
        limits += [_MB * size * count for size in sizes for count in number]
    return min(limits)


def _of_slurm(*names: str) -> list[int]:
    """The number in the first of these variables that is set, where it is one; 0 means no limit."""
    value = next((os.environ[name] for name in names if os.environ.get(name)), "")
    return [int(value)] if value.isdecimal() and int(value) else []


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _limits(
    cgroups: Path,
    own: Path,
    controller: str,
    read: Callable[[Path], float],
    read_version_1: Callable[[Path], float],
) -> Iterator[float]:
    """What the control groups of this process allow, those above it included."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2: one tree
            yield from _up(cgroups, path, read)
        elif controller in controllers.split(","):
            yield from _up(cgroups / controllers, path, read_version_1)
            yield from _up(cgroups / controller, path, read_version_1)


def _quota(group: Path) -> float:
    quota, period = map(float, (group / "cpu.max").read_text().split())
    return quota / period


def _quota_of_version_1(group: Path) -> float:
    quota, period = (
        float((group / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period")
    )
    return quota / period


def _most(group: Path) -> float:
    return float((group / "memory.max").read_text())


def _most_of_version_1(group: Path) -> float:
    return float((group / "memory.limit_in_bytes").read_text())


def _up(root: Path, path: str, read: Callable[[Path], float]) -> Iterator[float]:
    """The limits of the group at ``path`` and of all above it, where there are any."""
    group = root / path.lstrip("/")
    for place in (group, *group.parents):
        try:
            if (limit := read(place)) > 0:
                yield limit
        except (OSError, ValueError):  # no such file, or "max"
            pass
        if place == root:
            return
