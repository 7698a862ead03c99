"""What is measured on a GPU, the most wanted first. Torch-free."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

PLAIN = "plain"
"""spikingjelly's modules with its own Triton neurons, as the released code would run them."""
OURS = "ours"
"""As training runs it: one CUDA graph, wherever it can be recorded."""
EAGER = "eager"
"""Ours without a graph: kernel by kernel, as the host starts them."""

_DIGITS = {"dim": 64, "image_size": 16, "in_channels": 1, "heads": 8}
_TINY = {"dim": 32, "heads": 4, "image_size": 8, "in_channels": 1, "timesteps": 2}


@dataclass(frozen=True)
class GpuCase:
    """Steps of one model at one size: ``options`` go to ``create_model(model, **options)``."""

    model: str
    size: str
    batch: int
    precision: str
    mode: str  # train, infer
    variant: str
    options: dict[str, Any]
    image_size: int = 32
    channels: int = 3
    seconds: float = 1.5  # of timed steps, about
    profile: bool = False

    @property
    def key(self) -> tuple[str, str, int, str, str, str]:
        return (self.model, self.size, self.batch, self.precision, self.mode, self.variant)

    @property
    def name(self) -> str:
        return " ".join(str(part) for part in self.key)

    def task(self) -> dict[str, Any]:
        """What the measuring process is told."""
        return {"kind": "case", **asdict(self)}


def _case(
    model: str, size: str, batch: int, precision: str, mode: str, variant: str, **rest: Any
) -> GpuCase:
    options: dict[str, Any] = {}
    if size == "digits":
        options = _DIGITS
        rest |= {"image_size": 16, "channels": 1}
    elif size == "imagenet":
        rest |= {"image_size": 224}
    return GpuCase(model, size, batch, precision, mode, variant, options, **rest)


def gpu_cases() -> list[GpuCase]:
    """All cases, in the order in which they are measured."""
    msvit = ("msvit_cifar10", "cifar")
    return [
        _case(*msvit, 64, "bf16", "train", OURS, profile=True),
        _case(*msvit, 64, "bf16", "train", PLAIN),
        _case("msvit_cifar10", "digits", 64, "bf16", "train", OURS, profile=True),
        _case("msvit_cifar10", "digits", 64, "bf16", "train", PLAIN),
        _case(*msvit, 256, "bf16", "train", OURS),
        _case(*msvit, 256, "bf16", "train", PLAIN),
        _case("msvit_10_384", "imagenet", 32, "bf16", "train", OURS, profile=True),
        _case("qkformer_cifar10", "cifar", 64, "bf16", "train", OURS),
        _case("qkformer_cifar10", "cifar", 64, "bf16", "train", PLAIN),
        _case("spikformer_cifar10", "cifar", 64, "bf16", "train", OURS),
        _case("spikformer_cifar10", "cifar", 64, "bf16", "train", PLAIN),
        _case(*msvit, 64, "bf16", "infer", OURS),
        _case(*msvit, 64, "bf16", "infer", PLAIN),
        _case(*msvit, 64, "tf32", "train", OURS),
        _case(*msvit, 64, "tf32", "train", PLAIN),
        _case(*msvit, 64, "fp32", "train", OURS),
        _case(*msvit, 64, "fp32", "train", PLAIN),
        _case(*msvit, 64, "bf16", "train", EAGER),
        _case("msvit_cifar10", "digits", 64, "bf16", "train", EAGER),
        _case(*msvit, 64, "tf32", "infer", OURS),
        _case(*msvit, 64, "tf32", "infer", PLAIN),
        _case(*msvit, 64, "fp32", "infer", OURS),
        _case(*msvit, 64, "fp32", "infer", PLAIN),
        _case("msvit_10_384", "imagenet", 32, "bf16", "infer", OURS),
    ]


def quick_cases() -> list[GpuCase]:
    """Tiny ones: does it run at all?"""
    kinds = [("bf16", "train", OURS), ("bf16", "train", PLAIN), ("fp32", "infer", OURS)]
    small: dict[str, Any] = {"image_size": 8, "channels": 1, "seconds": 0.0, "profile": True}
    return [GpuCase("msvit_cifar10", "tiny", 4, *kind, _TINY, **small) for kind in kinds]
