"""The passes of units.cpp on CPU tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from ctypes import POINTER, c_double, c_int, c_int32, c_int64, c_void_p
from functools import cache, lru_cache

import torch
from torch import Tensor

from msvit.neuron_kinds import SURROGATES

from ..spec import Batch, FixedNeuron, NeuronSpec, Norm
from . import build


class _Neuron(ctypes.Structure):
    _fields_ = (
        *((name, c_int32) for name in build.NEURON_FLAGS),
        *((name, c_double) for name in build.NEURON_NUMBERS),
    )


_P, _I, _D, _T, _N = c_void_p, c_int64, c_double, c_int, POINTER(_Neuron)
_SIGNATURES = {
    "unit_moments": (_P, _I, _I, _P, _T),
    "unit_fold": (_P, _D, _P, _P, _P, _D, _P, _P, _D, _P, _I),
    "unit_fold_gradients": (_P, _P, _P, _D, _D, _P, _P, _I),
    "unit_forward": (_P, _I, _P, _P, _P, _I, _P, _I, _I, _I, _N, _T),
    "unit_backward": (*(_P, _I, _P, _P, _P, _P, _I, _P, _P, _P, _P), _I, _I, _I, _N, _P, _P, _T),
    "unit_affine": (_P, _P, _P, _P, _P, _P, _I, _I, _T),
    "unit_gradient_sums": (_P, _P, _P, _P, _I, _I, _T),
    "unit_max_pool": (_P, _I, _P, _P, _P, _I, _P, _P, _P, _I, _I, _I, _I, _I, _N, _T),
    "unit_max_pool_backward": (_P, _P, _P, _P, _P, _P, _P, _I, _I, _I, _I, _I, _T),
    "unit_token_attention": (_P, _P, _I, _I, _P, _P, _P, _P, _I, _I, _I, _I, _N, _T),
    "unit_token_attention_backward": (_P, _P, _P, _I, _P, _P, _I, _I, _I, _I, _N, _P, _T),
}


@cache
def backend(dtype: torch.dtype) -> CppBackend | None:
    """The passes for activations of ``dtype``, None where they cannot be compiled."""
    library = build.units(dtype)
    return None if library is None else CppBackend(library, dtype)


class CppBackend:
    """A :class:`msvit.kernels.spec.Backend`, whose methods are explained there."""

    head_bytes = 8  # a head's channels are worked on in words of this size

    # The functions of _SIGNATURES.
    _moments: Callable[..., None]
    _fold: Callable[..., None]
    _fold_gradients: Callable[..., None]
    _forward: Callable[..., None]
    _backward: Callable[..., None]
    _affine: Callable[..., None]
    _gradient_sums: Callable[..., None]
    _max_pool: Callable[..., None]
    _max_pool_backward: Callable[..., None]
    _token_attention: Callable[..., None]
    _token_attention_backward: Callable[..., None]

    def __init__(self, library: ctypes.CDLL, dtype: torch.dtype) -> None:
        self.real = torch.float64 if dtype == torch.float64 else torch.float32
        for name, arguments in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, None
            setattr(self, "_" + name.removeprefix("unit_"), function)
        library.unit_padded.argtypes, library.unit_padded.restype = (c_int64,), c_int64
        self._padded = library.unit_padded

    def neuron(self, spec: NeuronSpec, plif_w: Tensor | None) -> FixedNeuron:
        if plif_w is None:
            return FixedNeuron(spec, 1 / spec.tau)
        return FixedNeuron(spec, float(plif_w.detach().to(self.real).sigmoid()))

    def moments(self, y: Tensor) -> Tensor:
        channels = y.shape[-1]
        out = torch.empty(2, channels, dtype=torch.float64)
        rows = y.numel() // channels
        self._moments(y.data_ptr(), rows, channels, out.data_ptr(), _threads())
        return out

    def fold(self, norm: Norm, offset: Tensor | None, batch: Batch | None) -> Tensor:
        moments, count = None, 0
        momentum: float | None = 0.0
        if batch is not None:
            moments = self.moments(batch.y) if batch.moments is None else batch.moments
            count, momentum = batch.size, norm.momentum
            norm.num_batches_tracked.add_(1)
            if momentum is None:
                momentum = 1.0 / float(norm.num_batches_tracked)
        mean, var = norm.running_mean, norm.running_var
        channels = mean.shape[-1]
        out = torch.empty(4, channels, dtype=self.real)
        self._fold(
            *(_pointer(moments), count),
            *(norm.weight.data_ptr(), norm.bias.data_ptr(), _pointer(offset), norm.eps),
            *(mean.data_ptr(), var.data_ptr(), momentum or 0.0, out.data_ptr(), channels),
        )
        return out

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
        self._fold_gradients(
            *(_pointer(own), _pointer(total), folded.data_ptr(), count, repeats),
            *(_pointer(grads), coefficients.data_ptr(), channels),
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
        _, _, scale, shift = _rows(folded, 4)
        self._forward(
            *(y.data_ptr(), _step(y), scale, shift),
            *(_pointer(shortcut), 0 if shortcut is None else _step(shortcut)),
            *(out.data_ptr(), steps, rows, channels, _neuron(neuron), _threads()),
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
        totals = torch.empty(1, 2, channels, dtype=torch.float64) if sums else None
        decay_grad = _decay_gradient(neuron)
        mean, _, scale, shift = _rows(folded, 4)
        static = _step(y) if y.shape[0] == steps else 0
        self._backward(
            *(y.data_ptr(), static, scale, shift, mean),
            *(grad.data_ptr(), _step(grad), *_rows(coefficients, 3), _pointer(out)),
            *(steps, rows, channels, _neuron(neuron)),
            *(_pointer(totals), _pointer(decay_grad), _threads()),
        )
        return out, totals, _plif_gradient(decay_grad, neuron, self.real)

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
        pointers = (_pointer(p) for p in (u, a, v, b, d, out))
        self._affine(*pointers, rows, channels, _threads())
        return out

    def gradient_sums(self, grad: Tensor, y: Tensor, mean: Tensor) -> Tensor:
        rows, channels = y.numel() // y.shape[-1], y.shape[-1]
        out = torch.empty(1, 2, channels, dtype=torch.float64)
        pointers = (_pointer(p) for p in (grad, y, mean, out))
        self._gradient_sums(*pointers, rows, channels, _threads())
        return out

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
        codes = None
        if keep:
            codes = torch.empty(len(y), *shape[:-1], self._padded(channels), dtype=torch.uint8)
        _, _, scale, shift = _rows(folded, 4)
        self._max_pool(
            *(y.data_ptr(), _step(y), scale, shift),
            *(_pointer(shortcut), 0 if shortcut is None else _step(shortcut)),
            *(out.data_ptr(), _pointer(raw), _pointer(codes)),
            *(steps, images, height, width, channels),
            *(None if neuron is None else _neuron(neuron), _threads()),
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
        self._max_pool_backward(
            *(grad.data_ptr(), codes.data_ptr(), _pointer(y)),
            *(_rows(coefficients, 3)),
            *(out.data_ptr(), steps, images, *size, channels, _threads()),
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
            scores = torch.empty(mask.shape, dtype=self.real)
            keys = torch.empty(*shape[:-1], self._padded(shape[-1]), dtype=torch.uint8)
        pointers = (c_void_p * max(len(wide), 1))(*(x.data_ptr() for x in wide))
        self._token_attention(
            *(joined.data_ptr(), pointers, parts, len(wide), out.data_ptr(), mask.data_ptr()),
            *(_pointer(scores), _pointer(keys)),
            *(shape[0], out[0].numel() // shape[-1], shape[-1], heads),
            *(_neuron(neuron), _threads()),
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
        decay_grad = _decay_gradient(neuron)
        self._token_attention_backward(
            *(grad.data_ptr(), scores.data_ptr(), keys.data_ptr(), parts),
            *(joined.data_ptr(), _pointer(wide_grad)),
            *(steps, grad[0].numel() // channels, channels, heads),
            *(_neuron(neuron), _pointer(decay_grad), _threads()),
        )
        return joined, wide_grad, _plif_gradient(decay_grad, neuron, self.real)


def _threads() -> int:
    return torch.get_num_threads()


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _rows(table: Tensor | None, count: int) -> list[int | None]:
    """Pointers to the rows of a ``[count, C]`` table."""
    if table is None:
        return [None] * count
    step = table.shape[-1] * table.element_size()
    return [table.data_ptr() + i * step for i in range(count)]


def _step(x: Tensor) -> int:
    """Elements from one time step to the next; 0 where all steps are the same."""
    return x.numel() // x.shape[0] if x.shape[0] > 1 else 0


def _sizes(y: Tensor, folded: Tensor | None) -> tuple[int, int]:
    """Rows and channels; without a norm there are no channels to tell apart."""
    elements = y.numel() // y.shape[0]
    channels = elements if folded is None else y.shape[-1]
    return elements // max(channels, 1), channels


def _decay_gradient(neuron: FixedNeuron) -> Tensor | None:
    return torch.empty(1, dtype=torch.float64) if neuron.spec.kind == "plif" else None


def _plif_gradient(
    decay_grad: Tensor | None, neuron: FixedNeuron, dtype: torch.dtype
) -> Tensor | None:
    """From the gradient of ``sigmoid(w)`` to that of ``w``, a scalar."""
    if decay_grad is None:
        return None
    decay = neuron.decay
    return (decay_grad * (decay * (1.0 - decay))).to(dtype).reshape(())


@lru_cache(1024)  # the decay of a PLIF changes with every update
def _neuron(neuron: FixedNeuron) -> _Neuron:
    spec = neuron.spec
    spec.check_equations()
    return _Neuron(
        leaks=spec.leaks,
        decay_input=spec.decay_input,
        divides=spec.divides,
        hard_reset=spec.hard_reset,
        detach_reset=spec.detach_reset,
        surrogate=SURROGATES.index(spec.surrogate),
        tau=spec.tau,
        decay=neuron.decay,
        threshold=spec.threshold,
        alpha=spec.alpha,
    )
