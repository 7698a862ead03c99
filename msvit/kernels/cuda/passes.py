"""The passes of kernels.py on CUDA tensors, or on the CPU in Triton's interpreter.

A program works on a tile of rows × channels and runs all T time steps in registers. Sums per
channel are written by every program to a slot of its own and added afterwards, so that results do
not depend on the order in which programs ran.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..spec import Batch, FixedNeuron, NeuronSpec, Norm
from . import kernels

Tile = dict[str, int]
"""The constants of a kernel that tell the size of its tiles."""

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INTERPRETED = not isinstance(kernels.forward, triton.JITFunction)
"""Whether ``TRITON_INTERPRET=1`` stood in the environment: the kernels take CPU tensors then."""


@cache
def backend(dtype: torch.dtype) -> TritonBackend | None:
    """The passes for activations of ``dtype``, None where they have none."""
    return TritonBackend(dtype) if dtype in DTYPES else None


class TritonBackend:
    """A :class:`msvit.kernels.spec.Backend`, whose methods are explained there."""

    head_bytes = 1

    def __init__(self, dtype: torch.dtype) -> None:
        self.real = torch.float64 if dtype == torch.float64 else torch.float32
        self._real = tl.float64 if dtype == torch.float64 else tl.float32

    def neuron(self, spec: NeuronSpec, plif_w: Tensor | None) -> FixedNeuron:
        spec.check_equations()
        # It stays on the device: reading it would wait for everything before.
        decay = 1 / spec.tau if plif_w is None else plif_w.detach().to(self.real).sigmoid()
        return FixedNeuron(spec, decay)

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

    def fold(self, norm: Norm, offset: Tensor | None, batch: Batch | None) -> Tensor:
        running = (norm.running_mean, norm.running_var)
        if batch is None:
            mean, variance = (x.double() for x in running)
            if offset is not None:
                mean = mean - offset
        else:
            mean, variance = batch.moments
            seen = mean if offset is None else mean + offset
            unbiased = variance * (batch.size / (batch.size - 1))
            for kept, new in zip(running, (seen, unbiased), strict=True):
                kept.copy_(torch.lerp(kept.double(), new, batch.momentum))
        invstd = (variance + norm.eps).rsqrt()
        scale = norm.weight * invstd
        shift = norm.bias - mean * scale
        return torch.stack((mean, invstd, scale, shift)).to(self.real)

    def fold_gradients(
        self,
        folded: Tensor,
        *,
        own: Tensor | None,
        total: Tensor | None,
        count: int,
        repeats: float,
    ) -> tuple[Tensor | None, Tensor]:
        mean, invstd, scale, _ = folded.double()
        grads = None
        if own is not None:
            grads = torch.stack((own[1] * invstd, own[0])).to(self.real)
        if count:
            assert total is not None  # without sums there is nothing that was counted
            b = -scale * invstd.square() * total[1] / count
            d = -scale * total[0] / count - b * mean
        else:
            b = d = torch.zeros_like(scale)
        return grads, torch.stack((scale / repeats, b, d)).to(self.real)

    def forward(
        self,
        y: Tensor,
        *,
        steps: int,
        folded: Tensor | None,
        neuron: FixedNeuron,
        shortcut: Tensor | None,
    ) -> Tensor:
        rows, channels = y[0].numel() // y.shape[-1], y.shape[-1]
        out = y.new_empty(steps, *y.shape[1:])
        grid, tile = self._tiles(rows, channels)
        kernels.forward[grid](
            *(y, _step(y), folded, shortcut, _step(shortcut), out, self._decay(neuron, y)),
            *(rows, channels, steps),
            N=neuron.spec,
            **tile,
            REAL=self._real,
        )
        return out

    def backward(
        self,
        y: Tensor,
        grad: Tensor,
        *,
        steps: int,
        folded: Tensor | None,
        neuron: FixedNeuron,
        coefficients: Tensor | None,
        write: bool,
        sums: bool,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        rows, channels = y[0].numel() // y.shape[-1], y.shape[-1]
        out = torch.empty_like(y) if write else None
        grid, tile, partial = self._slots(y, rows, channels)
        decay_slots = partial.new_empty(grid) if neuron.spec.kind == "plif" else None
        kernels.backward[grid](
            *(y, _step(y), folded, grad, _step(grad), coefficients, out),
            *(partial if sums else None, decay_slots, self._decay(neuron, y)),
            *(rows, channels, steps, len(y) == 1),
            N=neuron.spec,
            **tile,
            REAL=self._real,
        )
        totals = partial.double().sum(0) if sums else None
        return out, totals, _total(decay_slots)

    def affine(
        self,
        u: Tensor,
        a: Tensor,
        v: Tensor | None,
        b: Tensor | None,
        d: Tensor,
        out: Tensor,
    ) -> Tensor:
        rows, channels = u.numel() // u.shape[-1], u.shape[-1]
        grid, tile = self._tiles(rows, channels)
        kernels.affine[grid](u, a, v, b, d, out, rows, channels, **tile, REAL=self._real)
        return out

    def gradient_sums(self, grad: Tensor, y: Tensor, mean: Tensor) -> Tensor:
        rows, channels = y.numel() // y.shape[-1], y.shape[-1]
        grid, tile, partial = self._slots(y, rows, channels)
        kernels.gradient_sums[grid](grad, y, mean, partial, rows, channels, **tile, REAL=self._real)
        return partial.double().sum(0)

    def max_pool(
        self,
        y: Tensor,
        *,
        steps: int,
        folded: Tensor | None,
        neuron: FixedNeuron | None,
        shortcut: Tensor | None,
        keep: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        images, height, width, channels = y.shape[1:]
        shape = (images, (height + 1) // 2, (width + 1) // 2, channels)
        out = y.new_empty(steps, *shape)
        raw = y.new_empty(len(y), *shape) if keep else None
        codes = y.new_empty(len(y), *shape, dtype=torch.uint8) if keep else None
        grid, tile = self._tiles(math.prod(shape[:3]), channels)
        used = neuron or self.neuron(NeuronSpec(), None)  # the kernel wants one, if only to see it
        kernels.max_pool[grid](
            *(y, _step(y), folded, shortcut, _step(shortcut), out, raw, codes),
            *(self._decay(used, y), images, height, width, channels, steps),
            N=used.spec,
            FIRE=neuron is not None,
            **tile,
            REAL=self._real,
        )
        return out, raw, codes

    def max_pool_backward(
        self,
        grad: Tensor,
        codes: Tensor,
        *,
        size: Sequence[int],
        y: Tensor | None,
        coefficients: Tensor | None,
    ) -> Tensor:
        steps, images, _, _, channels = grad.shape
        out = grad.new_empty(steps, images, *size, channels)
        grid, tile = self._tiles(steps * images * math.prod(size), channels)
        kernels.max_pool_backward[grid](
            *(grad, codes, y, coefficients, out, steps * images, *size, channels),
            **tile,
            REAL=self._real,
        )
        return out

    def token_attention(
        self,
        joined: Tensor,
        wide: Sequence[Tensor],
        *,
        parts: int,
        neuron: FixedNeuron,
        heads: int,
        keep: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        shape = (*joined.shape[:-1], joined.shape[-1] // parts)
        out, mask = joined.new_empty(shape), joined.new_empty(*shape[:-1], heads)
        scores = keys = None
        if keep:
            scores = mask.new_empty(mask.shape, dtype=self.real)
            keys = mask.new_empty(shape, dtype=torch.uint8)
        rows, head = out[0].numel() // shape[-1], shape[-1] // heads
        grid, tile = _head_tiles(rows, heads, head)
        kernels.token_attention[grid](
            *(joined, tuple(wide), out, mask, scores, keys, self._decay(neuron, joined)),
            *(rows, heads, head, shape[0], parts),
            N=neuron.spec,
            **tile,
            REAL=self._real,
        )
        return out, mask, scores, keys

    def token_attention_backward(
        self,
        grad: Tensor,
        scores: Tensor,
        keys: Tensor,
        *,
        parts: int,
        wide: bool,
        neuron: FixedNeuron,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        steps, channels, heads = len(grad), grad.shape[-1], scores.shape[-1]
        joined = grad.new_empty(*grad.shape[:-1], parts * channels)
        wide_grad = torch.empty_like(grad) if wide else None
        rows, head = grad[0].numel() // channels, channels // heads
        grid, tile = _head_tiles(rows, heads, head)
        slots = grad.new_empty(grid, dtype=self.real) if neuron.spec.kind == "plif" else None
        kernels.token_attention_backward[grid](
            *(grad, scores, keys, joined, wide_grad, slots, self._decay(neuron, grad)),
            *(rows, heads, head, steps, parts),
            N=neuron.spec,
            **tile,
            REAL=self._real,
        )
        return joined, wide_grad, _total(slots)

    def _tiles(self, rows: int, channels: int, rounds: int = 1) -> tuple[tuple[int, int], Tile]:
        """Grid and tile sizes; a program takes ``rounds`` tiles of rows one after the other."""
        wide = min(128, triton.next_power_of_2(channels))
        high = max(1, 1024 // wide)
        grid = (triton.cdiv(rows, high * rounds), triton.cdiv(channels, wide))
        return grid, {"ROUNDS": rounds, "HIGH": high, "WIDE": wide}

    def _slots(self, y: Tensor, rows: int, channels: int) -> tuple[tuple[int, int], Tile, Tensor]:
        """Grid, tile sizes and ``[slots, 2, C]`` for sums: enough programs to fill a GPU."""
        (tiles, _), _ = self._tiles(rows, channels)
        rounds = triton.next_power_of_2(max(1, tiles // 512))
        grid, tile = self._tiles(rows, channels, rounds)
        return grid, tile, y.new_empty(grid[0], 2, channels, dtype=self.real)

    def _decay(self, neuron: FixedNeuron, y: Tensor) -> Tensor:
        """The decay as a scalar beside ``y``."""
        decay = neuron.decay
        return decay if isinstance(decay, Tensor) else _constant(decay, self.real, y.device)


@cache
def _constant(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(value, dtype=dtype, device=device)


def _head_tiles(rows: int, heads: int, head: int) -> tuple[tuple[int], Tile]:
    sizes = {"HEADS": triton.next_power_of_2(heads), "HEAD": triton.next_power_of_2(head)}
    high = max(1, 1024 // (sizes["HEADS"] * sizes["HEAD"]))
    return (triton.cdiv(rows, high),), {"HIGH": high, **sizes}


def _step(x: Tensor | None) -> int:
    """Elements from one time step to the next; 0 where all steps are the same."""
    return 0 if x is None or len(x) == 1 else x.numel() // len(x)


def _total(slots: Tensor | None) -> Tensor | None:
    return None if slots is None else slots.double().sum().reshape(1)
