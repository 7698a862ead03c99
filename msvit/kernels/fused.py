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

from .spec import Norm


def norm_neuron(passes, y, norm, spec, plif_w, shortcut, offset, pool) -> Tensor:
    tensors = (y, norm.weight, norm.bias, plif_w, _like(y, shortcut))
    return _NormNeuron.apply(*tensors, passes, norm, spec, _detached(offset), pool)


def neuron(passes, x, spec, plif_w) -> Tensor:
    return _Neuron.apply(x, plif_w, passes, spec)


def norm_add(passes, y, norm, shortcut, offset, pool) -> Tensor:
    tensors = (y, norm.weight, norm.bias, _like(y, shortcut))
    return _NormAdd.apply(*tensors, passes, norm, _detached(offset), pool)


def max_pool(passes, x) -> Tensor:
    return _MaxPool.apply(x, passes)


def score_mask(passes, joined, parts, wide, spec, heads, plif_w) -> tuple[Tensor, Tensor]:
    return _ScoreMask.apply(joined, plif_w, passes, parts, spec, heads, *wide)


class _NormNeuron(Function):
    @staticmethod
    def forward(ctx: Any, y, weight, bias, plif_w, shortcut, passes, norm, spec, offset, pool):
        steps, y, shortcut = len(y), time_major(y), time_major(shortcut)
        folded, count = fold(passes, y, steps, norm, offset)
        decay = passes.decay(spec, plif_w)
        ctx.passes, ctx.spec, ctx.decay = passes, spec, decay
        ctx.steps, ctx.count, ctx.group = steps, count, _workers(norm)
        if pool:
            keep = any(ctx.needs_input_grad)
            out, raw, codes = passes.pool(y, steps, folded, spec, decay, shortcut, keep)
            ctx.save_for_backward(y, folded, raw, codes)
            return out
        ctx.save_for_backward(y, folded, y, None)
        return passes.forward(y, steps, folded, spec, decay, shortcut)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out):
        y, folded, fed, codes = ctx.saved_tensors  # fed: what of y has reached the neuron
        needs_y, needs_weight, needs_bias, _, needs_shortcut, *_ = ctx.needs_input_grad
        passes, steps, constant = ctx.passes, ctx.steps, ctx.count == 0
        repeats = steps / len(y)

        # Running statistics are constants: the coefficients are known before the sums, one pass.
        known = passes.fold_gradients(None, None, folded, 0, repeats)[1] if constant else None
        g, own, decay_grad = passes.backward(
            *(fed, steps, folded, ctx.spec, ctx.decay, time_major(grad_out)),
            known if codes is None else None,
            write=needs_y,
            sums=not constant or needs_weight or needs_bias,
        )
        grads = (None, None)
        if own is not None:
            total = _over_workers(own, ctx.group)
            grads, coefficients = passes.fold_gradients(own, total, folded, ctx.count, repeats)
        if g is not None and codes is not None:
            size = y.shape[2:4]
            g = passes.unpool(g, codes, size, y, known if constant else coefficients)
        elif g is not None and not constant:
            a, b, d = coefficients
            passes.affine(g, a, y, b, d, g)
        return (
            spread(g, steps),
            grads[0] if needs_weight else None,
            grads[1] if needs_bias else None,
            plif_gradient(decay_grad, ctx.decay, folded.dtype),
            grad_out if needs_shortcut else None,
            *(None,) * 5,
        )


class _Neuron(Function):
    @staticmethod
    def forward(ctx: Any, x, plif_w, passes, spec):
        steps, x = len(x), time_major(x)
        decay = passes.decay(spec, plif_w)
        ctx.save_for_backward(x)
        ctx.passes, ctx.spec, ctx.decay, ctx.steps = passes, spec, decay, steps
        return passes.forward(x, steps, None, spec, decay, None)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out):
        (x,) = ctx.saved_tensors
        steps, passes = ctx.steps, ctx.passes
        g, _, decay_grad = passes.backward(
            *(x, steps, None, ctx.spec, ctx.decay, time_major(grad_out), None),
            write=True,
            sums=False,
        )
        if len(x) != steps:
            g /= steps
        return spread(g, steps), plif_gradient(decay_grad, ctx.decay, passes.real), None, None


