"""One cell from its configuration to its record."""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from msvit import kernels
from msvit.cells import SCHEMA, Cell
from msvit.data import data_options, load_splits
from msvit.data.fingerprint import Fingerprint, describe_images
from msvit.data.splits import Splits
from msvit.metrics import Meter
from msvit.models import create_model
from msvit.options import DataError
from msvit.precision import choose_precision
from msvit.recipes import TrainingOptions
from msvit.runtime import (
    held_memory_gb,
    keep_to_share,
    peak_memory_gb,
    prepare_process,
    reset_peak_memory,
    training_device,
)
from msvit.training.batches import Normalise, steps_per_epoch, train_batches
from msvit.training.checkpoint import load_checkpoint, save_checkpoint
from msvit.training.environment import describe_environment, device_name
from msvit.training.health import TrainingDiverged, check_state
from msvit.training.loading import Loader
from msvit.training.loop import Trainer, evaluate
from msvit.training.optimization import Rates, make_mixup, make_optimizer, restore_optimizer
from msvit.training.step import Scores, TrainingStep, choose_recorder
from msvit.training.trained import save_trained

_log = logging.getLogger("msvit")


def train_cell(
    cell: Cell,
    folder: Path,
    *,
    data_dir: Path | None = None,
    report: Callable[[dict[str, Any]], None] = lambda progress: None,
) -> dict[str, Any]:
    """Train, select by validation accuracy, measure on the test images; returns the record.

    After each epoch ``folder/checkpoint.pt`` is replaced and ``report`` is called with
    ``epoch``, ``epochs``, ``train_loss``, ``val_loss``, ``val_accuracy`` and ``seconds``; on a GPU
    also with ``gpu``, its name, ``gpu_memory_gb``, what was taken of it, and what the whole cell is
    expected to take: ``gpu_seconds`` (all steps as the fastest) of ``cell_seconds``. At the end
    ``folder/weights.safetensors`` holds the selected weights. A cell that was stopped goes on after
    its last finished epoch and ends with the record it would have had: on the same CPU with the
    same number of threads bit for bit, save times and memory.

    Raises:
        TrainingDiverged: when a loss, a gradient, weights or running statistics are not finite.
        DataError: when images are missing or broken, or others than those of the epochs before.
    """
    began = time.perf_counter()
    prepare_process()
    device = training_device()
    keep_to_share(device)
    _be_deterministic(device)
    options = TrainingOptions.parse(cell.training, "training")
    splits = _load_data(cell, data_dir)
    train = Loader(splits.train, options.batch_size, device)
    validation = Loader(splits.validation, options.eval_batch_size, device)
    state = load_checkpoint(folder / "checkpoint.pt", cell.id, _KEYS)
    # ``auto`` may mean something else where, or by what, a training goes on.
    precision = choose_precision(state["precision"] if state else options.precision, device)
    normalise = Normalise(splits.mean, splits.std, device)

    _seed_everything(cell.seed, 0)
    model = create_model(**cell.model).to(device)
    steps = steps_per_epoch(len(splits.train), options)
    optimizer = make_optimizer(model, options, device)
    recorder, eager = choose_recorder(precision, device)
    trainer = Trainer(
        model=model,
        step=TrainingStep(model, options, optimizer, normalise, precision, recorder, eager),
        rates=Rates(optimizer, options, steps, device),
        normalise=normalise,
        mixup=make_mixup(options, cell.model["num_classes"]),
    )
    validation_scores = Scores(model, normalise, precision, recorder)
    progress = _Progress(
        folder / "checkpoint.pt", cell.id, trainer, optimizer, precision.name, splits.fingerprint
    )
    if state:
        _check_same_images(state.get("data"), splits.fingerprint, progress.path)
        progress.resume(state)
        when = f"as resumed after epoch {progress.epoch}"
        check_state(model, when, f"delete {progress.path} to train from the start")
    else:
        check_state(model, "before the first step", "its options give no usable initialisation")

    reset_peak_memory(device)
    resumed = progress.epoch
    for epoch in range(progress.epoch + 1, options.epochs + 1):
        # Everything random in an epoch follows from (seed, epoch): nothing to keep for resume.
        generator = _seed_everything(cell.seed, epoch)
        started = time.perf_counter()
        batches = train_batches(train, options, generator, (cell.seed, epoch))
        train_loss, train_accuracy = trainer.train_epoch(batches, epoch, steps)
        trained = time.perf_counter()
        val_loss, val_accuracy = evaluate(validation.batches(), validation_scores)
        if not math.isfinite(val_loss):
            raise TrainingDiverged(f"epoch {epoch}, after step {steps}: validation loss {val_loss}")
        seconds = time.perf_counter() - started
        row = {
            "epoch": epoch,
            "lr": trainer.rates.current,
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
            "val_loss": val_loss,
            "val_accuracy": val_accuracy,
            "seconds": seconds,
        }
        progress.kernels = kernels.describe(model, device, precision.dtype)
        progress.step = trainer.step.how
        progress.add(row, trained - started, peak_memory_gb(device))
        progress.save()
        shown = ("epoch", "train_loss", "val_loss", "val_accuracy", "seconds")
        told: dict[str, Any] = {"epochs": options.epochs, **{key: row[key] for key in shown}}
        if device.type == "cuda":
            told |= {"gpu": device_name(device), "gpu_memory_gb": held_memory_gb(device)}
            all_steps = steps * (options.epochs - resumed)
            told["gpu_seconds"] = trainer.step_seconds * all_steps
            left = (options.epochs - epoch) * seconds
            told["cell_seconds"] = time.perf_counter() - began + left
        report(told)

    # Not from a graph, which no monitor sees: and what it holds may be wanted.
    trainer.step.release()
    validation_scores.release()
    model.load_state_dict(progress.best)
    chosen = progress.selected["epoch"]
    check_state(model, f"the weights of epoch {chosen}", "no result can be measured with them")
    with Meter(model) as meter:
        test = Loader(splits.test, options.eval_batch_size, device)
        scores = Scores(model, normalise, precision)
        test_loss, test_accuracy = evaluate(test.batches(), scores)
    if not math.isfinite(test_loss):
        raise TrainingDiverged(f"the weights of epoch {chosen}: the test loss is {test_loss}")
    measured = meter.result()
    environment = describe_environment(device)
    save_trained(folder, cell, progress.best, splits.mean, splits.std, environment["commit"])
    images_trained = progress.epoch * steps * min(options.batch_size, len(splits.train))
    return {
        "schema": SCHEMA,
        "id": cell.id,
        "cell": cell.as_dict(),
        "data": splits.fingerprint,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "history": progress.history,
        "selected_epoch": chosen,
        "test": {"images": len(splits.test), "loss": test_loss, "accuracy": test_accuracy},
        "firing": measured.firing,
        "firing_rate": measured.firing_rate,
        "operations": measured.operations,
        "training_seconds": sum(row["seconds"] for row in progress.history),
        "images_per_second": images_trained / progress.train_seconds,
        "peak_memory_gb": progress.peak_memory_gb,
        "precision": precision.label,
        "kernels": progress.kernels,
        "step": progress.step,
        "environment": environment,
    }


