"""How far a training has come; its checkpoint holds all that the next step needs."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Generator, Tensor
from torch.optim import Optimizer

from msvit import workers
from msvit.data.fingerprint import Fingerprint
from msvit.training.checkpoint import save_checkpoint
from msvit.training.loading import Loader
from msvit.training.loop import Taken, Trainer
from msvit.training.optimization import restore_optimizer
from msvit.training.randomness import random_state, restore_random_state

_log = logging.getLogger("msvit")

_KEPT = ("history", "best", "selected", "train_seconds", "peak_memory_gb", "kernels")
KEYS = ("model", "optimizer", "scaler", "precision", *_KEPT)
"""What a checkpoint of every version has."""


class Progress:
    """Finished epochs, the steps of one that is not, and the weights that were best so far."""

    def __init__(
        self,
        path: Path,
        cell: str,
        trainer: Trainer,
        optimizer: Optimizer,
        precision: str,
        data: Fingerprint | None,
        loader: Loader,
        average: ModelEmaV3 | None,
        checkpoint_seconds: float,
    ) -> None:
        self.path, self.cell, self.trainer, self.data = path, cell, trainer, data
        self.optimizer, self.precision, self.average = optimizer, precision, average
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Tensor] = {}
        self.selected: dict[str, Any] = {}
        self.train_seconds = 0.0
        self.peak_memory_gb = 0.0
        self.kernels = ""
        self.step = "eager"
        self.crews = [workers.count()]
        """How many workers have trained it, one number for each change."""
        self._loader, self._waited_before = loader, 0.0
        self._taken: Mapping[str, Any] | None = None  # of an epoch that was broken off
        self._every, self._saved = checkpoint_seconds, time.monotonic()

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`save` has written."""
        self.trainer.model.load_state_dict(state["model"])
        restore_optimizer(self.optimizer, state["optimizer"])
        self.trainer.step.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.module.load_state_dict(state["average"])
        for name in _KEPT:
            setattr(self, name, state[name])
        self.step = state.get("step", "eager")  # versions before CUDA graphs did not say so
        self._waited_before = state.get("waited", 0.0)  # nor these how long they waited
        self._taken = state.get("taken")
        crews = state.get("crews", [1])  # nor of several workers
        self.crews = crews if crews[-1] == workers.count() else [*crews, workers.count()]
        _log.info("resuming %s %s", self.cell, self.where)

    @property
    def epoch(self) -> int:
        """Epochs finished."""
        return len(self.history)

    @property
    def where(self) -> str:
        """``after epoch 3``, or ``after step 20 of epoch 4``."""
        if self._taken is None:
            return f"after epoch {self.epoch}"
        return f"after step {self._taken['steps']} of epoch {self.epoch + 1}"

    @property
    def waited(self) -> float:
        """Seconds spent waiting for training data."""
        return self._waited_before + self._loader.waited

    @property
    def model(self) -> torch.nn.Module:
        """The one whose weights are selected: averaged, where they are averaged."""
        return self.trainer.model if self.average is None else self.average.module

    def taken(self, steps: int, device: torch.device) -> Taken:
        """What has been taken of the next epoch's ``steps``: nothing, or what a broken-off one."""
        if self._taken is None:
            return Taken.none_yet(steps, device)
        kept = {key: value for key, value in self._taken.items() if key != "random"}
        losses, correct = (kept.pop(key).to(device) for key in ("losses", "correct"))
        return Taken(losses, correct, **kept)

    def restore_random(self, generator: Generator, device: torch.device) -> None:
        """Put all generators where the broken-off epoch had them, if there is one."""
        if self._taken is not None:
            restore_random_state(self._taken["random"], generator, device)

    def add(self, row: dict[str, Any], train_seconds: float, peak_memory_gb: float) -> None:
        """Take in a finished epoch; keep its weights if it is the best by validation so far.

        Accuracy decides, then the lower loss, then the earlier epoch.
        """
        self._taken = None
        self.history.append(row)
        self.train_seconds += train_seconds
        self.peak_memory_gb = max(self.peak_memory_gb, peak_memory_gb)
        if not self.selected or _score(row) > _score(self.selected):
            self.selected = row
            weights = self.model.state_dict()
            self.best = {name: value.detach().cpu().clone() for name, value in weights.items()}

    def keep(self, taken: Taken, generator: Generator) -> None:
        """Save in the middle of an epoch, where the last checkpoint (or the start) is long ago."""
        if taken.steps < len(taken.losses) and time.monotonic() - self._saved >= self._every:
            self.save(taken, generator)

    def save(self, taken: Taken | None = None, generator: Generator | None = None) -> None:
        """Write the checkpoint; in the middle of an epoch with what has been ``taken`` of it.

        The first of several workers does, and what the others have is no more.
        """
        if not workers.is_first():
            return
        part = None
        if taken is not None and generator is not None:
            part = {
                **vars(taken),
                "losses": taken.losses.cpu(),
                "correct": taken.correct.cpu(),
                "random": random_state(generator, taken.losses.device),
            }
        state = {
            "cell": self.cell,
            "data": self.data,
            "model": self.trainer.model.state_dict(),
            "average": None if self.average is None else self.average.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.trainer.step.scaler.state_dict(),
            "precision": self.precision,
            "step": self.step,
            "waited": self.waited,
            "crews": self.crews,
            "taken": part,
            **{name: getattr(self, name) for name in _KEPT},
        }
        save_checkpoint(self.path, state)
        self._saved = time.monotonic()


def _score(row: dict[str, Any]) -> tuple[float, float]:
    return row["val_accuracy"], -row["val_loss"]
