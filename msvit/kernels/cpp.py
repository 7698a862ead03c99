"""The passes of units.cpp and the products of products.cpp on CPU tensors.

A backend of passes is an object with these methods; the Triton one has the same. ``y``,
``shortcut`` and ``grad`` are contiguous ``[t, R, C]`` with ``t`` the time steps or 1 (every step is
the same), ``R`` any number of axes. ``folded`` is ``[4, C]``: mean, 1/std, scale, shift.
"""

from __future__ import annotations

import ctypes
import math
from ctypes import POINTER, c_double, c_int, c_int32, c_int64, c_void_p
from functools import cache

import torch
from torch import Tensor

from . import build
from .spec import SURROGATES, NeuronSpec

_READ_BEHIND = 64
STORAGE = {torch.float32: "float", torch.float64: "double", torch.bfloat16: "bf16"}


class _Neuron(ctypes.Structure):
    _fields_ = (
        *((name, c_int32) for name in ("leaky", "decay_input", "divide")),
        *((name, c_int32) for name in ("soft_reset", "detach_reset", "surrogate")),
        *((name, c_double) for name in ("tau", "decay", "threshold", "reset", "alpha")),
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
    "unit_pool": (_P, _I, _P, _P, _P, _I, _P, _P, _P, _I, _I, _I, _I, _I, _N, _T),
    "unit_unpool": (_P, _P, _P, _P, _P, _P, _P, _I, _I, _I, _I, _I, _T),
    "unit_votes": (_P, _P, _I, _I, _P, _P, _P, _P, _I, _I, _I, _I, _N, _T),
    "unit_votes_backward": (_P, _P, _P, _I, _P, _P, _I, _I, _I, _I, _N, _P, _T),
    "unit_to_bytes": (_P, _P, _I, _T),
    "unit_from_bytes": (_P, _P, _I, _T),
}


@cache
def passes(dtype: torch.dtype) -> Passes | None:
    """The passes for activations of ``dtype``, None where they cannot be compiled."""
    library = build.units(STORAGE[dtype]) if dtype in STORAGE else None
    return None if library is None else Passes(library, dtype)


