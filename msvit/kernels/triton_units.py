"""The passes of cpp.py as Triton kernels, for CUDA tensors.

A program works on a tile of rows × channels and runs all T time steps in registers. Sums per
channel are written by every program to a slot of its own and added afterwards, so that results do
not depend on the order in which programs ran. The kernels stand in triton_kernels.py.
"""

from __future__ import annotations

import math
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import triton_kernels as kernels
from .spec import SURROGATES, NeuronSpec

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@cache
def passes(dtype: torch.dtype) -> Passes | None:
    return Passes(dtype) if dtype in DTYPES else None


class Passes:
    """The same methods as :class:`msvit.kernels.cpp.Passes`; arguments are explained there."""

    head_bytes = 1

    def __init__(self, dtype: torch.dtype) -> None:
        self.real = torch.float64 if dtype == torch.float64 else torch.float32
        self._real = tl.float64 if dtype == torch.float64 else tl.float32

    def decay(self, spec: NeuronSpec, plif_w: Tensor | None) -> Tensor | float:
        # It stays on the device: reading it would wait for everything before.
        return 1 / spec.tau if plif_w is None else plif_w.detach().to(self.real).sigmoid()

    def moments(self, y: Tensor) -> Tensor:
        rows, channels = y.numel() // y.shape[-1], y.shape[-1]
        grid, tile, partial = self._slots(y, rows, channels)
        # As in units.cpp: an outlier is no pivot.
        some = [rows // 4, rows // 2, rows * 3 // 4]
        pivot = y.reshape(rows, channels)[some].to(self.real).median(0).values
        kernels.moments[grid](y, pivot, partial, rows, channels, **tile, REAL=self._real)
        mean, square = partial.double().sum(0) / rows
        variance = (square - mean * mean).clamp_min(0)
        return torch.stack((mean + pivot, variance))

    def fold(self, moments, count, norm, offset, running, momentum) -> Tensor:
        if moments is None:
            mean, variance = (x.double() for x in running)
            if offset is not None:
                mean = mean - offset
        else:
            mean, variance = moments
            if running:
                seen = mean if offset is None else mean + offset
                unbiased = variance * (count / (count - 1))
                for kept, new in zip(running, (seen, unbiased), strict=True):
                    kept.copy_(torch.lerp(kept.double(), new, momentum))
        invstd = (variance + norm.eps).rsqrt()
        scale = invstd if norm.weight is None else norm.weight * invstd
        shift = -mean * scale if norm.bias is None else norm.bias - mean * scale
        return torch.stack((mean, invstd, scale, shift)).to(self.real)

    def fold_gradients(self, own, sums, folded, count, repeats):
        mean, invstd, scale, _ = folded.double()
        grads = None
        if own is not None:
            grads = torch.stack((own[1] * invstd, own[0])).to(self.real)
        if count:
            b = -scale * invstd.square() * sums[1] / count
            d = -scale * sums[0] / count - b * mean
        else:
            b = d = torch.zeros_like(scale)
        return grads, torch.stack((scale / repeats, b, d)).to(self.real)

    def forward(self, y, steps, folded, spec, decay, shortcut) -> Tensor:
        rows, channels = y[0].numel() // y.shape[-1], y.shape[-1]
        out = y.new_empty(steps, *y.shape[1:])
        grid, tile = self._tiles(rows, channels)
        kernels.forward[grid](
            *(y, _step(y), folded, shortcut, _step(shortcut), out, self._on(y, decay)),
            *(rows, channels, steps),
            N=_constants(spec),
            **tile,
            REAL=self._real,
        )
        return out

    def backward(self, y, steps, folded, spec, decay, grad, coefficients, write, sums):
        rows, channels = y[0].numel() // y.shape[-1], y.shape[-1]
        out = torch.empty_like(y) if write else None
        grid, tile, partial = self._slots(y, rows, channels)
        decay_slots = None
        if spec.kind == "plif":
            decay_slots = partial.new_empty(grid)
        kernels.backward[grid](
            *(y, _step(y), folded, grad, _step(grad), coefficients, out),
            *(partial if sums else None, decay_slots, self._on(y, decay)),
            *(rows, channels, steps, len(y) == 1),
            N=_constants(spec),
            **tile,
            REAL=self._real,
        )
        totals = partial.double().sum(0) if sums else None
        decay_grad = None if decay_slots is None else decay_slots.double().sum().reshape(1)
        return out, totals, decay_grad

    def affine(self, u, a, v, b, d, out) -> Tensor:
        rows, channels = u.numel() // u.shape[-1], u.shape[-1]
        grid, tile = self._tiles(rows, channels)
        kernels.affine[grid](u, a, v, b, d, out, rows, channels, **tile, REAL=self._real)
        return out

    def gradient_sums(self, grad, y, mean) -> Tensor:
        rows, channels = y.numel() // y.shape[-1], y.shape[-1]
        grid, tile, partial = self._slots(y, rows, channels)
        kernels.gradient_sums[grid](grad, y, mean, partial, rows, channels, **tile, REAL=self._real)
        return partial.double().sum(0)

    def pool(self, y, steps, folded, spec, decay, shortcut, keep):
        images, height, width, channels = y.shape[1:]
        shape = (images, (height + 1) // 2, (width + 1) // 2, channels)
        out = y.new_empty(steps, *shape)
        raw = y.new_empty(len(y), *shape) if keep else None
        codes = y.new_empty(len(y), *shape, dtype=torch.uint8) if keep else None
        grid, tile = self._tiles(math.prod(shape[:3]), channels)
        kernels.pool[grid](
            *(y, _step(y), folded, shortcut, _step(shortcut), out, raw, codes),
            *(self._on(y, decay), images, height, width, channels, steps),
            N=_constants(spec or NeuronSpec()),
            FIRE=spec is not None,
            **tile,
            REAL=self._real,
        )
        return out, raw, codes

    def unpool(self, grad, codes, size, y, coefficients):
        steps, images, _, _, channels = grad.shape
        out = grad.new_empty(steps, images, *size, channels)
        grid, tile = self._tiles(steps * images * math.prod(size), channels)
        kernels.unpool[grid](
            *(grad, codes, y, coefficients, out, steps * images, *size, channels),
            **tile,
            REAL=self._real,
        )
        return out

    def votes(self, joined, parts, wide, spec, decay, heads, keep):
        shape = (*joined.shape[:-1], joined.shape[-1] // parts)
        out, mask = joined.new_empty(shape), joined.new_empty(*shape[:-1], heads)
        scores = keys = None
        if keep:
            scores = mask.new_empty(mask.shape, dtype=self.real)
            keys = mask.new_empty(shape, dtype=torch.uint8)
        rows, head = out[0].numel() // shape[-1], shape[-1] // heads
        grid, tile = _head_tiles(rows, heads, head)
        kernels.votes[grid](
            *(joined, tuple(wide), out, mask, scores, keys, self._on(joined, decay)),
            *(rows, heads, head, shape[0], parts),
            N=_constants(spec),
            **tile,
            REAL=self._real,
        )
        return out, mask, scores, keys

    def votes_backward(self, grad, parts, wide, spec, decay, scores, keys):
        steps, channels, heads = len(grad), grad.shape[-1], scores.shape[-1]
        joined = grad.new_empty(*grad.shape[:-1], parts * channels)
        wide_grad = torch.empty_like(grad) if wide else None
        rows, head = grad[0].numel() // channels, channels // heads
        grid, tile = _head_tiles(rows, heads, head)
        slots = grad.new_empty(grid, dtype=self.real) if spec.kind == "plif" else None
        kernels.votes_backward[grid](
            *(grad, scores, keys, joined, wide_grad, slots, self._on(grad, decay)),
            *(rows, heads, head, steps, parts),
            N=_constants(spec),
            **tile,
            REAL=self._real,
        )
        decay_grad = None if slots is None else slots.double().sum().reshape(1)
        return joined, wide_grad, decay_grad

    def _tiles(self, rows: int, channels: int, rounds: int = 1):
        """Grid and tile sizes; a program takes ``rounds`` tiles of rows one after the other."""
        wide = min(128, triton.next_power_of_2(channels))
        high = max(1, 1024 // wide)
        grid = (triton.cdiv(rows, high * rounds), triton.cdiv(channels, wide))
        return grid, {"ROUNDS": rounds, "HIGH": high, "WIDE": wide}

    def _slots(self, y: Tensor, rows: int, channels: int):
        """Grid, tile sizes and ``[slots, 2, C]`` for sums: enough programs to fill a GPU."""
        (tiles, _), _ = self._tiles(rows, channels)
        rounds = triton.next_power_of_2(max(1, tiles // 512))
        grid, tile = self._tiles(rows, channels, rounds)
        return grid, tile, y.new_empty(grid[0], 2, channels, dtype=self.real)

    def _on(self, y: Tensor, decay: Tensor | float) -> Tensor:
        return decay if isinstance(decay, Tensor) else _constant(decay, self.real, y.device)


@cache
def _constant(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(value, dtype=dtype, device=device)


def _head_tiles(rows: int, heads: int, head: int):
    sizes = {"HEADS": triton.next_power_of_2(heads), "HEAD": triton.next_power_of_2(head)}
    high = max(1, 1024 // (sizes["HEADS"] * sizes["HEAD"]))
    return (triton.cdiv(rows, high),), {"HIGH": high, **sizes}


def _step(x: Tensor | None) -> int:
    """Elements from one time step to the next; 0 where all steps are the same."""
    return 0 if x is None or len(x) == 1 else x.numel() // len(x)


@cache
def _constants(spec: NeuronSpec) -> kernels.NeuronConstants:
    return kernels.NeuronConstants(
        leaky=spec.kind != "if",
        decay_input=spec.decay_input,
        # 1 / tau is exact for powers of two only; spikingjelly divides.
        tau=spec.tau if spec.kind == "lif" and math.frexp(spec.tau)[0] != 0.5 else 0.0,
        threshold=spec.threshold,
        soft=spec.v_reset is None,
        reset=spec.v_reset or 0.0,
        detach=spec.detach_reset,
        surrogate=SURROGATES.index(spec.surrogate),
        alpha=spec.alpha,
    )