class _NormAdd(Function):
    @staticmethod
    def forward(ctx: Any, y, weight, bias, shortcut, passes, norm, offset, pool):
        steps, y, shortcut = len(y), time_major(y), time_major(shortcut)
        folded, count = fold(passes, y, steps, norm, offset)
        ctx.passes, ctx.steps, ctx.count, ctx.group = passes, steps, count, _workers(norm)
        made = len(y) if shortcut is None else steps  # time steps that differ
        if pool:
            keep = any(ctx.needs_input_grad)
            out, raw, codes = passes.pool(y, made, folded, None, 0.0, shortcut, keep)
            ctx.save_for_backward(y, folded, raw, codes)
            return spread(out, steps)
        ctx.save_for_backward(y, folded, y, None)
        _, _, scale, shift = folded
        out = y.new_empty(made, *y.shape[1:])
        if shortcut is None or len(y) == len(shortcut) == made:
            passes.affine(y, scale, shortcut, None, shift, out)
        else:
            for t in range(made):
                y_t, shortcut_t = y[t % len(y)], shortcut[t % len(shortcut)]
                passes.affine(y_t, scale, shortcut_t, None, shift, out[t])
        return spread(out, steps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out):
        y, folded, fed, codes = ctx.saved_tensors
        needs_y, needs_weight, needs_bias, needs_shortcut, *_ = ctx.needs_input_grad
        passes, steps, repeats = ctx.passes, ctx.steps, ctx.steps / len(y)
        grad = grad_out.contiguous() if repeats == 1 else grad_out.sum(0, keepdim=True)
        own = passes.gradient_sums(grad, fed, folded[0])
        total = _over_workers(own, ctx.group)
        grads, coefficients = passes.fold_gradients(own, total, folded, ctx.count, repeats)
        g = None
        if needs_y and codes is not None:
            g = passes.unpool(grad, codes, y.shape[2:4], y, coefficients)
        elif needs_y:
            a, b, d = coefficients
            g = passes.affine(grad, a, y, b, d, torch.empty_like(y))
        return (
            spread(g, steps),
            grads[0] if needs_weight else None,
            grads[1] if needs_bias else None,
            grad_out if needs_shortcut else None,
            *(None,) * 4,
        )


class _MaxPool(Function):
    @staticmethod
    def forward(ctx: Any, x, passes):
        steps, x = len(x), time_major(x)
        keep = ctx.needs_input_grad[0]
        out, _, codes = passes.pool(x, len(x), None, None, 0.0, None, keep)
        ctx.save_for_backward(codes)
        ctx.passes, ctx.size, ctx.shared = passes, x.shape[2:4], len(x) != steps
        return spread(out, steps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out):
        (codes,) = ctx.saved_tensors
        steps = len(grad_out)
        grad = grad_out.mean(0, keepdim=True) if ctx.shared else grad_out.contiguous()
        return spread(ctx.passes.unpool(grad, codes, ctx.size, None, None), steps), None


class _ScoreMask(Function):
    @staticmethod
    def forward(ctx: Any, joined, plif_w, passes, parts, spec, heads, *wide):
        decay = passes.decay(spec, plif_w)
        wide = [x.contiguous() for x in wide]
        given = (joined.contiguous(), parts, wide, spec, decay, heads)
        out, mask, scores, keys = passes.votes(*given, any(ctx.needs_input_grad))
        ctx.save_for_backward(scores, keys)
        ctx.passes, ctx.rest = passes, (parts, wide != [], spec, decay)
        ctx.wides = len(wide)
        ctx.mark_non_differentiable(mask)
        return out, mask

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out, _):
        given = (grad_out.contiguous(), *ctx.rest, *ctx.saved_tensors)
        joined, wide, decay_grad = ctx.passes.votes_backward(*given)
        decay = ctx.rest[-1]
        plif_grad = plif_gradient(decay_grad, decay, ctx.passes.real)
        # All votes count alike, so that one gradient serves them all.
        return (joined, plif_grad, *(None,) * 4, *(wide,) * ctx.wides)


def _like(y: Tensor, shortcut: Tensor | None) -> Tensor | None:
    return None if shortcut is None else shortcut.to(y.dtype)


def _detached(offset: Tensor | None) -> Tensor | None:
    # Batch statistics cancel it, so that it has no gradient.
    return None if offset is None else offset.detach()


def time_major(x: Tensor | None) -> Tensor | None:
    """Contiguous ``[t, ...]``; t is 1 where time has stride 0."""
    if x is None:
        return None
    if x.stride(0) == 0 and len(x) > 1:
        x = x[:1]
    return x.contiguous()


def spread(x: Tensor | None, steps: int) -> Tensor | None:
    """One step (or its gradient) given to all time steps without a copy."""
    return x if x is None or len(x) == steps else x.expand(steps, *x.shape[1:])


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


def plif_gradient(
    decay_grad: Tensor | None, decay: Tensor | float, dtype: torch.dtype
) -> Tensor | None:
    """From the gradient of ``sigmoid(w)`` to that of ``w``, a scalar."""
    if decay_grad is None:
        return None
    return (decay_grad * (decay * (1.0 - decay))).to(dtype).reshape(())


def _workers(norm: Norm):
    """The process group that shares the statistics of ``norm``, None if there is none."""
    distributed = torch.distributed
    shares = hasattr(norm, "process_group") and norm.training
    if not (shares and distributed.is_available() and distributed.is_initialized()):
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
