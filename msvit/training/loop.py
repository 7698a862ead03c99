"""One epoch of training, and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from msvit.data.splits import Images
from msvit.precision import Precision
from msvit.recipes import TrainingOptions
from msvit.training.batches import Normalise
from msvit.training.health import TrainingDiverged, check_steps, state_tensors, total_norm
from msvit.training.optimization import training_loss

_CHECK_EVERY = 16  # steps between looks at their health on a GPU, where each look waits for it
_SMALLEST_SCALE = 2.0**-24  # of fp16; gradients that overflow even then teach nothing


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
            TrainingDiverged: when loss, gradient, weights or running statistics are not finite.
        """
        self.model.train()
        device = self.normalise.mean.device
        state = [tensor for _, tensor in state_tensors(self.model)]
        losses, norms = torch.zeros((2, steps), device=device)
        correct, seen = torch.zeros((), device=device), 0
        every = 1 if device.type == "cpu" else _CHECK_EVERY
        for step, batch in enumerate(batches):
            self.set_rate((epoch - 1) * steps + step)
            losses[step], hits, gradient = self._update(batch)
            norms[step] = total_norm([gradient, *state])
            correct += hits
            seen += len(batch)
            if (step + 1) % every == 0 or step + 1 == steps:
                new = slice(step // every * every, step + 1)
                check_steps(losses[new], norms[new], new.start, self.model, epoch, steps)
        if self.scaler.is_enabled() and self.scaler.get_scale() < _SMALLEST_SCALE:
            raise TrainingDiverged(
                f"epoch {epoch}, step {steps} of {steps}: the gradient is not finite in fp16, "
                "however it is scaled; training.precision=fp32 may help"
            )
        accuracy = None if self.mixup else float(correct) / seen
        return float(losses.double().mean()), accuracy

    def _update(self, batch: Images) -> tuple[Tensor, Tensor, Tensor]:
        """One step: its loss, the images it got right, and the norm of its gradient."""
        images, target = self.normalise(batch.images), batch.labels
        if self.mixup:
            images, target = self.mixup(images, target)
        with self.precision.autocast(images.device):
            logits = self.forward(images)  # [T, B, classes]
            loss = training_loss(logits, target, self.options)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        weights = [weight for weight in self.model.parameters() if weight.grad is not None]
        if self.options.clip_grad is not None:
            self.scaler.unscale_(self.optimizer)
        norm = total_norm([weight.grad for weight in weights])
        if self.options.clip_grad is not None:
            nn.utils.clip_grads_with_norm_(weights, self.options.clip_grad, norm)
        if self.scaler.is_enabled():  # it looks for steps to skip itself, and finds some
            norm = torch.zeros_like(norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        with torch.no_grad():
            hits = (logits.mean(0).argmax(-1) == batch.labels).sum()
        return loss.detach(), hits, norm


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
