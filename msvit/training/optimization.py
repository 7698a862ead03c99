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
    from timm.data.random_erasing import RandomErasing

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
    """timm's mixup or CutMix over a batch, ``(images, labels) -> (mixed, soft targets)``, or None.

    Switched off (``mixup_enabled``), targets are soft all the same: those of the labels, smoothed.
    """
    if not options.mixes:
        return None
    from timm.data.mixup import Mixup

    return Mixup(
        options.mixup,
        options.cutmix,
        prob=options.mixup_prob,
        switch_prob=options.mixup_switch_prob,
        label_smoothing=options.label_smoothing,
        num_classes=num_classes,
    )


def make_erasing(options: TrainingOptions, device: torch.device) -> RandomErasing | None:
    """timm's random erasing of normalised images, or None; it draws from ``random``."""
    if not options.random_erasing:
        return None
    from timm.data.random_erasing import RandomErasing

    return RandomErasing(
        options.random_erasing, mode=options.random_erasing_mode, device=str(device)
    )


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
    if options.trust_clip:
        extra["trust_clip"] = True
    groups = timm.optim.param_groups_weight_decay(
        model, options.weight_decay, no_weight_decay_list=no_decay(model)
    )
    return timm.optim.create_optimizer_v2(groups, options.optimizer, lr=options.peak_lr, **extra)


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
        self._steps, self._per_update = steps, options.sched_on_updates
        in_tensors = device.type == "cuda" and options.optimizer in RECORDABLE
        groups = optimizer.param_groups if in_tensors else []
        self.tensors = [torch.zeros((), device=device) for _ in groups]
        self.current = options.peak_lr
        """Of the first group, as a number."""

    def set(self, update: int) -> None:
        """Set the rate of ``update``, counted from 0 over the whole training."""
        # timm writes numbers into the groups.
        if self._per_update:
            self._schedule.step_update(update)
        else:
            self._schedule.step(update // self._steps)
        self.current = self._optimizer.param_groups[0]["lr"]
        for group, tensor in zip(self._optimizer.param_groups, self.tensors, strict=False):
            group["lr"] = tensor.fill_(group["lr"])


def make_schedule(
    optimizer: Optimizer, options: TrainingOptions, steps: int
) -> timm.scheduler.scheduler.Scheduler:
    """Learning rate as a function of the update alone; ``steps`` is updates per epoch.

    ``schedule.step_update(n)`` sets the rate of update ``n``, counted from 0, or, where the rate
    does not change within an epoch, ``schedule.step(n)`` that of epoch ``n``: a resumed run needs
    no other state. Behind the schedule's epochs the rate is ``min_lr``.
    """
    per_update = options.sched_on_updates
    unit = steps if per_update else 1
    common: dict[str, Any] = {
        "warmup_t": round(options.warmup_epochs * unit),
        "warmup_lr_init": options.warmup_lr,
        "t_in_epochs": not per_update,
    }
    length = options.epochs * unit
    if options.schedule == "cosine":
        if options.warmup_prefix:
            length -= common["warmup_t"]
        return timm.scheduler.CosineLRScheduler(
            optimizer,
            t_initial=length,
            lr_min=options.min_lr,
            warmup_prefix=options.warmup_prefix,
            **common,
        )
    return timm.scheduler.StepLRScheduler(optimizer, decay_t=length, decay_rate=1.0, **common)