class Passes:
    head_bytes = 8  # a head's channels are worked on in words of this size

    def __init__(self, library: ctypes.CDLL, dtype: torch.dtype) -> None:
        self.real = torch.float64 if dtype == torch.float64 else torch.float32
        for name, arguments in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, None
            setattr(self, "_" + name.removeprefix("unit_"), function)
        self._to_bytes.restype = c_int64
        library.unit_padded.argtypes, library.unit_padded.restype = (c_int64,), c_int64
        self._padded = library.unit_padded

    def decay(self, spec: NeuronSpec, plif_w: Tensor | None) -> float:
        """How much of the difference a potential makes up in one step."""
        return 1 / spec.tau if plif_w is None else float(plif_w.detach().to(self.real).sigmoid())

    def moments(self, y: Tensor) -> Tensor:
        """Mean and biased variance ``[2, C]`` (float64) over all but the last axis."""
        channels = y.shape[-1]
        out = torch.empty(2, channels, dtype=torch.float64)
        rows = y.numel() // channels
        self._moments(y.data_ptr(), rows, channels, out.data_ptr(), _threads())
        return out

    def fold(self, moments, count, norm, offset, running, momentum) -> Tensor:
        """``[4, C]`` mean, 1/std, scale, shift of ``norm``.

        From ``moments``, towards which ``running`` (mean, variance; None: neither) moves, or,
        where they are None, from ``running``.
        """
        mean, var = running or (None, None)
        channels = (mean if moments is None else moments).shape[-1]
        out = torch.empty(4, channels, dtype=self.real)
        self._fold(
            *(_pointer(moments), count),
            *(_pointer(norm.weight), _pointer(norm.bias), _pointer(offset), norm.eps),
            *(_pointer(mean), _pointer(var), momentum, out.data_ptr(), channels),
        )
        return out

    def fold_gradients(self, own, sums, folded, count, repeats) -> tuple[Tensor, Tensor]:
        """Gradients of (weight, bias) ``[2, C]`` and the (a, b, d) ``[3, C]`` of a·g + b·y + d.

        ``own`` are the sums of this process (None: no gradients wanted), ``sums`` those of all.
        """
        channels = folded.shape[-1]
        grads, coefficients = folded.new_empty(2, channels), folded.new_empty(3, channels)
        pointers = (_pointer(own), _pointer(sums), folded.data_ptr())
        outputs = (grads.data_ptr(), coefficients.data_ptr())
        self._fold_gradients(*pointers, count, repeats, *outputs, channels)
        return grads, coefficients

    def forward(self, y, steps, folded, spec, decay, shortcut) -> Tensor:
        """Norm (``folded`` None: none) → neuron → + shortcut (or None), ``[T, R, C]``."""
        rows, channels = _sizes(y, folded)
        out = y.new_empty(steps, *y.shape[1:])
        _, _, scale, shift = _rows(folded, 4)
        self._forward(
            *(y.data_ptr(), _step(y), scale, shift),
            *(_pointer(shortcut), 0 if shortcut is None else _step(shortcut)),
            *(out.data_ptr(), steps, rows, channels, _neuron(spec, decay), _threads()),
        )
        return out

    def backward(self, y, steps, folded, spec, decay, grad, coefficients, write, sums):
        """Gradient of the neuron's input, through the norm where ``coefficients`` are given.

        Returns it (None unless ``write``; summed over time where ``y`` has one step), the sums
        over g and g·(y - mean) ``[2, C]`` (None unless ``sums``) and the gradient of the decay
        (None unless ``plif``).
        """
        rows, channels = _sizes(y, folded)
        out = torch.empty_like(y) if write else None
        totals = torch.empty(2, channels, dtype=torch.float64) if sums else None
        decay_grad = torch.empty(1, dtype=torch.float64) if spec.kind == "plif" else None
        mean, _, scale, shift = _rows(folded, 4)
        static = _step(y) if y.shape[0] == steps else 0
        self._backward(
            *(y.data_ptr(), static, scale, shift, mean),
            *(grad.data_ptr(), _step(grad), *_rows(coefficients, 3), _pointer(out)),
            *(steps, rows, channels, _neuron(spec, decay)),
            *(_pointer(totals), _pointer(decay_grad), _threads()),
        )
        return out, totals, decay_grad

    def affine(self, u, a, v, b, d, out) -> Tensor:
        """``out = a·u + b·v + d`` per channel; ``b`` None: 1, ``v`` None: 0; ``out`` may be u."""
        rows, channels = u.numel() // u.shape[-1], u.shape[-1]
        pointers = (_pointer(p) for p in (u, a, v, b, d, out))
        self._affine(*pointers, rows, channels, _threads())
        return out

    def gradient_sums(self, grad, y, mean) -> Tensor:
        """Sums over g and g·(y - mean), ``[2, C]`` (float64)."""
        rows, channels = y.numel() // y.shape[-1], y.shape[-1]
        out = torch.empty(2, channels, dtype=torch.float64)
        pointers = (_pointer(p) for p in (grad, y, mean, out))
        self._gradient_sums(*pointers, rows, channels, _threads())
        return out

    def pool(self, y, steps, folded, spec, decay, shortcut, keep):
        """Norm → max pool of ``[t, B, H, W, C]`` → neuron (→ + shortcut), ``[T, B, H', W', C]``.

        ``folded``, ``spec`` and ``shortcut`` may be None. With ``keep``, y at the maxima and codes
        of where they are follow, else None and None.
        """
        images, height, width, channels = y.shape[1:]
        shape = (images, (height + 1) // 2, (width + 1) // 2, channels)
        out = y.new_empty(steps, *shape)
        raw = y.new_empty(len(y), *shape) if keep else None
        codes = None
        if keep:
            codes = torch.empty(len(y), *shape[:-1], self._padded(channels), dtype=torch.uint8)
        _, _, scale, shift = _rows(folded, 4)
        self._pool(
            *(y.data_ptr(), _step(y), scale, shift),
            *(_pointer(shortcut), 0 if shortcut is None else _step(shortcut)),
            *(out.data_ptr(), _pointer(raw), _pointer(codes)),
            *(steps, images, height, width, channels),
            *(None if spec is None else _neuron(spec, decay), _threads()),
        )
        return out, raw, codes

    def unpool(self, grad, codes, size, y, coefficients):
        """Gradient of what was pooled, ``[t, B, *size, C]``: g, or a·g + b·y + d."""
        steps, images, _, _, channels = grad.shape
        shape = (steps, images, *size, channels)
        out = grad.new_empty(shape)
        self._unpool(
            *(grad.data_ptr(), codes.data_ptr(), _pointer(y)),
            *(_rows(coefficients, 3)),
            *(out.data_ptr(), steps, images, *size, channels, _threads()),
        )
        return out

    def votes(self, joined, parts, wide, spec, decay, heads, keep):
        """Token attention: masked keys, mask; with ``keep`` scores and keys as bytes, else None."""
        shape = (*joined.shape[:-1], joined.shape[-1] // parts)
        out, mask = joined.new_empty(shape), joined.new_empty(*shape[:-1], heads)
        scores = keys = None
        if keep:
            scores = torch.empty(mask.shape, dtype=self.real)
            keys = torch.empty(*shape[:-1], self._padded(shape[-1]), dtype=torch.uint8)
        pointers = (c_void_p * max(len(wide), 1))(*(x.data_ptr() for x in wide))
        self._votes(
            *(joined.data_ptr(), pointers, parts, len(wide), out.data_ptr(), mask.data_ptr()),
            *(_pointer(scores), _pointer(keys)),
            *(shape[0], out[0].numel() // shape[-1], shape[-1], heads),
            *(_neuron(spec, decay), _threads()),
        )
        return out, mask, scores, keys

    def votes_backward(self, grad, parts, wide, spec, decay, scores, keys):
        """Gradients of ``joined``, of each wide vote (None unless ``wide``) and of the decay."""
        steps, channels, heads = len(grad), grad.shape[-1], scores.shape[-1]
        joined = grad.new_empty(*grad.shape[:-1], parts * channels)
        wide_grad = torch.empty_like(grad) if wide else None
        decay_grad = torch.empty(1, dtype=torch.float64) if spec.kind == "plif" else None
        self._votes_backward(
            *(grad.data_ptr(), scores.data_ptr(), keys.data_ptr(), parts),
            *(joined.data_ptr(), _pointer(wide_grad)),
            *(steps, grad[0].numel() // channels, channels, heads),
            *(_neuron(spec, decay), _pointer(decay_grad), _threads()),
        )
        return joined, wide_grad, decay_grad

    def to_bytes(self, x: Tensor) -> tuple[Tensor, int] | None:
        """The values of dense ``x`` in the order of its memory, and their sum.

        None unless all are 0, 1 … 255. Behind the bytes lies what :class:`Products` may read.
        """
        count = x.numel()
        out = torch.empty(self._padded(count) + _READ_BEHIND, dtype=torch.uint8)
        total = self._to_bytes(x.data_ptr(), out.data_ptr(), count, _threads())
        return None if total < 0 else (out, total)

    def from_bytes(self, values: Tensor, out: Tensor) -> Tensor:
        """Fills dense ``out`` with what :meth:`to_bytes` has made ``values`` of."""
        self._from_bytes(values.data_ptr(), out.data_ptr(), out.numel(), _threads())
        return out


@cache
def products(dtype: torch.dtype) -> Products | None:
    """Products of spikes for activations of ``dtype``, None where they cannot be compiled."""
    library = build.products(STORAGE[dtype]) if dtype in STORAGE else None
    return None if library is None else Products(library, dtype)


class _Plane(ctypes.Structure):
    _fields_ = tuple(
        (name, c_int64)
        for name in (
            *("images", "height", "width", "channels", "outputs"),
            *("kernel_height", "kernel_width"),
        )
    )


class Products:
    """The products of products.cpp: of spikes, given as bytes, with weights or gradients.

    ``x`` are the bytes of spikes ``[..., H, W, C]``, with ``shape``; ``weight``, contiguous
    ``[N, C, kh, kw]`` of dtype ``real`` with odd sides, slides over H and W with stride 1 and zeros
    around the plane.
    """

    def __init__(self, library: ctypes.CDLL, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.real = torch.float64 if dtype == torch.float64 else torch.float32
        self._product, self._gradient = library.spike_product, library.spike_gradient
        for function in (self._product, self._gradient):
            function.argtypes, function.restype = (_P, _P, _P, POINTER(_Plane), _T), None

    def product(self, x: Tensor, shape: torch.Size, weight: Tensor) -> Tensor:
        """``[..., H, W, N]`` of the activations' dtype."""
        out = torch.empty(*shape[:-1], len(weight), dtype=self.dtype)
        plane = _plane(shape, weight.shape)
        self._product(x.data_ptr(), weight.data_ptr(), out.data_ptr(), plane, _threads())
        return out

    def weight_gradient(
        self, x: Tensor, shape: torch.Size, grad: Tensor, weight_shape: torch.Size
    ) -> Tensor:
        """Gradient of the weight, of dtype ``real``, from that of the product, contiguous."""
        out = torch.empty(weight_shape, dtype=self.real)
        plane = _plane(shape, weight_shape)
        self._gradient(x.data_ptr(), grad.data_ptr(), out.data_ptr(), plane, _threads())
        return out


def _plane(shape: torch.Size, weight_shape: torch.Size) -> _Plane:
    *images, height, width, channels = shape
    outputs, _, *kernel = weight_shape
    if kernel == [1, 1]:  # a matrix product knows no plane
        images, height, width = (), math.prod((*images, height, width)), 1
    return _Plane(math.prod(images), height, width, channels, outputs, *kernel)


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


@cache
def _neuron(spec: NeuronSpec, decay: float) -> _Neuron:
    return _Neuron(
        leaky=spec.kind != "if",
        decay_input=spec.decay_input,
        # 1 / tau is exact for powers of two only; spikingjelly divides.
        divide=spec.kind == "lif" and math.frexp(spec.tau)[0] != 0.5,
        soft_reset=spec.v_reset is None,
        detach_reset=spec.detach_reset,
        surrogate=SURROGATES.index(spec.surrogate),
        tau=spec.tau,
        decay=decay,
        threshold=spec.threshold,
        reset=spec.v_reset or 0.0,
        alpha=spec.alpha,
    )
