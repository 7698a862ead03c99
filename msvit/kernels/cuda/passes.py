"""The passes of kernels.py on CUDA tensors, or on the CPU in Triton's interpreter.

A program works on a tile of rows × channels and runs all T time steps in registers. Sums per
channel are written by every program to a slot of its own and added afterwards, so that results do
not depend on the order in which programs ran. Nothing here waits for the device, so that all of it
can be captured in a CUDA graph.
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

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INTERPRETED = not isinstance(kernels.forward, triton.JITFunction)
"""Whether ``TRITON_INTERPRET=1`` stood in the environment: the kernels take CPU tensors then."""

# What the sizes of a tile follow from; none of it is a property of one card.
LANES = 128  # threads of a program, Triton's 4 warps
LOAD_BYTES = 16  # the widest load of a thread
STEPS = 8  # so many time steps are held in registers all at once,
CHUNK = 4  # more of them come in chunks of about so many
HELD = 32  # values that a thread holds of a tile: channels × time steps; more of them spill
PROGRAMS = 2048  # that share the rows where sums are taken: several for every multiprocessor


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
        rows = y.numel() // y.shape[-1]
        mean, square = self._moments(y).double().sum(0) / rows
        some = y.reshape(rows, -1)
        pivot = torch.stack([some[rows * i // 4] for i in (1, 2, 3)]).to(self.real).median(0).values
        return torch.stack((mean + pivot, (square - mean * mean).clamp_min(0)))

    def fold(self, norm: Norm, offset: Tensor | None, batch: Batch | None) -> Tensor:
        channels = norm.weight.shape[-1]
        folded = norm.weight.new_empty(4, channels)
        y = partial = moments = count = None
        if batch is not None:
            y, moments, count = batch
            partial = self._moments(y) if moments is None else None
            if norm.momentum is None:
                norm.num_batches_tracked.add_(1)
        grid, tile = _folding(channels)
        kernels.fold[grid](
            *(y, 0 if y is None else y.numel() // channels, partial, _slots(partial)),
            *(moments, count, norm.weight, norm.bias, offset),
            *(norm.running_mean, norm.running_var, norm.num_batches_tracked, folded, channels),
            EPS=norm.eps,
            MOMENTUM=norm.momentum,
            **tile,
            REAL=self._real,
        )
        return folded

    def fold_gradients(
        self,
        folded: Tensor,
        *,
        own: Tensor | None,
        total: Tensor | None,
        count: int,
        repeats: float,
    ) -> tuple[Tensor | None, Tensor]:
        channels = folded.shape[-1]
        grads = None if own is None else folded.new_empty(2, channels)
        coefficients = folded.new_empty(3, channels)
        grid, tile = _folding(channels)
        kernels.fold_gradients[grid](
            *(own, _slots(own), None if total is own else total, _slots(total), folded),
            *(grads, coefficients, count or None, repeats, channels),
            **tile,
        )
        return grads, coefficients

    def forward(
        self,
        y: Tensor,
        *,
        steps: int,
        folded: Tensor | None,
        neuron: FixedNeuron,
        shortcut: Tensor | None,
    ) -> Tensor:
        rows, channels = _sizes(y, folded)
        out = y.new_empty(steps, *y.shape[1:])
        grid, tile = _tiles(rows, channels, y.itemsize, steps)
        kernels.forward[grid](
            *(y, _step(y), folded, shortcut, _step(shortcut), out, _step(out), _decay(neuron)),
            *(rows, channels, steps, _chunk(steps), len(y) == 1),
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
        rows, channels = _sizes(y, folded)
        out = torch.empty_like(y) if write else None
        grid, tile, rounds, slots = _shares(rows, channels, y.itemsize, steps)
        partial = y.new_empty(slots, 2, channels, dtype=self.real) if sums else None
        decay_slots = y.new_empty(grid, dtype=self.real) if neuron.spec.kind == "plif" else None
        kernels.backward[grid](
            *(y, _step(y), folded, grad, _step(grad), coefficients, out, _step(out)),
            *(self._borders(y[0], steps), rows * channels, partial, decay_slots, _decay(neuron)),
            *(rows, channels, rounds, steps, _chunk(steps), len(y) == 1),
            N=neuron.spec,
            **tile,
            REAL=self._real,
        )
        return out, partial, self._plif_gradient(decay_slots, neuron)

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
        grid, tile = _tiles(rows, channels, u.itemsize)
        kernels.affine[grid](u, a, v, b, d, out, rows, channels, **tile, REAL=self._real)
        return out

    def gradient_sums(self, grad: Tensor, y: Tensor, mean: Tensor) -> Tensor:
        rows, channels = y.numel() // y.shape[-1], y.shape[-1]
        grid, tile, rounds, slots = _shares(rows, channels, y.itemsize, at_once=2)
        partial = y.new_empty(slots, 2, channels, dtype=self.real)
        kernels.gradient_sums[grid](
            *(grad, y, mean, partial, rows, channels, rounds), 2, **tile, REAL=self._real
        )
        return partial

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
        grid, tile = _tiles(math.prod(shape[:3]), channels, y.itemsize)
        used = neuron or self.neuron(NeuronSpec(), None)  # the kernel wants one, if only to see it
        kernels.max_pool[grid](
            *(y, _step(y), folded, shortcut, _step(shortcut), out, _step(out), raw, codes),
            *(_decay(used), images, height, width, channels, steps, len(y) == 1),
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
        grid, tile = _tiles(steps * images * math.prod(size), channels, grad.itemsize)
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
        grid, tile = _head_tiles(rows, heads, head, joined.itemsize)
        kernels.token_attention[grid](
            *(joined, tuple(wide), out, mask, scores, keys, _decay(neuron)),
            *(rows, heads, shape[0], _chunk(shape[0]), parts),
            N=neuron.spec,
            HEAD=head,
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
        grid, tile = _head_tiles(rows, heads, head, grad.itemsize)
        slots = grad.new_empty(grid, dtype=self.real) if neuron.spec.kind == "plif" else None
        kernels.token_attention_backward[grid](
            *(grad, scores, keys, joined, wide_grad, self._borders(scores[0], steps)),
            *(slots, _decay(neuron), rows, heads, steps, _chunk(steps), parts),
            N=neuron.spec,
            HEAD=head,
            **tile,
            REAL=self._real,
        )
        return joined, wide_grad, self._plif_gradient(slots, neuron)

    def _moments(self, y: Tensor) -> Tensor:
        """Sums of y - pivot and its square, ``[slots, 2, C]``; the pivot is y's to tell."""
        rows, channels = y.numel() // y.shape[-1], y.shape[-1]
        grid, tile, rounds, slots = _shares(rows, channels, y.itemsize, at_once=4)
        partial = y.new_empty(slots, 2, channels, dtype=self.real)
        kernels.moments[grid](y, partial, rows, channels, rounds, 4, **tile, REAL=self._real)
        return partial

    def _borders(self, like: Tensor, steps: int) -> Tensor | None:
        """Room for the potentials between chunks of time steps, None where there is one chunk."""
        chunks = triton.cdiv(steps, _chunk(steps))
        return None if chunks == 1 else like.new_empty(chunks - 1, *like.shape, dtype=self.real)

    def _plif_gradient(self, slots: Tensor | None, neuron: FixedNeuron) -> Tensor | None:
        if slots is None:
            return None
        grad = slots.new_empty(())
        kernels.fold_decay[(1,)](slots, len(slots), neuron.decay, grad, WIDE=8 * LANES)
        return grad


