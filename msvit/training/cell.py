"""One cell from its configuration to its record."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3

from msvit import kernels, workers
from msvit.cells import SCHEMA, Cell
from msvit.data import load_splits, options_of
from msvit.data.crops import RandomPart
from msvit.data.fingerprint import Fingerprint, describe_images
from msvit.data.splits import Images, Samples, Streamed
from msvit.data.views import Centre
from msvit.layers.shared_statistics import share_statistics
from msvit.metrics import Meter
from msvit.models import create_model
from msvit.options import ConfigError, DataError
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
from msvit.training.augmentation import Augmentation
from msvit.training.augmentation.crops import middle
from msvit.training.batches import Normalise, eval_batches, steps_per_epoch, train_batches
from msvit.training.checkpoint import load_checkpoint
from msvit.training.environment import describe_environment, device_name
from msvit.training.health import TrainingDiverged, check_state
from msvit.training.loading import Loader
from msvit.training.loop import Trainer, evaluate
from msvit.training.optimization import Rates, make_erasing, make_mixup, make_optimizer
from msvit.training.progress import KEYS, Progress
from msvit.training.randomness import seed_everything
from msvit.training.start import load_start
from msvit.training.step import Scores, TrainingStep, choose_recorder
from msvit.training.trained import save_trained

_log = logging.getLogger("msvit")


def train_cell(
    cell: Cell,
    folder: Path,
    *,
    data_dir: Path | None = None,
    report: Callable[[dict[str, Any]], None] = lambda progress: None,
    checkpoint_seconds: float = 300.0,
) -> dict[str, Any]:
    """Train, select by validation accuracy, measure on the test images; returns the record.

    ``folder/checkpoint.pt`` is replaced after each epoch, and in the middle of one where the last
    is ``checkpoint_seconds`` old. After each epoch ``report`` is called with ``epochs`` and what
    the record's history says of this one; on a GPU also with ``gpu``, its name, ``gpu_memory_gb``,
    what was taken of it, and what the whole cell is expected to take: ``gpu_seconds`` (all steps as
    the fastest) of ``cell_seconds``. At the end ``folder/weights.safetensors`` holds the selected
    weights. A cell that was stopped goes on from its last checkpoint and ends with the record it
    would have had: on the same CPU with the same number of threads bit for bit, save times and
    memory. ``folder`` is that of the cell in its results folder, where ``training.start_from`` is
    looked for.

    Several workers (:mod:`msvit.workers`) call this together and return the same. The first alone
    reads and writes ``folder`` and reports; all need the images.

    Raises:
        ConfigError: when a batch has fewer images than parts that it is to be had in.
        UnevenWorkers: when several workers cannot share a batch evenly.
        TrainingDiverged: when a loss, a gradient, weights or running statistics are not finite.
        DataError: when images are missing or broken, or others than those of the epochs before, or
            the weights to start from are missing.
        CheckpointError: when the weights to start from do not fit.
    """
    began = time.perf_counter()
    prepare_process()
    device = training_device()
    keep_to_share(device)
    _be_deterministic(device)
    options = TrainingOptions.parse(cell.training, "training")
    splits = load_splits(options_of(cell.data), data_dir)
    train_set, is_cropped = _as_cropped(splits.train, options)
    if problem := options.uneven(1, len(train_set)):
        raise ConfigError("training", "batch_size", problem)
    if problem := options.uneven(workers.count(), len(train_set)):
        raise workers.UnevenWorkers("training", "batch_size", problem)
    train = Loader(train_set, options.batch_size // workers.count(), device)
    held_out = as_scored(splits.validation, options)
    validation = Loader(held_out, options.eval_batch_size, device)
    state = None
    if workers.is_first():
        state = load_checkpoint(folder / "checkpoint.pt", cell.id, KEYS)
    state = workers.from_first(state)
    # ``auto`` may mean something else where, or by what, a training goes on.
    wanted = state["precision"] if state else options.precision
    precision = choose_precision(wanted, device)
    if workers.count() > 1:  # or on the machine of another worker
        precision = choose_precision(workers.from_first(precision.name), device)
    normalise = Normalise(splits.mean, splits.std, device)

    seed_everything(cell.seed, 0)
    model = create_model(**cell.model).to(device)
    if options.sync_batchnorm:
        share_statistics(model)
    if options.start_from is not None and not state:
        if workers.is_first():
            load_start(model, options.start_from, folder.absolute().parents[1])
        first = {name: value.cpu() for name, value in model.state_dict().items()}
        model.load_state_dict(workers.from_first(first))
    steps = steps_per_epoch(len(splits.train), options)
    optimizer = make_optimizer(model, options, device)
    average = None if options.ema_decay is None else ModelEmaV3(model, options.ema_decay)
    recorder, eager = choose_recorder(precision, device)
    step = TrainingStep(model, options, optimizer, normalise, precision, recorder, eager, average)
    trainer = Trainer(
        model=model,
        step=step,
        rates=Rates(optimizer, options, steps, device),
        normalise=normalise,
        mixup=make_mixup(options, cell.model["num_classes"]),
        mixup_off_epoch=options.mixup_off_epoch,
        erase=make_erasing(options, device),
        erasing_first=options.erasing_first,
        turns=options.grad_accum_steps,
    )
    augment = Augmentation(options, splits.mean, device, parts=is_cropped)
    progress = Progress(
        path=folder / "checkpoint.pt",
        cell=cell.id,
        trainer=trainer,
        optimizer=optimizer,
        precision=precision.name,
        data=splits.fingerprint,
        loader=train,
        average=average,
        checkpoint_seconds=checkpoint_seconds,
    )
    validation_scores = Scores(progress.model, normalise, precision, recorder)
    raw_scores = Scores(model, normalise, precision, recorder) if average is not None else None
    _check_same_images_everywhere(splits.fingerprint)
    if state:
        _check_same_images(state.get("data"), splits.fingerprint, progress.path)
        progress.resume(state)
        when = f"as resumed {progress.where}"
        check_state(model, when, f"delete {progress.path} to train from the start")
    else:
        check_state(model, "before the first step", "its options give no usable initialisation")

    kernels.prepare(model, device, precision.dtype)
    reset_peak_memory(device)
    resumed = progress.epoch
    for epoch in range(progress.epoch + 1, options.all_epochs + 1):
        # Everything random in an epoch follows from (seed, epoch): what an epoch in the middle of
        # which a training goes on has drawn before, its checkpoint knows.
        generator = seed_everything(cell.seed, epoch)
        taken = progress.taken(steps, device)
        batches = train_batches(
            train, options, augment, generator, (cell.seed, epoch), first=taken.steps
        )
        progress.restore_random(generator, device)
        train_loss, train_accuracy = trainer.train_epoch(
            batches, epoch, taken, looked=partial(progress.keep, taken, generator)
        )
        trained = time.perf_counter()
        workers.take_buffers_of_first(progress.model)
        val_loss, val_accuracy = evaluate(eval_batches(validation), validation_scores)
        if not math.isfinite(val_loss):
            raise TrainingDiverged(f"epoch {epoch}, after step {steps}: validation loss {val_loss}")
        raw = {}
        if raw_scores is not None:
            workers.take_buffers_of_first(model)
            raw_loss, raw_accuracy = evaluate(eval_batches(validation), raw_scores)
            raw = {"raw_val_loss": raw_loss, "raw_val_accuracy": raw_accuracy}
        seconds = taken.seconds + time.perf_counter() - trained
        row = {
            "epoch": epoch,
            "lr": trainer.rates.current,
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
            "val_loss": val_loss,
            "val_accuracy": val_accuracy,
            **raw,
            "seconds": seconds,
        }
        progress.kernels = kernels.describe(model, device, precision.dtype)
        progress.step = trainer.step.how
        progress.add(row, taken.seconds, workers.most(peak_memory_gb(device)))
        progress.save()
        known = {key: value for key, value in row.items() if value is not None}
        told: dict[str, Any] = {"epochs": options.all_epochs, **known}
        if device.type == "cuda":
            told |= {"gpu": device_name(device), "gpu_memory_gb": held_memory_gb(device)}
            all_steps = steps * (options.all_epochs - resumed)
            told["gpu_seconds"] = trainer.step_seconds * all_steps
            left = (options.all_epochs - epoch) * seconds
            told["cell_seconds"] = time.perf_counter() - began + left
        if workers.is_first():
            report(told)

    # Not from a graph, which no monitor sees: and what it holds may be wanted.
    trainer.step.release()
    validation_scores.release()
    if raw_scores is not None:
        raw_scores.release()
    model.load_state_dict(progress.best)
    chosen = progress.selected["epoch"]
    check_state(model, f"the weights of epoch {chosen}", "no result can be measured with them")
    with Meter(model) as meter:
        test = Loader(as_scored(splits.test, options), options.eval_batch_size, device)
        scores = Scores(model, normalise, precision)
        test_loss, test_accuracy = evaluate(eval_batches(test), scores)
    if not math.isfinite(test_loss):
        raise TrainingDiverged(f"the weights of epoch {chosen}: the test loss is {test_loss}")
    for rank, counts in enumerate(workers.of_all(meter.counts())):
        if rank != workers.rank():
            meter.add(counts)
    measured = meter.result()
    environment = describe_environment(device)
    if workers.is_first():
        save_trained(folder, cell, progress.best, splits.mean, splits.std, environment["commit"])
    told_of_workers = (
        {"workers": workers.describe(progress.crews)} if max(progress.crews) > 1 else {}
    )
    images_trained = progress.epoch * steps * options.batch_of(len(splits.train))
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
        "data_wait": min(1.0, progress.waited / progress.train_seconds),
        "peak_memory_gb": progress.peak_memory_gb,
        "precision": precision.label,
        "kernels": progress.kernels,
        "step": progress.step,
        **told_of_workers,
        "environment": environment,
    }


def _as_cropped(samples: Samples, options: TrainingOptions) -> tuple[Samples, bool]:
    """The training images, and whether they already come as random parts of what is on disk."""
    if options.crop_scale is None or not isinstance(samples, Streamed):
        return samples, False
    view = RandomPart(samples.shape[-1], options.crop_scale, options.crop_ratio)
    return samples.seen(view), True


def as_scored(samples: Samples, options: TrainingOptions) -> Samples:
    """Validation or test images, cut out as the recipe says."""
    if options.crop_pct is None:
        return samples
    if isinstance(samples, Streamed):
        return samples.seen(Centre(samples.shape[-1], options.crop_pct))
    assert isinstance(samples, Images), "samples are in memory or streamed"
    return Images(middle(samples.images, options.crop_pct), samples.labels)


def _check_same_images(known: Fingerprint | None, found: Fingerprint | None, path: Path) -> None:
    """Epochs on some images and epochs on others are no training; versions before did not tell."""
    if known is not None and found is not None and known != found:
        raise DataError(
            f"{path} was trained on {describe_images(known)}, and here are "
            f"{describe_images(found)}: give the images of then, or delete it to start again"
        )


def _check_same_images_everywhere(found: Fingerprint | None) -> None:
    """Workers on several machines may read several copies of a data set."""
    for rank, theirs in enumerate(workers.of_all(found)):
        if theirs is not None and found is not None and theirs != found:
            raise DataError(
                f"worker {workers.rank()} found {describe_images(found)}, and worker {rank} "
                f"{describe_images(theirs)}: all need the same images"
            )


def _be_deterministic(device: torch.device) -> None:
    """The same bits in every run, where that costs nothing."""
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
        # Filling fresh tensors would be one more pass over memory, and hides no difference.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
