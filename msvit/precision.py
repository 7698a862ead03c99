"""Precision that says what it is: fp32 never silently rounds to less.

``torch.set_float32_matmul_precision("medium")`` is free on some processors and rounds
products to bf16 on others, so one set of products is compared with float64 first: what calls itself
fp32 is off by less than :data:`MAX_ERROR`, whatever torch's setting is then called.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch.nn.functional import conv2d

from msvit import processor

MAX_ERROR = 1e-6
"""Largest relative error of a product that may call itself fp32; bf16 is off by 2e-3."""

_DTYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


@dataclass(frozen=True)
class Precision:
    """``dtype`` that autocast computes products in, its ``name`` and a ``label`` for the record."""

    dtype: torch.dtype
    name: str
    label: str

    def autocast(self, device: torch.device) -> torch.autocast:
        """Context for a forward pass and its loss; does nothing in fp32."""
        enabled = self.dtype != torch.float32
        # Weights that were cast while a graph was recorded would be those of that step for ever.
        keep = device.type != "cuda"
        dtype = self.dtype if enabled else None
        return torch.autocast(device.type, dtype, enabled=enabled, cache_enabled=keep)


def choose_precision(requested: str, device: torch.device) -> Precision:
    """Set up the process for ``requested``, as ``training.precision`` names it.

    ``auto`` is bf16 where the device multiplies faster in it, and fp32 elsewhere.
    """
    if requested == "auto":
        requested = "bf16" if bf16_is_faster(device) else "fp32"
    if requested == "tf32" and device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        return Precision(torch.float32, requested, "tf32")
    torch.set_float32_matmul_precision(exact_matmul_precision(device))
    torch.backends.cudnn.allow_tf32 = False
    label = "fp32" if requested in ("fp32", "tf32") else f"{requested} autocast over fp32"
    return Precision(_DTYPES[requested], requested, label)


@cache
def exact_matmul_precision(device: torch.device) -> str:
    """The fastest setting under which fp32 products and convolutions are fp32."""
    torch.backends.cudnn.allow_tf32 = False
    for setting in ("medium", "highest"):
        torch.set_float32_matmul_precision(setting)
        if product_error(device) < MAX_ERROR:
            break
    return setting


def product_error(device: torch.device) -> float:
    """Worst relative error of fp32 products and convolutions in use now, against float64.

    Several shapes, because libraries choose a kernel by shape.
    """
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random).to(device)

    products = [(512, 512, 512), (4096, 64, 64), (1024, 384, 256)]
    pairs = [(draw(m, k), draw(k, n)) for m, k, n in products]
    errors = [_relative_error(a @ b, a.double() @ b.double()) for a, b in pairs]
    images, weight = draw(8, 64, 16, 16), draw(64, 64, 3, 3)
    for layout in (torch.contiguous_format, torch.channels_last):
        x, w = images.to(memory_format=layout), weight.to(memory_format=layout)
        exact = conv2d(x.double(), w.double(), padding=1)
        errors.append(_relative_error(conv2d(x, w, padding=1), exact))
    return max(errors)


def _relative_error(value: torch.Tensor, exact: torch.Tensor) -> float:
    return float((value.double() - exact).norm() / exact.norm())


def bf16_is_faster(device: torch.device) -> bool:
    """Whether products in bf16 are faster than in fp32, so that training is."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return processor.multiplies_bf16_faster()
