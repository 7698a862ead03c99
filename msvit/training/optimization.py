"""Loss, optimizer and learning rate: timm's, configured by :class:`TrainingOptions`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import timm.optim
import timm.scheduler
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from msvit.neurons import no_decay
from msvit.recipes import TrainingOptions

if TYPE_CHECKING:
    from timm.data.mixup import Mixup

_FUSED = {"adamw", "adam"}  # have a one-pass implementation in torch


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


def make_optimizer(model: nn.Module, options: TrainingOptions) -> Optimizer:
    """timm's optimizer of this name; biases, normalisation and neurons do not decay."""
    extra: dict[str, Any] = {"fused": True} if options.optimizer in _FUSED else {}
    groups = timm.optim.param_groups_weight_decay(
        model, options.weight_decay, no_weight_decay_list=no_decay(model)
    )
    return timm.optim.create_optimizer_v2(groups, options.optimizer, lr=options.lr, **extra)


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
