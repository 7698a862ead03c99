"""Whether what learns still is finite.

The loss does not tell: a neuron whose potential is NaN does not fire, and spikes behind it are as
good as any. So every step also leaves one norm over the gradient, all parameters and all running
statistics. It stays on the device until somebody looks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class TrainingDiverged(RuntimeError):
    """Loss, weights or gradient are no longer finite; the message names epoch, step and tensor."""


def state_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors that training moves: parameters and floating-point buffers."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            yield name, tensor


@torch.no_grad()
def total_norm(tensors: list[Tensor]) -> Tensor:
    """Euclidean norm of all ``tensors`` together, a scalar on their device; not waited for.

    NaN or infinite where a tensor is, and infinite where a norm is beyond float32: such a gradient
    teaches nothing, because the squares that optimizers keep of it are infinite.
    """
    return nn.utils.get_total_norm(tensors)


def check_state(model: nn.Module, when: str, remedy: str) -> None:
    """Refuse a model with weights or statistics that are not finite.

    Raises:
        TrainingDiverged: naming the first such tensor, ``when`` and the ``remedy``.
    """
    if not math.isfinite(total_norm([tensor for _, tensor in state_tensors(model)])):
        raise TrainingDiverged(f"{when}: {first_broken(model)}; {remedy}")


def check_steps(
    losses: Tensor, norms: Tensor, first: int, model: nn.Module, epoch: int, steps: int
) -> None:
    """Look at the ``losses`` and ``norms`` (float32 ``[n]``) that steps from ``first`` on left.

    Raises:
        TrainingDiverged: naming epoch, step (both from 1) and tensor.
    """
    rows = zip(*torch.stack((losses, norms)).tolist(), strict=True)
    for step, (loss, norm) in enumerate(rows, start=first + 1):
        if math.isfinite(loss) and math.isfinite(norm):
            continue
        # Steps later, or clipped, the gradient may be gone.
        problem = first_broken(model) or f"the norm of gradient and weights together is {norm}"
        if not math.isfinite(loss):
            problem = f"the training loss is {loss}; {problem}"
        raise TrainingDiverged(
            f"epoch {epoch}, step {step} of {steps}: {problem}; "
            "a smaller training.lr or training.clip_grad may help"
        )


def first_broken(model: nn.Module) -> str:
    """Which tensor of the model, or else of the gradient, is not finite; empty where none is."""
    gradients = ((f"the gradient of {name}", w.grad) for name, w in model.named_parameters())
    state = [(name, tensor) for name, tensor in state_tensors(model)]
    for tensors in (state, [(name, grad) for name, grad in gradients if grad is not None]):
        norms = {name: float(total_norm([tensor])) for name, tensor in tensors}
        broken = [name for name, norm in norms.items() if not math.isfinite(norm)]
        if broken:
            more = f" (the first of {len(broken)} such tensors)" if len(broken) > 1 else ""
            return f"the norm of {broken[0]} is {norms[broken[0]]}{more}"
    return ""
