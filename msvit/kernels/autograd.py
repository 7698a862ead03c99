"""The operations as autograd functions over a backend's passes.

Arguments are those of :mod:`msvit.kernels`, on operands that the passes can read.

Forward: one pass for the batch statistics, one for norm, neuron and shortcut. Kept: the
convolution's output ``y`` and four vectors. Backward: one pass recomputes the potentials from
``y`` and sums the gradient per channel, one applies ``a·g + b·y + d``, which is the gradient
through norm with batch statistics.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

import torch
import torch.distributed
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from .spec import Backend, Batch, NeuronSpec, Norm, shared_by

if TYPE_CHECKING:  # not every build of torch has it
    from torch.distributed import ProcessGroup

Gradients = tuple[Tensor | None, ...]
"""One for each argument of a forward."""


def norm_neuron(
    backend: Backend,
    y: Tensor,
    norm: Norm,
    spec: NeuronSpec,
    plif_w: Tensor | None,
    shortcut: Tensor | None,
    offset: Tensor | None,
    pool: bool,
) -> Tensor:
    tensors = (y, norm.weight, norm.bias, plif_w, _like(y, shortcut))
    return _NormNeuron.apply(*tensors, backend, norm, spec, _detached(offset), pool)


def neuron(backend: Backend, x: Tensor, spec: NeuronSpec, plif_w: Tensor | None) -> Tensor:
    return _Neuron.apply(x, plif_w, backend, spec)


def norm_add(
    backend: Backend,
    y: Tensor,
    norm: Norm,
    shortcut: Tensor | None,
    offset: Tensor | None,
    pool: bool,
) -> Tensor:
    tensors = (y, norm.weight, norm.bias, _like(y, shortcut))
    return _NormAdd.apply(*tensors, backend, norm, _detached(offset), pool)


def max_pool(backend: Backend, x: Tensor) -> Tensor:
    return _MaxPool.apply(x, backend)


def token_attention(
    backend: Backend,
    joined: Tensor,
    parts: int,
    wide: Sequence[Tensor],
    spec: NeuronSpec,
    heads: int,
    plif_w: Tensor | None,
) -> tuple[Tensor, Tensor]:
    return _TokenAttention.apply(joined, plif_w, backend, parts, spec, heads, *wide)


def every_step(x: Tensor, steps: int) -> Tensor:
    return _EveryStep.apply(x, steps)


class _EveryStep(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, steps: int) -> Tensor:
        return x.expand(steps, *x.shape[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> Gradients:
        # A unit's gradient is one and the same for all steps: summing it would read it T times.
        if grad_out.stride(0) == 0:
            return grad_out[:1] * len(grad_out), None
        return grad_out.sum(0, keepdim=True), None


class _NormNeuron(Function):
    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        weight: Tensor,
        bias: Tensor,
        plif_w: Tensor | None,
        shortcut: Tensor | None,
        backend: Backend,
        norm: Norm,
        spec: NeuronSpec,
        offset: Tensor | None,
        pool: bool,
    ) -> Tensor:
        steps, y, shortcut = len(y), time_major(y), time_major(shortcut)
        folded, count = fold(backend, y, steps, norm, offset)
        neuron = backend.neuron(spec, plif_w)
        ctx.backend, ctx.neuron = backend, neuron
        ctx.steps, ctx.count, ctx.group = steps, count, shared_by(norm)
        if pool:
            out, raw, codes = backend.max_pool(
                y,
                steps=steps,
                folded=folded,
                neuron=neuron,
                shortcut=shortcut,
                keep=any(ctx.needs_input_grad),
            )
            ctx.save_for_backward(y, folded, raw, codes)
            return out
        ctx.save_for_backward(y, folded, y, None)
        return backend.forward(y, steps=steps, folded=folded, neuron=neuron, shortcut=shortcut)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> Gradients:
        y, folded, fed, codes = ctx.saved_tensors  # fed: what of y has reached the neuron
        needs_y, needs_weight, needs_bias, _, needs_shortcut, *_ = ctx.needs_input_grad
        backend, neuron, steps, count = ctx.backend, ctx.neuron, ctx.steps, ctx.count
        repeats = steps / len(y)

        # Running statistics are constants: the coefficients are known before the sums, one pass.
        known = None
        if count == 0:
            _, known = backend.fold_gradients(
                folded, own=None, total=None, count=0, repeats=repeats
            )
        g, own, plif_grad = backend.backward(
            fed,
            time_major(grad_out),
            steps=steps,
            folded=folded,
            neuron=neuron,
            coefficients=known if codes is None else None,
            write=needs_y,
            sums=count > 0 or needs_weight or needs_bias,
        )
        grads = (None, None)
        if own is not None:
            total = _over_workers(own, ctx.group)
            grads, coefficients = backend.fold_gradients(
                folded, own=own, total=total, count=count, repeats=repeats
            )
        if known is not None:
            coefficients = known
        if g is not None and codes is not None:
            g = backend.max_pool_backward(
                g, codes, size=y.shape[2:4], y=y, coefficients=coefficients
            )
        elif g is not None and known is None:
            a, b, d = coefficients
            backend.affine(g, a, y, b, d, g)
        return (
            spread(g, steps),
            grads[0] if needs_weight else None,
            grads[1] if needs_bias else None,
            plif_grad,
            grad_out if needs_shortcut else None,
            *(None,) * 5,
        )


class _Neuron(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, plif_w: Tensor | None, backend: Backend, spec: NeuronSpec
    ) -> Tensor:
        steps, x = len(x), time_major(x)
        neuron = backend.neuron(spec, plif_w)
        ctx.save_for_backward(x)
        ctx.backend, ctx.neuron, ctx.steps = backend, neuron, steps
        return backend.forward(x, steps=steps, folded=None, neuron=neuron, shortcut=None)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> Gradients:
        (x,) = ctx.saved_tensors
        steps, backend, neuron = ctx.steps, ctx.backend, ctx.neuron
        g, _, plif_grad = backend.backward(
            x,
            time_major(grad_out),
            steps=steps,
            folded=None,
            neuron=neuron,
            coefficients=None,
            write=True,
            sums=False,
        )
        if len(x) != steps:
            g /= steps
        return spread(g, steps), plif_grad, None, None


class _NormAdd(Function):
    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        weight: Tensor,
        bias: Tensor,
        shortcut: Tensor | None,
        backend: Backend,
        norm: Norm,
        offset: Tensor | None,
        pool: bool,
    ) -> Tensor:
        steps, y, shortcut = len(y), time_major(y), time_major(shortcut)
        folded, count = fold(backend, y, steps, norm, offset)
        ctx.backend, ctx.steps, ctx.count, ctx.group = backend, steps, count, shared_by(norm)
        made = len(y) if shortcut is None else steps  # time steps that differ
        if pool:
            out, raw, codes = backend.max_pool(
                y,
                steps=made,
                folded=folded,
                neuron=None,
                shortcut=shortcut,
                keep=any(ctx.needs_input_grad),
            )
            ctx.save_for_backward(y, folded, raw, codes)
            return spread(out, steps)
        ctx.save_for_backward(y, folded, y, None)
        _, _, scale, shift = folded
        out = y.new_empty(made, *y.shape[1:])
        if shortcut is None or len(y) == len(shortcut) == made:
            backend.affine(y, scale, shortcut, None, shift, out)
        else:
            for t in range(made):
                y_t, shortcut_t = y[t % len(y)], shortcut[t % len(shortcut)]
                backend.affine(y_t, scale, shortcut_t, None, shift, out[t])
        return spread(out, steps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> Gradients:
        y, folded, fed, codes = ctx.saved_tensors
        needs_y, needs_weight, needs_bias, needs_shortcut, *_ = ctx.needs_input_grad
        backend, steps, repeats = ctx.backend, ctx.steps, ctx.steps / len(y)
        grad = grad_out.contiguous() if repeats == 1 else grad_out.sum(0, keepdim=True)
        own = backend.gradient_sums(grad, fed, folded[0])
        total = _over_workers(own, ctx.group)
        grads, coefficients = backend.fold_gradients(
            folded, own=own, total=total, count=ctx.count, repeats=repeats
        )
        g = None
        if needs_y and codes is not None:
            g = backend.max_pool_backward(
                grad, codes, size=y.shape[2:4], y=y, coefficients=coefficients
            )
        elif needs_y:
            a, b, d = coefficients
            g = backend.affine(grad, a, y, b, d, torch.empty_like(y))
        return (
            spread(g, steps),
            grads[0] if needs_weight else None,
            grads[1] if needs_bias else None,
            grad_out if needs_shortcut else None,
            *(None,) * 4,
        )


class _MaxPool(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, backend: Backend) -> Tensor:
        steps, x = len(x), time_major(x)
        out, _, codes = backend.max_pool(
            x,
            steps=len(x),
            folded=None,
            neuron=None,
            shortcut=None,
            keep=ctx.needs_input_grad[0],
        )
        ctx.save_for_backward(codes)
        ctx.backend, ctx.size, ctx.shared = backend, x.shape[2:4], len(x) != steps
        return spread(out, steps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> Gradients:
        (codes,) = ctx.saved_tensors
        grad = grad_out.mean(0, keepdim=True) if ctx.shared else grad_out.contiguous()
        g = ctx.backend.max_pool_backward(grad, codes, size=ctx.size, y=None, coefficients=None)
        return spread(g, len(grad_out)), None


class _TokenAttention(Function):
    @staticmethod
    def forward(
        ctx: Any,
        joined: Tensor,
        plif_w: Tensor | None,
        backend: Backend,
        parts: int,
        spec: NeuronSpec,
        heads: int,
        *wide: Tensor,
    ) -> tuple[Tensor, Tensor]:
        neuron = backend.neuron(spec, plif_w)
        out, mask, scores, keys = backend.token_attention(
            joined.contiguous(),
            [x.contiguous() for x in wide],
            parts=parts,
            neuron=neuron,
            heads=heads,
            keep=any(ctx.needs_input_grad),
        )
        ctx.save_for_backward(scores, keys)
        ctx.backend, ctx.parts, ctx.neuron, ctx.wides = backend, parts, neuron, len(wide)
        ctx.mark_non_differentiable(mask)
        ctx.set_materialize_grads(False)  # zeros for the mask, which nothing reads
        return out, mask

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor, _: Tensor) -> Gradients:
        scores, keys = ctx.saved_tensors
        joined, wide, plif_grad = ctx.backend.token_attention_backward(
            grad_out.contiguous(),
            scores,
            keys,
            parts=ctx.parts,
            wide=ctx.wides > 0,
            neuron=ctx.neuron,
        )
        # All votes count alike, so that one gradient serves them all.
        return (joined, plif_grad, *(None,) * 4, *(wide,) * ctx.wides)


def cancelled(out: Tensor, offset: Tensor) -> Tensor:
    """``out`` with a gradient of zeros for the ``offset`` that batch statistics cancelled."""
    return _Cancelled.apply(out, offset)


class _Cancelled(Function):
    @staticmethod
    def forward(ctx: Any, out: Tensor, offset: Tensor) -> Tensor:
        ctx.offset = offset.detach()
        return out.view_as(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> Gradients:
        return grad_out, torch.zeros_like(ctx.offset)


def _like(y: Tensor, shortcut: Tensor | None) -> Tensor | None:
    return None if shortcut is None else shortcut.to(y.dtype)


def _detached(offset: Tensor | None) -> Tensor | None:
    # Batch statistics cancel it, so that it has no gradient.
    return None if offset is None else offset.detach()


@overload
def time_major(x: Tensor) -> Tensor: ...
@overload
def time_major(x: Tensor | None) -> Tensor | None: ...
def time_major(x: Tensor | None) -> Tensor | None:
    """Contiguous ``[t, ...]``; t is 1 where time has stride 0."""
    if x is None:
        return None
    if x.stride(0) == 0 and len(x) > 1:
        x = x[:1]
    return x.contiguous()


@overload
def spread(x: Tensor, steps: int) -> Tensor: ...
@overload
def spread(x: Tensor | None, steps: int) -> Tensor | None: ...
def spread(x: Tensor | None, steps: int) -> Tensor | None:
    """One step (or its gradient) given to all time steps without a copy."""
    return x if x is None or len(x) == steps else x.expand(steps, *x.shape[1:])


def fold(
    backend: Backend, y: Tensor, steps: int, norm: Norm, offset: Tensor | None
) -> tuple[Tensor, int]:
    """Scale and shift of ``norm`` for ``y``, and how many values a batch statistic stands for.

    Does to the running statistics what ``norm(y)`` would; the count is 0 where they are used.

    Raises:
        ValueError: one value per channel has no variance to learn from.
    """
    if not norm.training:
        return backend.fold(norm, offset, None), 0
    moments, count, group = None, steps * y[0].numel() // y.shape[-1], shared_by(norm)
    if group is not None:
        even = getattr(norm, "even_parts", False)
        moments, count = _moments_over_workers(backend.moments(y), count, group, even)
    if count == 1:
        raise ValueError("batch statistics need more than one value per channel")
    return backend.fold(norm, offset, Batch(y, moments, count)), count


def _moments_over_workers(
    moments: Tensor, count: int, group: ProcessGroup, even: bool
) -> tuple[Tensor, int]:
    mean, var = moments
    sums = torch.cat((mean * count, (var + mean * mean) * count, mean.new_tensor([count])))
    torch.distributed.all_reduce(sums, group=group)
    total = sums[-1]
    mean, square = (sums[:-1] / total).chunk(2)
    # A number from the device would have to be waited for.
    all_values = count * torch.distributed.get_world_size(group) if even else int(total)
    return torch.stack((mean, square - mean * mean)), all_values


def _over_workers(sums: Tensor, group: ProcessGroup | None) -> Tensor:
    """All workers' share in ``sums [slots, 2, C]``, as one slot."""
    if group is None:
        return sums
    total = sums.sum(0, keepdim=True, dtype=torch.float64)
    torch.distributed.all_reduce(total, group=group)
    return total
