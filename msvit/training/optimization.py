"""Loss, optimizer and learning rate: timm's, configured by :class:`TrainingOptions`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import timm.optim
import timm.scheduler
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from msvit.neurons import no_decay
from msvit.recipes import TrainingOptions

if TYPE_CHECKING:
    from timm.data.mixup import Mixup

RECORDABLE = ("adamw", "adam", "sgd")
"""Optimizers whose step on a GPU can be part of a CUDA graph; timm's LAMB reads values back."""

_ADAM = {"adamw", "adam"}
"""They have a one-pass implementation in torch, and count their steps: on the device where they are
to be recorded."""


def training_loss(logits: Tensor, target: Tensor, options: TrainingOptions) -> Tensor:
    """Cross-entropy of ``logits`` ``[T, B, classes]``, a float32 scalar.

    ``target`` is int64 ``[B]``, or ``[B, classes]`` as mixup makes it, already smoothed.
    """
    logits = logits.float()
    smoothing = 0.0 if target.is_floating_point() else options.label_smoothing
    if options.loss == "mean":
        return cross_entropy(logits.mean(0), target, label_smoothing=smoothing)
    every_step = target.expand(len(logits), *target.shape).flatten(0, 1)
    return cross_entropy(logits.flatten(0, 1), every_step, label_smoothing=smoothing)


def make_mixup(options: TrainingOptions, num_classes: int) -> Mixup | None:
    """timm's mixup over a batch, ``(images, labels) -> (mixed, soft targets)``, or None."""
    if not options.mixup:
        return None
    from timm.data.mixup import Mixup

    return Mixup(options.mixup, label_smoothing=options.label_smoothing, num_classes=num_classes)


def make_optimizer(
    model: nn.Module, options: TrainingOptions, device: torch.device | None = None
) -> Optimizer:
    """timm's optimizer of this name; biases, normalisation and neurons do not decay.

    On a CUDA ``device`` (default: none) its step can be recorded where :data:`RECORDABLE` says so.
    """
    on_gpu = device is not None and device.type == "cuda"
    extra: dict[str, Any] = {"fused": True} if options.optimizer in _ADAM else {}
    if on_gpu and options.optimizer in RECORDABLE:
        extra = {"fused": True}  # the one that takes its rate from a tensor there
        if options.optimizer in _ADAM:
            extra["capturable"] = True
    groups = timm.optim.param_groups_weight_decay(
        model, options.weight_decay, no_weight_decay_list=no_decay(model)
    )
    return timm.optim.create_optimizer_v2(groups, options.optimizer, lr=options.lr, **extra)


def restore_optimizer(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Load what ``state_dict`` gave, perhaps on another device: how it steps stays as made here."""
    ways: list[dict[str, Any]] = [
        {name: group[name] for name in ("fused", "foreach", "capturable") if name in group}
        for group in optimizer.param_groups
    ]
    optimizer.load_state_dict(dict(state))
    for group, way in zip(optimizer.param_groups, ways, strict=True):
        group.update(way)


class Rates:
    """The learning rate of every update, put where the optimizer reads it.

    A recorded step would keep the number that it saw; on a CUDA ``device`` it reads a tensor
    instead, which is filled anew for every update.
    """

    def __init__(
        self, optimizer: Optimizer, options: TrainingOptions, steps: int, device: torch.device
    ) -> None:
        """``steps`` is updates per epoch."""
        self._optimizer = optimizer
        self._schedule = make_schedule(optimizer, options, steps)
        in_tensors = device.type == "cuda" and options.optimizer in RECORDABLE
        groups = optimizer.param_groups if in_tensors else []
        self.tensors = [torch.zeros((), device=device) for _ in groups]
        self.current = options.lr
        """Of the first group, as a number."""

    def set(self, update: int) -> None:
        """Set the rate of ``update``, counted from 0 over the whole training."""
        self._schedule.step_update(update)  # timm writes numbers into the groups
        self.current = self._optimizer.param_groups[0]["lr"]
        for group, tensor in zip(self._optimizer.param_groups, self.tensors, strict=False):
            group["lr"] = tensor.fill_(group["lr"])


def make_schedule(
    optimizer: Optimizer, options: TrainingOptions, steps: int
) -> timm.scheduler.scheduler.Scheduler:
    """Learning rate as a function of the update alone; ``steps`` is updates per epoch.

    ``schedule.step_update(n)`` sets the rate of update ``n``, counted from 0, so a resumed
    run needs no other state.
    """
    common: dict[str, Any] = {
        "warmup_t": round(options.warmup_epochs * steps),
        "warmup_lr_init": options.warmup_lr,
        "t_in_epochs": False,
    }
    updates = options.epochs * steps
    if options.schedule == "cosine":
        return timm.scheduler.CosineLRScheduler(
            optimizer, t_initial=updates, lr_min=options.min_lr, **common
        )
    return timm.scheduler.StepLRScheduler(optimizer, decay_t=updates, decay_rate=1.0, **common)
