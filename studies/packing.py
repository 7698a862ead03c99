"""How many cells share a GPU: as many as fit, and as keep it busy.

A small cell leaves a GPU idle most of the time: while its process starts, while it compiles,
evaluates and saves. What a configuration needs is guessed from its sizes until one of its cells
has trained an epoch and said what it took; that is kept in ``<results>/devices.json``, for the
next study too. No process takes more of the memory than its share, so that a wrong guess is nobody
else's trouble: the cell itself runs out of memory and is run again with the whole device.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from msvit.allotment import GPU_CONTEXT_GB, GPU_SHARE
from msvit.cells import Cell, canonical_json
from msvit.models import model_options
from msvit.models.options import ModelOptions
from msvit.options import ConfigError
from msvit.records.store import write_json

USABLE = 0.92  # of a GPU's memory; what is freed in pieces cannot be used as a whole
OVERLAP = 1.5  # cells do not want the device all at once, and one that waits costs only memory
MOST = 16  # cells on a GPU; each is a process with a context of its own
START_MPS = "nvidia-cuda-mps-control -d"


@dataclass(frozen=True)
class Device:
    """A GPU: its ``name`` as the driver says it, and memory in 10⁹ bytes."""

    name: str
    memory_gb: float


@dataclass(frozen=True)
class Need:
    """What a cell takes of a GPU: memory in 10⁹ bytes, its process's context included, and the
    share of the cell's time in which the device works for it (``busy``)."""

    memory_gb: float
    busy: float


def look_at_machine() -> tuple[Device | None, bool]:
    """The smallest GPU of this machine, None where it is not known; whether MPS runs here.

    A GPU that is divided into instances (MIG) counts as not known.
    """
    pipes = os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps")
    mps = Path(pipes, "control").exists()
    query = "--query-gpu=name,memory.total,mig.mode.current"
    command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        rows = [line.rsplit(",", 2) for line in done.stdout.strip().splitlines()]
        found = [Device(name.strip(), float(mib) * 2**20 / 1e9) for name, mib, _ in rows]
    except (OSError, subprocess.SubprocessError, ValueError):
        return None, mps
    if not found or any(mig.strip() == "Enabled" for *_, mig in rows):
        return None, mps
    return min(found, key=lambda device: device.memory_gb), mps


class Packing:
    """The share of a GPU that every cell gets.

    ``device`` is the smallest GPU that a cell may meet; where it is None, cells get whole ones.
    ``forced`` is a share that all get instead; ``results`` holds what is remembered.
    """

    def __init__(self, results: Path, device: Device | None, forced: float | None = None) -> None:
        self._path = results / "devices.json"
        self._device, self._forced = device, forced
        self._known = _read(self._path)
        self._whole: set[str] = set()

    def gpus(self, cell: Cell) -> float:
        """GPUs for one cell: a share of one, or what was forced."""
        key = configuration(cell)
        if key in self._whole:
            return max(1.0, self._forced or 0.0)
        if self._forced is not None:
            return self._forced
        if self._device is None:
            return 1.0
        known = self._known.get(self._device.name, {}).get(key)
        return share(Need(**known) if known else guess(cell), self._device)

    def learn(self, cell: Cell, progress: Mapping[str, Any], beside: int) -> None:
        """Remember what a cell has said of itself after an epoch on a GPU.

        ``beside`` is how many cells shared the device, itself included. They wait for each other,
        which looks like work: each is taken to have worked for its part of the time. Memory is the
        most, time the least that was ever seen.

        Raises:
            RecordError: where the file cannot be written.
        """
        if "gpu" not in progress:
            return
        of_device = self._known.setdefault(progress["gpu"], {})
        key = configuration(cell)
        before = of_device.get(key)
        waited = progress["gpu_seconds"] * (1 - 1 / beside)
        worked = progress["gpu_seconds"] - waited
        busy = worked / max(progress["cell_seconds"] - waited, worked)
        need = Need(progress["gpu_memory_gb"], busy)
        if before is not None:
            most = max(need.memory_gb, before["memory_gb"])
            need = Need(most, min(need.busy, before["busy"]))
        if asdict(need) != before:
            of_device[key] = asdict(need)
            write_json(self._path, self._known)

    def give_all(self, cell: Cell) -> None:
        """From now on, cells of this configuration get a whole device."""
        self._whole.add(configuration(cell))


