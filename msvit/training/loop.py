"""One epoch of training, and evaluation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor, nn

from msvit import workers
from msvit.data.splits import Images
from msvit.training.batches import Normalise
from msvit.training.health import TrainingDiverged, check_steps, first_broken
from msvit.training.optimization import Rates
from msvit.training.step import Scores, TrainingStep

CHECK_EVERY = 16  # steps between looks at their health on a GPU, where each look waits for it
_SMALLEST_SCALE = 2.0**-24  # of fp16; gradients that overflow even then teach nothing


@dataclass
class Taken:
    """What the steps of an epoch that have been taken so far have left."""

    losses: Tensor
    """float32 ``[steps]`` of the whole epoch, on the device; 0 where no step was taken yet."""
    correct: Tensor
    """Images that were told right, a scalar on the device. Like all here, of all workers."""
    steps: int = 0
    images: int = 0
    seconds: float = 0.0
    """That they took, in processes before this one too."""
    skipped: int = 0
    """The last steps in a row that fp16 has not taken."""

    @classmethod
    def none_yet(cls, steps: int, device: torch.device) -> Taken:
        return cls(torch.zeros(steps, device=device), torch.zeros((), device=device))


@dataclass
class Trainer:
    """What all epochs of one training share."""

    model: nn.Module
    step: TrainingStep
    rates: Rates
    normalise: Normalise
    mixup: Mixup | None
    mixup_off_epoch: int = 0
    """Epochs after which nothing is mixed; 0: always."""
    erase: RandomErasing | None = None
    erasing_first: bool = False
    """Each image before they are mixed, and not behind it."""
    turns: int = 1
    """In which the model is given a batch, as of :func:`msvit.workers.own`."""
    step_seconds: float = math.inf
    """The least that a step took from one look at the device to the next, one behind the other."""

    def train_epoch(
        self,
        batches: Iterable[Images],
        epoch: int,
        taken: Taken,
        looked: Callable[[], None] = lambda: None,
    ) -> tuple[float, float | None]:
        """Mean loss and accuracy over one epoch (from 1), of which some steps may be taken.

        ``batches`` are those of the other steps. ``looked`` is called whenever all steps are known
        to be healthy, and ``taken`` is up to date. Accuracy is that of the model while it learns;
        None where classes are blended.

        Raises:
            TrainingDiverged: when loss, gradient, weights or running statistics are not finite.
        """
        self.model.train()
        if self.mixup is not None:
            self.mixup.mixup_enabled = not 0 < self.mixup_off_epoch < epoch
        steps = len(taken.losses)
        norms, skipped = torch.zeros_like(taken.losses), torch.zeros_like(taken.losses)
        every = 1 if taken.losses.device.type == "cpu" else CHECK_EVERY
        unseen, right = taken.steps, torch.zeros_like(taken.correct)
        began = last = time.perf_counter()
        before = taken.seconds
        for step, batch in enumerate(batches, taken.steps):
            self.rates.set((epoch - 1) * steps + step)
            taken.losses[step], hits, norms[step] = self.step(*self.prepared(batch))
            skipped[step] = self.step.skipped
            right += hits
            taken.images += len(batch) * workers.count()
            taken.steps += 1
            if taken.steps % every == 0 or taken.steps == steps:
                new = slice(unseen, taken.steps)
                sums = workers.total(torch.cat((taken.losses[new], right.view(1))))
                taken.losses[new] = sums[:-1] / workers.count()
                taken.correct += sums[-1]
                right = torch.zeros_like(right)
                check_steps(taken.losses[new], norms[new], unseen, self.model, epoch, steps)
                self._check_skipped(skipped[new], taken, epoch)
                now = time.perf_counter()
                self.step_seconds = min(self.step_seconds, (now - last) / (taken.steps - unseen))
                unseen, last = taken.steps, now
                taken.seconds = before + now - began
                looked()
        accuracy = None if self.mixup else float(taken.correct) / taken.images
        return float(taken.losses.double().mean()), accuracy

    def _check_skipped(self, skipped: Tensor, taken: Taken, epoch: int) -> None:
        """Refuse a whole epoch without a step, and a gradient that no scale makes finite."""
        scaler, steps = self.step.scaler, len(taken.losses)
        if not scaler.is_enabled():
            return
        for skip in skipped.tolist():
            taken.skipped = taken.skipped + 1 if skip else 0
        if taken.skipped == steps or scaler.get_scale() < _SMALLEST_SCALE:
            reason = first_broken(self.model) or "the norm of the gradient is not finite"
            raise TrainingDiverged(
                f"epoch {epoch}, step {taken.steps} of {steps}: {reason}, and in fp16 the last "
                f"{taken.skipped} steps were not taken; training.precision=fp32 may help"
            )

    def prepared(self, batch: Images) -> tuple[Tensor, Tensor]:
        """What the step takes; blended and erased here, by what timm draws on the host."""
        images, target = batch.images, batch.labels
        if self.mixup is None and self.erase is None:
            return images, target
        images = self.normalise(images)
        planes = images.flatten(1, -3)  # [B, C, H, W]; of events [B, T·C, H, W], all frames alike
        if self.erase is not None and self.erasing_first:
            planes = self._erased(planes, self.erase)
        if self.mixup is not None:
            planes, target = self.mixup(planes, target)
        if self.erase is not None and not self.erasing_first:
            planes = self._erased(planes, self.erase)
        return planes.view(images.shape), target

    def _erased(self, planes: Tensor, erase: RandomErasing) -> Tensor:
        """timm draws image by image: for those of other workers as well, to no effect."""
        if workers.count() == 1:
            return erase(planes)
        places = torch.arange(len(planes) * workers.count())
        own = {int(place): i for i, place in enumerate(workers.own(places, turns=self.turns))}
        for place in places.tolist():
            erase(planes[own[place]] if place in own else torch.empty_like(planes[0]))
        return planes


@torch.no_grad()
def evaluate(batches: Iterable[Images], scores: Scores) -> tuple[float, float]:
    """Mean cross-entropy and accuracy (0 to 1) of the time-averaged logits, in eval mode.

    Over the batches of all workers.
    """
    scores.model.eval()
    loss, correct = torch.zeros((2,), dtype=torch.float64, device=scores.device)
    seen = 0
    for batch in batches:
        of_batch, hits = scores(batch.images, batch.labels)
        loss += of_batch
        correct += hits
        seen += len(batch)
    of_all = workers.total(torch.stack((loss, correct, loss.new_tensor(seen))))
    loss_sum, hits_sum, images = of_all.tolist()
    return loss_sum / images, hits_sum / images
