"""What a training runs on: device, threads, memory allocator, peak memory."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from functools import cache

import torch

from msvit import kernels
from msvit.allotment import GPU_CONTEXT_GB, gpu_memory_share, usable_cpus

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # glibc's malloc.h


def training_device() -> torch.device:
    """A GPU where this process sees one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def to_device(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """``x`` of the host on ``device``, without waiting for what the device still has to do."""
    if device.type != "cuda":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


def keep_to_share(device: torch.device) -> None:
    """Leave the rest of a GPU's memory to the processes that share it (:mod:`msvit.allotment`)."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(gpu_memory_share(total / 1e9), device)


def held_memory_gb(device: torch.device) -> float:
    """What this process took of a GPU at most, with all that it keeps to itself, in 10⁹ bytes."""
    return torch.cuda.max_memory_reserved(device) / 1e9 + GPU_CONTEXT_GB


@cache
def prepare_process() -> None:
    """Make this process fit for training; does its work once per process.

    The numbers of a run depend on the number of threads, so they are taken from
    ``OMP_NUM_THREADS``, which Ray sets to a task's CPUs, and never exceed what the process
    may use.
    """
    _keep_freed_memory()
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    threads = int(wanted) if wanted.isdigit() and int(wanted) > 0 else torch.get_num_threads()
    torch.set_num_threads(min(threads, usable_cpus()))


def _keep_freed_memory() -> None:
    """Have glibc keep large freed blocks, fit for use, instead of returning them to the kernel.

    Every activation would otherwise be fresh pages, and clearing them costs a third of a
    training step (for the rest see ``kernels/cpu/allocator.cpp``). Other systems keep their
    defaults.
    """
    if not _is_glibc():
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    kernels.use_allocator()


def _is_glibc() -> bool:
    return sys.platform == "linux" and platform.libc_ver()[0] == "glibc"


def reset_peak_memory(device: torch.device) -> None:
    """Start a new measurement for :func:`peak_memory_gb`, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    if _is_glibc():
        ctypes.CDLL(None).malloc_trim(0)  # what an earlier cell has left in the heap
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # resets VmHWM
    except OSError:
        pass


def peak_memory_gb(device: torch.device) -> float:
    """Largest memory use since the reset, in 10⁹ bytes.

    On a GPU what tensors took there, else what the whole process held.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    try:
        with open("/proc/self/status") as file:
            line = next(line for line in file if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e9
    except (OSError, StopIteration):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak * (1 if sys.platform == "darwin" else 1024) / 1e9