def configuration(cell: Cell) -> str:
    """What cells share that differ in nothing but the seed: 12 hex digits."""
    return hashlib.sha256(canonical_json({**cell.as_dict(), "seed": 0}).encode()).hexdigest()[:12]


def share(need: Need, device: Device) -> float:
    """One over the number of such cells that one device takes; Ray counts in 1/10000."""
    fit = int(USABLE * device.memory_gb / need.memory_gb)
    keep_busy = int(OVERLAP / max(need.busy, 1e-3))
    cells = max(1, min(fit, keep_busy, MOST))
    return int(10_000 / cells) / 10_000


#: Of a step, per value behind a norm: bytes by precision, and how many keep a large GPU busy. From
#: MSVIT CIFAR-10 on an H100, whose 10⁹ values took 4 GB in bf16 and 8 GB in fp32, and all its time.
_BYTES = {"fp32": 10.0, "tf32": 10.0}
_BYTES_HALF = 5.0
_BUSY_VALUES = 1e9
_BYTES_PER_WEIGHT = 20.0  # weight, gradient, two moments, a copy in half precision
_DOUBT = 1.5


def guess(cell: Cell) -> Need:
    """What a cell may need, from its sizes alone."""
    values = {key: value for key, value in cell.model.items() if key != "name"}
    try:
        model = model_options(str(cell.model["name"]), values)
        training = cell.training
        images, evaluated = training["batch_size"], training["eval_batch_size"]
        size = _BYTES.get(training["precision"], _BYTES_HALF)
    except (ConfigError, KeyError):  # made by hand, as in a test: nothing is known of it
        return Need(float("inf"), 1.0)
    per_image, weights = _sizes(model)
    # Evaluation keeps no activations, only those of the layers at work.
    step = per_image * max(images, evaluated / 8)
    memory = _DOUBT * (step * size + weights * _BYTES_PER_WEIGHT) / 1e9
    return Need(memory + GPU_CONTEXT_GB, min(1.0, per_image * images / _BUSY_VALUES))


def _sizes(model: ModelOptions) -> tuple[float, float]:
    """Values behind norms per image, over all time steps, and weights: both about right."""
    side, block = float(model.image_size), 4 + len(getattr(model, "scales", ())) + model.mlp_ratio
    values = weights = 0.0
    dims, depths = [model.dim], [sum(model.depths)]
    if hasattr(model, "pools"):  # a stem that shrinks the image, then one width
        for width, pool in zip((1 / 8, 1 / 4, 1 / 2, 1), model.pools, strict=True):
            values += side**2 * model.dim * width
            side /= 2 if pool else 1
    elif hasattr(model, "patch_size"):
        side /= model.patch_size
    else:
        side /= {"cifar": 1, "imagenet": 4, "events": 8}[getattr(model, "layout", "cifar")]
        dims, depths = list(getattr(model, "stage_dims", dims)), list(model.depths)
    for dim, depth in zip(dims, depths, strict=True):
        values += side**2 * dim * (5 + depth * block)
        weights += dim**2 * (18 + depth * (4 + 2 * model.mlp_ratio))
        side /= 2
    return values * model.timesteps, weights


def out_of_gpu_memory(outcome: Mapping[str, Any]) -> bool:
    """Whether a cell ended (:func:`studies.worker.run_cell`) for want of GPU memory."""
    failure = outcome.get("failure", {"error": "", "message": ""})
    # Ray's error for the machine's own memory has the same name.
    return failure["error"] == "OutOfMemoryError" and "CUDA" in failure["message"]


def run_on_share(gpus: float, *arguments: Any) -> dict[str, Any]:
    """:func:`studies.worker.run_cell` in a process that keeps to its share of a GPU."""
    from studies.worker import run_cell

    os.environ[GPU_SHARE] = f"{gpus:g}"
    return run_cell(*arguments)


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """What was measured by device and configuration; nothing where the file cannot be used."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        for needs in content.values():
            for need in needs.values():
                Need(**need)
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
    return content
