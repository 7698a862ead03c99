"""One step of training, and the scores of one batch, as functions that never wait for the device.

They take and give tensors that stay on the device and read nothing back, so that on a GPU they are
CUDA graphs (:mod:`msvit.training.graph`).
"""

from __future__ import annotations

import logging

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from msvit import workers
from msvit.precision import Precision
from msvit.recipes import TrainingOptions
from msvit.training.batches import Normalise, time_first
from msvit.training.data_parallel import data_parallel, summed_by_workers
from msvit.training.graph import CudaGraphs, Graphed, Recorder
from msvit.training.health import state_tensors, total_norm
from msvit.training.optimization import RECORDABLE, training_loss

_log = logging.getLogger("msvit")


def choose_recorder(precision: Precision, device: torch.device) -> tuple[Recorder | None, str]:
    """What records the steps of a training on ``device``, or None and why (``""`` on a CPU)."""
    if device.type != "cuda":
        return None, ""
    if precision.dtype == torch.float16:
        return None, "fp16 scales its loss by what it finds"
    if workers.count() > 1:
        return None, "several workers share the step"
    return CudaGraphs(), ""


class TrainingStep:
    """``(images, target) -> (loss, hits, norm)``: one update of the weights.

    ``images`` are bytes ``[B, C, H, W]`` (events: ``[B, T, C, H, W]``), or normalised already;
    ``target`` is int64 ``[B]``, or soft ``[B, classes]``, of which no image is a hit. The norm is
    that of gradient, weights and running statistics together (:mod:`msvit.training.health`), behind
    the update.
    """

    def __init__(
        self,
        model: nn.Module,
        options: TrainingOptions,
        optimizer: Optimizer,
        normalise: Normalise,
        precision: Precision,
        recorder: Recorder | None = None,
        eager: str = "",
        average: ModelEmaV3 | None = None,
    ) -> None:
        """``eager`` is why there is no ``recorder``, if that wants saying; ``average`` takes in the
        weights behind every update."""
        self._average = average
        self._forward: nn.Module | None = model if workers.count() == 1 else None
        self._model, self._options, self._optimizer = model, options, optimizer
        self._normalise, self._precision = normalise, precision
        self.scaler = torch.amp.GradScaler(
            normalise.mean.device.type, enabled=precision.dtype == torch.float16
        )
        self.skipped = torch.zeros((), dtype=torch.bool, device=normalise.mean.device)
        """Whether fp16 has not taken the last step, whose gradient was not finite."""
        self._state = [tensor for _, tensor in state_tensors(model)]
        self._eager = eager
        # What reads values back steps outside.
        self._in_one = options.optimizer in RECORDABLE
        self._run = Graphed(self._whole if self._in_one else self.learn, recorder)
        if eager:
            _log.info("no CUDA graph, so slower: %s", eager)
        elif recorder is not None and not self._in_one:
            _log.info("%s reads values back: it steps outside of the CUDA graph", options.optimizer)

    def __call__(self, images: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        loss, hits, norm = self._run(images, target)
        return loss, hits, norm if self._in_one else self.update(norm)

    @property
    def how(self) -> str:
        """For the record: ``graph``, ``graph without optimizer``, or ``eager`` (on a GPU: why)."""
        if self._run.recorded:
            return "graph" if self._in_one else "graph without optimizer"
        why = self._eager or self._run.problem
        return f"eager: {why}" if why else "eager"

    def release(self) -> None:
        """Give back what the graph and the gradient hold of the device."""
        self._run.release()
        self._optimizer.zero_grad(set_to_none=True)

    def _whole(self, images: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        loss, hits, norm = self.learn(images, target)
        return loss, hits, self.update(norm)

    def learn(self, images: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, hits, and the norm of the gradient, which is clipped."""
        if images.dtype == torch.uint8:
            images = self._normalise(images)
        if self._forward is None:
            self._forward = self._joined(images[:2], target[:2])
        self._optimizer.zero_grad(set_to_none=True)
        loss, hits = images.new_zeros(()), target.new_zeros((), dtype=torch.long)
        parts = self._options.grad_accum_steps
        # Not chunk: the last of a training set that does not fill a batch may be smaller.
        split = zip(images.tensor_split(parts), target.tensor_split(parts), strict=True)
        for part, (some, theirs) in enumerate(split, 1):
            with summed_by_workers(self._forward, part == parts):
                share = len(some) / len(images)
                of_part, right = self._backward(self._forward, some, theirs, share)
            loss, hits = loss + of_part, hits + right
        weights = [weight for weight in self._model.parameters() if weight.grad is not None]
        clip = self._options.clip_grad
        if clip is not None:
            self.scaler.unscale_(self._optimizer)
        norm = total_norm([weight.grad for weight in weights if weight.grad is not None])
        if clip is not None:
            nn.utils.clip_grads_with_norm_(weights, clip, norm)
        return loss, hits, norm

    def _joined(self, images: Tensor, target: Tensor) -> nn.Module:
        """The model, sharing its gradient with other workers'; any ``images`` do, and targets."""

        def learn(module: nn.Module) -> None:
            self._backward(module, images, target, 1.0)

        return data_parallel(self._model, learn, self._options.sync_batchnorm)

    def _backward(
        self, model: nn.Module, images: Tensor, target: Tensor, share: float
    ) -> tuple[Tensor, Tensor]:
        """Add the gradient of a part of the batch, ``share`` of it; its part of loss and hits."""
        with self._precision.autocast(images.device):
            logits = model(time_first(images))  # [T, B, classes]
            loss = training_loss(logits, target, self._options) * share
        self.scaler.scale(loss).backward()
        with torch.no_grad():
            if target.is_floating_point():
                hits = torch.zeros((), dtype=torch.long, device=images.device)
            else:
                hits = (logits.mean(0).argmax(-1) == target).sum()
        return loss.detach(), hits

    def update(self, norm: Tensor) -> Tensor:
        """Step the optimizer; the norm of gradient, weights and statistics."""
        if self.scaler.is_enabled():  # it looks for steps to skip itself, and finds some
            self.skipped = ~torch.isfinite(norm)
            norm = torch.zeros_like(norm)
        self.scaler.step(self._optimizer)
        self.scaler.update()
        if self._average is not None:
            self._average.update(self._model)
        return total_norm([norm, *self._state])


class Scores:
    """``(images, labels) -> (loss, hits)``: sums over a batch in eval mode, loss in float64.

    Of the time-averaged logits. With a ``recorder`` no hook of the model is called any more.
    """

    def __init__(
        self,
        model: nn.Module,
        normalise: Normalise,
        precision: Precision,
        recorder: Recorder | None = None,
    ) -> None:
        self.model, self.device = model, normalise.mean.device
        self._normalise, self._precision = normalise, precision
        self._run = Graphed(self._score, recorder)

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        loss, hits = self._run(images, labels)
        return loss, hits

    def release(self) -> None:
        """Give back what the graph holds of the device."""
        self._run.release()

    @property
    def how(self) -> str:
        """``graph`` or ``eager``."""
        return "graph" if self._run.recorded else "eager"

    def _score(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with self._precision.autocast(self.device):
            logits = self.model(time_first(self._normalise(images)))
        logits = logits.float().mean(0)
        loss = cross_entropy(logits, labels, reduction="sum")
        return loss.double(), (logits.argmax(-1) == labels).sum()