_Launch = tuple[tuple[int], dict[str, int]]
"""Grid and tile sizes."""


def _tiles(rows: int, channels: int, itemsize: int, steps: int = 1) -> _Launch:
    """Of a pass that holds ``steps`` time steps of a tile in registers."""
    wide = _width(channels)
    per_thread = min(LOAD_BYTES // itemsize, HELD // triton.next_power_of_2(min(steps, STEPS)))
    high = max(1, per_thread * LANES // wide)
    if rows == 1:  # nothing to tell channels apart by
        wide, high = wide * high, 1
    return (triton.cdiv(rows, high) * triton.cdiv(channels, wide),), {"HIGH": high, "WIDE": wide}


def _width(channels: int) -> int:
    """Channels of a tile: a power of two, the widest of those that leave the fewest lanes idle."""
    if channels <= 16:
        return triton.next_power_of_2(channels)
    return min((128, 64, 32, 16), key=lambda wide: triton.cdiv(channels, wide) * wide)


def _shares(
    rows: int, channels: int, itemsize: int, steps: int = 1, at_once: int = 1
) -> tuple[tuple[int], dict[str, int], int, int]:
    """Grid, tile sizes, tiles of a band (a multiple of ``at_once``) and bands, for sums."""
    (tiles,), tile = _tiles(rows, channels, itemsize, steps)
    blocks = triton.cdiv(channels, tile["WIDE"])
    rounds = triton.cdiv(triton.cdiv(tiles, PROGRAMS), at_once) * at_once
    bands = triton.cdiv(rows, tile["HIGH"] * rounds)
    return (bands * blocks,), tile, rounds, bands


def _chunk(steps: int) -> int:
    """Time steps in registers at once: T, or an even share of it."""
    return steps if steps <= STEPS else triton.cdiv(steps, triton.cdiv(steps, CHUNK))


def _folding(channels: int) -> _Launch:
    """Of what adds up slots: a sector of memory wide, as high as registers allow."""
    wide = min(8, triton.next_power_of_2(channels))
    return (triton.cdiv(channels, wide),), {"HIGH": 8 * LANES // wide, "WIDE": wide}


def _head_tiles(rows: int, heads: int, head: int, itemsize: int) -> _Launch:
    sizes = {"HEADS": triton.next_power_of_2(heads), "WIDE": triton.next_power_of_2(head)}
    high = max(1, LOAD_BYTES // itemsize * LANES // (sizes["HEADS"] * sizes["WIDE"]))
    return (triton.cdiv(rows, high),), {"HIGH": high, **sizes}


def _sizes(y: Tensor, folded: Tensor | None) -> tuple[int, int]:
    """Rows and channels; without a norm there are no channels to tell apart."""
    elements = y.numel() // len(y)
    return (1, elements) if folded is None else (elements // y.shape[-1], y.shape[-1])


def _step(x: Tensor | None) -> int:
    """Elements from one time step to the next; 0 where all steps are the same."""
    return 0 if x is None or len(x) == 1 else x.numel() // len(x)


def _slots(sums: Tensor | None) -> int:
    return 0 if sums is None else len(sums)


def _decay(neuron: FixedNeuron) -> Tensor | None:
    """What a PLIF has learned; the kernels know the others' by their spec."""
    return neuron.decay if isinstance(neuron.decay, Tensor) else None
