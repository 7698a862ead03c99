"""What is measured on a CPU: models, sizes, variants. Torch-free."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

from msvit.allotment import usable_cpus

MODELS = {
    "msvit": "msvit_cifar10",
    "spikformer": "spikformer_cifar10",
    "qkformer": "qkformer_cifar10",
}
VARIANTS = ("plain", "ours")
PRECISIONS = ("fp32", "bf16")
MODES = ("train", "infer")


@dataclass(frozen=True)
class Size:
    """Model ``options``, images per batch, and threads (None: all that may be used)."""

    options: dict[str, Any]
    batch: int
    threads: int | None = None

    @property
    def used_threads(self) -> int:
        return self.threads or usable_cpus()


_SMALL = {"dim": 64, "image_size": 16, "in_channels": 1, "heads": 8}
SIZES = {
    "cifar": Size({}, 16),
    "digits": Size(_SMALL, 64, threads=1),
}
QUICK_SIZES = {
    "cifar": Size({"dim": 32, "heads": 4, "image_size": 16}, 4, threads=1),
    "digits": Size({**_SMALL, "dim": 32, "heads": 4}, 4, threads=1),
}


@dataclass(frozen=True)
class Case:
    """One measurement, done in a process of its own.

    ``budget`` is how many seconds of timed steps a process collects (at least ``least`` steps).
    ``norm_bias`` is added to the bias of every norm, which makes neurons fire more, or less, often.
    """

    model: str
    size: str
    variant: str
    precision: str
    mode: str
    options: dict[str, Any]
    batch: int
    threads: int
    budget: float = 4.0
    least: int = 2
    norm_bias: float = 0.0

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        return (self.model, self.size, self.variant, self.precision, self.mode)

    def task(self, kind: str) -> dict[str, Any]:
        """What a worker process is told to do."""
        return {"kind": kind, "registry": MODELS[self.model], **asdict(self)}


def say_threads(threads: int) -> str:
    return f"{threads} thread" + ("" if threads == 1 else "s")


def step_cases(models: list[str], size_name: str, quick: bool) -> list[Case]:
    """All variants of ``models`` at a size, in the order in which a round runs them."""
    size = (QUICK_SIZES if quick else SIZES)[size_name]
    effort: dict[str, Any] = {"budget": 0.0, "least": 1} if quick else {}
    common = {**effort, "options": size.options, "batch": size.batch, "threads": size.used_threads}
    return [
        Case(model, size_name, variant, precision, mode, **common)
        for model, mode, precision, variant in product(models, MODES, PRECISIONS, VARIANTS)
    ]


INPUT_RATE = "input rate"
#: One axis at a time around batch 4, T = 4, width 384, 32 × 32. Larger values would need more
#: memory with the plain modules than a machine of 16 GB has.
GROWTH_AXES: dict[str, tuple[float, ...]] = {
    "timesteps": (1, 2, 4, 8),
    "batch": (2, 4, 8, 16),
    "width": (128, 192, 256, 384),
    "image size": (16, 24, 32, 48),
    INPUT_RATE: (-0.5, 0.0, 0.5, 1.0),  # biases of the norms; the rates are measured
}
GROWTH_CURVES = (("plain", "fp32"), ("ours", "fp32"), ("ours", "bf16"))


def growth_cases(quick: bool) -> list[tuple[str, float, Case]]:
    """Training steps of MSVIT for the growth figure: ``(axis, value, case)``."""
    base = step_cases(["msvit"], "cifar", quick)[0]
    base = replace(base, size="growth", mode="train", batch=2 if quick else 4)
    found = []
    for axis, values in GROWTH_AXES.items():
        for value in values[:2] if quick else values:
            for variant, precision in GROWTH_CURVES:
                case = replace(_along(base, axis, value), variant=variant, precision=precision)
                found.append((axis, value, case))
    return found


def _along(base: Case, axis: str, value: float) -> Case:
    if axis == INPUT_RATE:
        return replace(base, norm_bias=value)
    if axis == "batch":
        return replace(base, batch=int(value))
    name = {"timesteps": "timesteps", "width": "dim", "image size": "image_size"}[axis]
    return replace(base, options={**base.options, name: value})
