"""What a result was computed with."""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from msvit import processor


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Versions, processor, device, threads, commit and time, as they go into a record."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "spikingjelly": _version("spikingjelly"),
        "ray": _version("ray"),
        "msvit": _version("msvit"),
        "processor": processor_name(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "matmul": torch.get_float32_matmul_precision(),
        "commit": _commit(),
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def device_name(device: torch.device) -> str:
    """The GPU's name as its driver gives it, or ``cpu``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def processor_name() -> str:
    """The processor's name as the system gives it."""
    lines = processor.description().splitlines()
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Commit of the checkout that this package runs from, ``-dirty`` if it was changed."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        result = subprocess.run(
            [*command, "--abbrev=40"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
