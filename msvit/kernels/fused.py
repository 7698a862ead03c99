"""Spiking units as autograd functions over a backend's passes.

Forward: one pass for the batch statistics, one for norm, neuron and shortcut. Kept: the
convolution's output ``y`` and four vectors. Backward: one pass recomputes the potentials from
``y`` and sums the gradient per channel, one applies ``a·g + b·y + d``, which is the gradient
through norm with batch statistics.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from .spec import NeuronSpec, Norm


def norm_neuron(passes, y, norm, spec, plif_w, shortcut, offset) -> Tensor:
    if shortcut is not None:
        shortcut = shortcut.to(y.dtype)
    return _NormNeuron.apply(
        y, norm.weight, norm.bias, plif_w, shortcut, passes, norm, spec, _detached(offset)
    )


def neuron(passes, x, spec, plif_w) -> Tensor:
    return _Neuron.apply(x, plif_w, passes, spec)


def norm_add(passes, y, norm, shortcut, offset) -> Tensor:
    if shortcut is not None:
        shortcut = shortcut.to(y.dtype)
    return _NormAdd.apply(y, norm.weight, norm.bias, shortcut, passes, norm, _detached(offset))


def _detached(offset: Tensor | None) -> Tensor | None:
    # Batch statistics cancel it, so that it has no gradient.
    return None if offset is None else offset.detach()


class _NormNeuron(Function):
    @staticmethod
    def forward(ctx: Any, y, weight, bias, plif_w, shortcut, passes, norm, spec, offset):
        steps, y = len(y), time_major(y)
        folded, count = fold(passes, y, steps, norm, offset)
        decay = decay_of(spec, plif_w, passes)
        ctx.save_for_backward(y, folded)
        ctx.passes, ctx.spec, ctx.decay = passes, spec, decay
        ctx.steps, ctx.count, ctx.group = steps, count, _workers(norm)
        return passes.forward(y, steps, folded, spec, decay, time_major(shortcut))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out):
        y, folded = ctx.saved_tensors
        needs_y, needs_weight, needs_bias, _, needs_shortcut, *_ = ctx.needs_input_grad
        passes, steps, count = ctx.passes, ctx.steps, ctx.count
        grad = time_major(grad_out)
        repeats = steps / len(y)

        def back(coefficients=None, write=needs_y, sums=False):
            given = (y, steps, folded, ctx.spec, ctx.decay, grad)
            return passes.backward(*given, coefficients, write, sums)

        if count == 0:  # running statistics are constants: no need to know the sums first
            own = torch.zeros(2, y.shape[-1], dtype=torch.float64, device=y.device)
            coefficients = passes.fold_gradients(own, own, folded, 0, repeats)[1]
            g, own, decay_grad = back(coefficients, sums=needs_weight or needs_bias)
        else:
            g, own, decay_grad = back(sums=True)
        grads = (None, None)
        if own is not None:
            grads, coefficients = passes.fold_gradients(
                own, _over_workers(own, ctx.group), folded, count, repeats
            )
            if count and needs_y:
                a, b, d = coefficients
                passes.affine(g, a, y, b, d, g)
        return (
            spread(g, steps),
            grads[0] if needs_weight else None,
            grads[1] if needs_bias else None,
            plif_gradient(decay_grad, ctx.decay, folded.dtype),
            grad_out if needs_shortcut else None,
            *(None, None, None, None),
        )


class _Neuron(Function):
    @staticmethod
    def forward(ctx: Any, x, plif_w, passes, spec):
        steps, x = len(x), time_major(x)
        decay = decay_of(spec, plif_w, passes)
        ctx.save_for_backward(x)
        ctx.passes, ctx.spec, ctx.decay, ctx.steps = passes, spec, decay, steps
        return passes.forward(x, steps, None, spec, decay, None)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out):
        (x,) = ctx.saved_tensors
        steps, passes = ctx.steps, ctx.passes
        g, _, decay_grad = passes.backward(
            x, steps, None, ctx.spec, ctx.decay, time_major(grad_out), None, True, False
        )
        if len(x) != steps:
            g /= steps
        return spread(g, steps), plif_gradient(decay_grad, ctx.decay, passes.real), None, None


class _NormAdd(Function):
    @staticmethod
    def forward(ctx: Any, y, weight, bias, shortcut, passes, norm, offset):
        steps, y = len(y), time_major(y)
        folded, count = fold(passes, y, steps, norm, offset)
        ctx.save_for_backward(y, folded)
        ctx.passes, ctx.steps, ctx.count, ctx.group = passes, steps, count, _workers(norm)
        _, _, scale, shift = folded
        if shortcut is None:
            out = passes.affine(y, scale, None, None, shift, torch.empty_like(y))
            return out.expand(steps, *out.shape[1:])
        if len(y) == steps == len(shortcut := time_major(shortcut)):
            return passes.affine(y, scale, shortcut, None, shift, torch.empty_like(y))
        out = y.new_empty(steps, *y.shape[1:])
        for t in range(steps):
            y_t, shortcut_t = (x[min(t, len(x) - 1)] for x in (y, shortcut))
            passes.affine(y_t, scale, shortcut_t, None, shift, out[t])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out):
        y, folded = ctx.saved_tensors
        needs_y, needs_weight, needs_bias, needs_shortcut, *_ = ctx.needs_input_grad
        passes, steps, count = ctx.passes, ctx.steps, ctx.count
        grad = grad_out.contiguous() if len(y) == steps else grad_out.sum(0, keepdim=True)
        own = passes.gradient_sums(grad, y, folded[0])
        total = _over_workers(own, ctx.group)
        grads, (a, b, d) = passes.fold_gradients(own, total, folded, count, steps / len(y))
        g = passes.affine(grad, a, y, b, d, torch.empty_like(y)) if needs_y else None
        return (
            spread(g, steps),
            grads[0] if needs_weight else None,
            grads[1] if needs_bias else None,
            grad_out if needs_shortcut else None,
            *(None, None, None),
        )


def time_major(x: Tensor | None) -> Tensor | None:
    """Contiguous ``[t, ...]``; t is 1 where time has stride 0."""
    if x is None:
        return None
    if x.stride(0) == 0 and len(x) > 1:
        x = x[:1]
    return x.contiguous()


def spread(grad: Tensor | None, steps: int) -> Tensor | None:
    """A gradient of one shared step, given to all of them without a copy."""
    return grad if grad is None or len(grad) == steps else grad.expand(steps, *grad.shape[1:])


def fold(passes, y: Tensor, steps: int, norm: Norm, offset: Tensor | None) -> tuple[Tensor, int]:
    """Scale and shift of ``norm`` for ``y``, and how many values a batch statistic stands for.

    Does to the running statistics what ``norm(y)`` would; the count is 0 where they are used.

    Raises:
        ValueError: one value per channel has no variance to learn from.
    """
    running = None if norm.running_mean is None else (norm.running_mean, norm.running_var)
    if not norm.training and running:
        return passes.fold(None, 0, norm, offset, running, 0.0), 0
    moments = passes.moments(y)
    count = steps * y[0].numel() // y.shape[-1]
    moments, count = _moments_over_workers(moments, count, _workers(norm))
    if count == 1:
        raise ValueError("batch statistics need more than one value per channel")
    momentum = norm.momentum
    if running:
        norm.num_batches_tracked.add_(1)
        if momentum is None:
            momentum = 1.0 / float(norm.num_batches_tracked)
    return passes.fold(moments, count, norm, offset, running, momentum or 0.0), count


def decay_of(spec: NeuronSpec, plif_w: Tensor | None, passes) -> float:
    if spec.kind != "plif":
        return 1.0 / spec.tau
    return float(plif_w.detach().to(passes.real).sigmoid())


def plif_gradient(decay_grad: Tensor | None, decay: float, dtype: torch.dtype) -> Tensor | None:
    """From the gradient of ``sigmoid(w)`` to that of ``w``, a scalar."""
    if decay_grad is None:
        return None
    return (decay_grad * (decay * (1.0 - decay))).to(dtype).reshape(())


def _workers(norm: Norm):
    """The process group that shares the statistics of a SyncBatchNorm, None if there is none."""
    distributed = torch.distributed
    if not (isinstance(norm, torch.nn.SyncBatchNorm) and norm.training):
        return None
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    return norm.process_group or distributed.group.WORLD


def _moments_over_workers(moments: Tensor, count: int, group) -> tuple[Tensor, int]:
    if group is None:
        return moments, count
    mean, var = moments
    sums = torch.cat((mean * count, (var + mean * mean) * count, mean.new_tensor([count])))
    torch.distributed.all_reduce(sums, group=group)
    total = sums[-1]
    mean, square = (sums[:-1] / total).chunk(2)
    return torch.stack((mean, square - mean * mean)), int(total)


def _over_workers(sums: Tensor, group) -> Tensor:
    if group is None:
        return sums
    total = sums.clone()
    torch.distributed.all_reduce(total, group=group)
    return total
