"""One epoch of training, and evaluation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from msvit.data.splits import Images
from msvit.training.batches import Normalise
from msvit.training.health import TrainingDiverged, check_steps
from msvit.training.optimization import Rates
from msvit.training.step import Scores, TrainingStep

CHECK_EVERY = 16  # steps between looks at their health on a GPU, where each look waits for it
_SMALLEST_SCALE = 2.0**-24  # of fp16; gradients that overflow even then teach nothing


@dataclass
class Trainer:
    """What all epochs of one training share."""

    model: nn.Module
    step: TrainingStep
    rates: Rates
    normalise: Normalise
    mixup: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None
    step_seconds: float = math.inf
    """The least that a step took from one look at the device to the next, one behind the other."""

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
        losses, norms = torch.zeros((2, steps), device=device)
        correct, seen = torch.zeros((), device=device), 0
        every = 1 if device.type == "cpu" else CHECK_EVERY
        looked = time.perf_counter()
        for step, batch in enumerate(batches):
            self.rates.set((epoch - 1) * steps + step)
            losses[step], hits, norms[step] = self.step(*self._prepared(batch))
            correct += hits
            seen += len(batch)
            if (step + 1) % every == 0 or step + 1 == steps:
                new = slice(step // every * every, step + 1)
                check_steps(losses[new], norms[new], new.start, self.model, epoch, steps)
                now = time.perf_counter()
                self.step_seconds = min(self.step_seconds, (now - looked) / (new.stop - new.start))
                looked = now
        scaler = self.step.scaler
        if scaler.is_enabled() and scaler.get_scale() < _SMALLEST_SCALE:
            raise TrainingDiverged(
                f"epoch {epoch}, step {steps} of {steps}: the gradient is not finite in fp16, "
                "however it is scaled; training.precision=fp32 may help"
            )
        accuracy = None if self.mixup else float(correct) / seen
        return float(losses.double().mean()), accuracy

    def _prepared(self, batch: Images) -> tuple[Tensor, Tensor]:
        """What the step takes; blended here, by a share that timm draws on the host."""
        if self.mixup is None:
            return batch.images, batch.labels
        return self.mixup(self.normalise(batch.images), batch.labels)


@torch.no_grad()
def evaluate(batches: Iterable[Images], scores: Scores) -> tuple[float, float]:
    """Mean cross-entropy and accuracy (0 to 1) of the time-averaged logits, in eval mode."""
    scores.model.eval()
    loss, correct = torch.zeros((2,), dtype=torch.float64, device=scores.device)
    seen = 0
    for batch in batches:
        of_batch, hits = scores(batch.images, batch.labels)
        loss += of_batch
        correct += hits
        seen += len(batch)
    return float(loss) / seen, float(correct) / seen
