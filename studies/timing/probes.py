"""What the machine can do, and what a model asks of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import conv2d

from msvit import create_model
from msvit.layers.synapses import Conv, Linear, MatrixProduct, is_static
from msvit.models import model_options
from msvit.neurons import Spikes
from studies.timing.roofline import Peaks, Work

_DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}


def measure_peaks(precision: str, device: torch.device, quick: bool = False) -> Peaks:
    """Best of several repetitions, under the matmul setting that the process has now."""
    dtype, clock = _DTYPES[precision], _Clock(device, 0.05 if quick else 1.0)
    images, channels = (2, 32) if quick else (32, 192)
    convolution = _conv_rate(images, channels, dtype, clock)
    product = product_peak(precision, device, quick)
    return Peaks(product, convolution, _bandwidth(2 if quick else 64, clock))


def product_peak(precision: str, device: torch.device, quick: bool = False) -> float:
    """GFLOP/s of the best of some matrix products, under the setting that the process has now."""
    clock = _Clock(device, 0.05 if quick else 1.0)
    # Square, and as tall as an activation: libraries reach their best on one or the other.
    side = 8192 if device.type == "cuda" else 2048
    shapes = [(256, 256, 256)] if quick else [(side, side, side), (16384, 384, 1536)]
    return max(_product_rate(*shape, _DTYPES[precision], clock) for shape in shapes)


def copy_bandwidth(device: torch.device, quick: bool = False) -> float:
    """GB/s that a copy within the device reads and writes, far larger than its caches."""
    source = torch.rand((1 if quick else 256) * 2**20, device=device)
    target = torch.empty_like(source)
    seconds = _Clock(device, 0.05 if quick else 1.0).best(lambda: target.copy_(source))
    return 2 * source.nbytes / seconds / 1e9


class _Clock:
    """Takes the best time of many runs on ``device``, in about so many ``seconds``."""

    def __init__(self, device: torch.device, seconds: float) -> None:
        self.device, self.seconds = device, seconds
        # A GPU is asked to finish once in so many runs: each time costs as much as a small run.
        self.runs = 1 if device.type == "cpu" else 10

    @torch.no_grad()
    def best(self, run: Callable[[], object]) -> float:
        run()
        best, end = float("inf"), time.perf_counter() + self.seconds
        while time.perf_counter() < end or best == float("inf"):
            wait_for(self.device)
            start = time.perf_counter()
            for _ in range(self.runs):
                run()
            wait_for(self.device)
            best = min(best, (time.perf_counter() - start) / self.runs)
        return best


def wait_for(device: torch.device) -> None:
    """Return when ``device`` has done what it was asked to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _product_rate(m: int, k: int, n: int, dtype: torch.dtype, clock: _Clock) -> float:
    a, b = (torch.randn(shape, device=clock.device).to(dtype) for shape in ((m, k), (k, n)))
    out = torch.empty(m, n, dtype=dtype, device=clock.device)
    return 2 * m * k * n / clock.best(lambda: torch.mm(a, b, out=out)) / 1e9


def _conv_rate(images: int, channels: int, dtype: torch.dtype, clock: _Clock) -> float:
    """3×3 convolution of ``channels`` maps of 32 × 32 pixels, channels last."""
    layout: dict[str, Any] = {
        "device": clock.device,
        "dtype": dtype,
        "memory_format": torch.channels_last,
    }
    x = torch.randn(images, channels, 32, 32).to(**layout)
    weight = torch.randn(channels, channels, 3, 3).to(**layout)
    flops = 2 * images * 32 * 32 * 9 * channels**2
    return flops / clock.best(lambda: conv2d(x, weight, padding=1)) / 1e9


def _bandwidth(megavalues: int, clock: _Clock) -> float:
    """GB/s of the triad ``a = b + 3 c`` over float32 buffers far larger than the caches."""
    b, c = (torch.rand(megavalues * 2**20, device=clock.device) for _ in range(2))
    a = torch.empty_like(b)
    return 3 * a.nbytes / clock.best(lambda: torch.add(b, c, alpha=3.0, out=a)) / 1e9


@torch.no_grad()
def count_work(name: str, options: dict, device: torch.device | None = None) -> Work:
    """Forward work per image of ``create_model(name, **options)``, counted on ``device``."""
    model = create_model(name, **options).eval().to(device or "cpu")
    found = dict.fromkeys(("product_flops", "conv_flops", "first_flops", "currents", "spikes"), 0)

    def synapse(module: Conv | Linear | MatrixProduct, inputs: tuple, output: torch.Tensor) -> None:
        static = isinstance(module, Conv) and is_static(inputs[0])
        steps = 1 if static else inputs[0].shape[0]
        operands = inputs if isinstance(module, MatrixProduct) else (*inputs, output)
        flops = 2 * steps * module.dense_macs(*operands)
        wide = isinstance(module, Conv) and module.kernel != (1, 1)
        found["conv_flops" if wide else "product_flops"] += flops
        found["first_flops"] += flops if static else 0
        if isinstance(module, Conv):
            found["currents"] += output.numel() * steps // output.shape[0]

    def spikes(_module: nn.Module, _inputs: tuple, output: torch.Tensor) -> None:
        found["spikes"] += output.numel()

    for module in model.modules():
        if isinstance(module, Conv | Linear | MatrixProduct):
            module.register_forward_hook(synapse)
        elif isinstance(module, Spikes):
            module.register_forward_hook(spikes)
    known = model_options(name, options)
    model(torch.randn(1, known.in_channels, known.image_size, known.image_size, device=device))
    return Work(**found)
