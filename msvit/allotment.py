"""How much of the machine this process may use, which may be less than the machine has.

A scheduler's allotment shows in the affinity of the process (``taskset``, Slurm), in its control
group (containers, Slurm), or only in Slurm's variables. Torch-free.
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
    limits = [_affinity(), *(int(share) for share in _quotas(cgroups, own))]
    allotted = next((os.environ[name] for name in _SLURM if os.environ.get(name)), "")
    if allotted.isdigit():
        limits.append(int(allotted))
    return max(1, min(limits))


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quotas(cgroups: Path, own: Path) -> Iterator[float]:
    """CPUs that the control groups of this process allow, those above it included."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2: one tree
            yield from _up(cgroups, path, lambda group: (group / "cpu.max").read_text().split())
        elif "cpu" in controllers.split(","):
            yield from _up(cgroups / controllers, path, _version1)
            yield from _up(cgroups / "cpu", path, _version1)


def _version1(group: Path) -> list[str]:
    return [(group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period")]


def _up(root: Path, path: str, read: Callable[[Path], list[str]]) -> Iterator[float]:
    """``quota / period`` of the group at ``path`` and of all above it, where there is a quota."""
    group = root / path.lstrip("/")
    for place in (group, *group.parents):
        try:
            quota, period = (float(number) for number in read(place))
            if quota > 0:
                yield quota / period
        except (OSError, ValueError):  # no such file, or "max"
            pass
        if place == root:
            return