_KEPT = ("history", "best", "selected", "train_seconds", "peak_memory_gb", "kernels")
_KEYS = ("model", "optimizer", "scaler", "precision", *_KEPT)


class _Progress:
    """How far a training has come; its checkpoint holds all that the next epoch needs."""

    def __init__(
        self,
        path: Path,
        cell: str,
        trainer: Trainer,
        optimizer: Optimizer,
        precision: str,
        data: Fingerprint | None,
    ):
        self.path, self.cell, self.trainer, self.data = path, cell, trainer, data
        self.optimizer, self.precision = optimizer, precision
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Tensor] = {}
        self.selected: dict[str, Any] = {}
        self.train_seconds = 0.0
        self.peak_memory_gb = 0.0
        self.kernels = ""
        self.step = "eager"

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`save` has written."""
        self.trainer.model.load_state_dict(state["model"])
        restore_optimizer(self.optimizer, state["optimizer"])
        self.trainer.step.scaler.load_state_dict(state["scaler"])
        for name in _KEPT:
            setattr(self, name, state[name])
        self.step = state.get("step", "eager")  # versions before CUDA graphs did not say so
        _log.info("resuming %s after epoch %d", self.cell, self.epoch)

    @property
    def epoch(self) -> int:
        """Epochs finished."""
        return len(self.history)

    def add(self, row: dict[str, Any], train_seconds: float, peak_memory_gb: float) -> None:
        """Take in a finished epoch; keep its weights if it is the best by validation so far.

        Accuracy decides, then the lower loss, then the earlier epoch.
        """
        self.history.append(row)
        self.train_seconds += train_seconds
        self.peak_memory_gb = max(self.peak_memory_gb, peak_memory_gb)
        if not self.selected or _score(row) > _score(self.selected):
            self.selected = row
            weights = self.trainer.model.state_dict()
            self.best = {name: value.detach().cpu().clone() for name, value in weights.items()}

    def save(self) -> None:
        state = {
            "cell": self.cell,
            "data": self.data,
            "model": self.trainer.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.trainer.step.scaler.state_dict(),
            "precision": self.precision,
            "step": self.step,
            **{name: getattr(self, name) for name in _KEPT},
        }
        save_checkpoint(self.path, state)


def _score(row: dict[str, Any]) -> tuple[float, float]:
    return row["val_accuracy"], -row["val_loss"]


def _load_data(cell: Cell, data_dir: Path | None) -> Splits:
    options = {key: value for key, value in cell.data.items() if key != "name"}
    return load_splits(data_options(cell.data["name"], options, "data"), data_dir)


def _check_same_images(known: Fingerprint | None, found: Fingerprint | None, path: Path) -> None:
    """Epochs on some images and epochs on others are no training; versions before did not tell."""
    if known is not None and found is not None and known != found:
        raise DataError(
            f"{path} was trained on {describe_images(known)}, and here are "
            f"{describe_images(found)}: give the images of then, or delete it to start again"
        )


def _be_deterministic(device: torch.device) -> None:
    """The same bits in every run, where that costs nothing."""
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
        # Filling fresh tensors would be one more pass over memory, and hides no difference.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _seed_everything(seed: int, epoch: int) -> torch.Generator:
    """Seed all generators in use for one epoch (0: initialisation); returns a fresh one."""
    words = np.random.SeedSequence([seed, epoch]).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(words[1])  # noqa: NPY002 -- timm's mixup draws from the global generator
    torch.manual_seed(int(words[2]))
    return torch.Generator().manual_seed(int(words[3]))
