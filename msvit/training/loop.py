"""One epoch of training, and evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from msvit.data.splits import Images
from msvit.precision import Precision
from msvit.recipes import TrainingOptions
from msvit.training.batches import Normalise
from msvit.training.optimization import training_loss

_CHECK_EVERY = 16  # steps between looks at the loss on a GPU, where each look waits for it


class TrainingDiverged(RuntimeError):
    """The loss is no longer a finite number; the message names epoch, step and loss."""


@dataclass
class Trainer:
    """What all epochs of one training share."""

    model: nn.Module
    forward: Callable[[Tensor], Tensor]
    """What a training step calls: the model, or what ``torch.compile`` has made of it."""
    options: TrainingOptions
    optimizer: torch.optim.Optimizer
    set_rate: Callable[[int], None]
    """Sets the learning rate of an update, counted from 0 over the whole training."""
    normalise: Normalise
    precision: Precision
    mixup: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None
    scaler: torch.amp.GradScaler

    def train_epoch(
        self, batches: Iterable[Images], epoch: int, steps: int
    ) -> tuple[float, float | None]:
        """Mean loss and accuracy over one epoch (from 1) of ``steps`` batches.

        Accuracy is that of the model while it learns; None where mixup blends the classes.

        Raises:
            TrainingDiverged: when the loss is not finite.
        """
        self.model.train()
        device = self.normalise.mean.device
        losses = torch.zeros(steps, device=device)
        correct, seen = torch.zeros((), device=device), 0
        every = 1 if device.type == "cpu" else _CHECK_EVERY
        for step, batch in enumerate(batches):
            self.set_rate((epoch - 1) * steps + step)
            loss, hits = self._update(batch)
            losses[step] = loss
            correct += hits
            seen += len(batch)
            if (step + 1) % every == 0 or step + 1 == steps:
                _check_finite(losses[: step + 1], epoch, steps)
        accuracy = None if self.mixup else float(correct) / seen
        return float(losses.double().mean()), accuracy

    def _update(self, batch: Images) -> tuple[Tensor, Tensor]:
        images, target = self.normalise(batch.images), batch.labels
        if self.mixup:
            images, target = self.mixup(images, target)
        with self.precision.autocast(images.device):
            logits = self.forward(images)  # [T, B, classes]
            loss = training_loss(logits, target, self.options)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        if self.options.clip_grad is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.options.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        with torch.no_grad():
            hits = (logits.mean(0).argmax(-1) == batch.labels).sum()
        return loss.detach(), hits


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Iterable[Images], normalise: Normalise, precision: Precision
) -> tuple[float, float]:
    """Mean cross-entropy and accuracy (0 to 1) of the time-averaged logits, in eval mode."""
    model.eval()
    device = normalise.mean.device
    loss, correct = torch.zeros((2,), dtype=torch.float64, device=device)
    seen = 0
    for batch in batches:
        with precision.autocast(device):
            logits = model(normalise(batch.images))
        logits = logits.float().mean(0)
        loss += cross_entropy(logits, batch.labels, reduction="sum")
        correct += (logits.argmax(-1) == batch.labels).sum()
        seen += len(batch)
    return float(loss) / seen, float(correct) / seen


def _check_finite(losses: Tensor, epoch: int, steps: int) -> None:
    values = losses.tolist()
    if math.isfinite(sum(values)):
        return
    step = next((i for i, value in enumerate(values) if not math.isfinite(value)), len(values) - 1)
    raise TrainingDiverged(
        f"epoch {epoch}, step {step + 1} of {steps}: the training loss is {values[step]}; "
        "a smaller training.lr or training.clip_grad may help"
    )
