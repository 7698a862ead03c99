"""Training of a cell: repeatable, resumable, honest about what went wrong."""

import copy
import json
import logging
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from itertools import count

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.mixup import mixup_target
from timm.loss import SoftTargetCrossEntropy
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3

import msvit.training.cell as cell_module
import msvit.training.progress as progress_module
from msvit import create_model, processor
from msvit.cells import resolve_cell
from msvit.checkpoints import CheckpointError
from msvit.data import data_options, image_files, load_splits
from msvit.data.splits import Images
from msvit.kernels.cpu import build, passes, sparse_products
from msvit.options import ConfigError, DataError
from msvit.precision import MAX_ERROR, bf16_is_faster, choose_precision, product_error
from msvit.recipes import TrainingOptions, list_recipes, load_recipe
from msvit.records.energy import sop_spikformer
from msvit.records.measures import measured
from msvit.records.store import cell_folder, read_record, write_record
from msvit.training import TrainingDiverged, train_cell
from msvit.training.batches import Normalise
from msvit.training.health import check_steps
from msvit.training.loop import Taken, Trainer
from msvit.training.optimization import (
    Rates,
    make_mixup,
    make_optimizer,
    make_schedule,
    training_loss,
)
from msvit.training.start import load_start
from msvit.training.step import TrainingStep
from msvit.training.trained import load_trained
from studies.run import main as run_main

CPU = torch.device("cpu")


def tiny_cell(seed=0, model=(), **training):
    return resolve_cell(
        {
            "model": {
                "name": "msvit",
                "dim": 16,
                "heads": 2,
                "depths": [1, 1],
                "widths": [0.5, 1.0],
                "timesteps": 2,
                "threshold": 0.3,
                "drop_path": 0.1,
                **dict(model),
            },
            "data": {"name": "digits", "image_size": 8, "train_per_class": 13},
            "training": {"epochs": 3, "batch_size": 32, "shift": 1, **training},
            "seed": seed,
        },
        "test",
    )


TIMES = ("training_seconds", "images_per_second", "data_wait")


def comparable(record):
    """A record without what may differ between two runs of one cell."""
    record = copy.deepcopy(record)
    for row in record["history"]:
        del row["seconds"]
    for key in (*TIMES, "peak_memory_gb", "environment"):
        del record[key]
    return record


class Stopped(Exception):
    pass


def stop_after(epoch):
    def report(progress):
        if progress["epoch"] == epoch:
            raise Stopped

    return report


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    return train_cell(tiny_cell(), tmp_path_factory.mktemp("cell"))


def test_a_record_is_complete_and_can_be_written(record, tmp_path):
    write_record(tmp_path, record)
    assert read_record(tmp_path, record["id"]) == json.loads(json.dumps(record))
    assert [row["epoch"] for row in record["history"]] == [1, 2, 3]
    best = max(record["history"], key=lambda row: (row["val_accuracy"], -row["val_loss"]))
    assert record["selected_epoch"] == best["epoch"]
    assert record["test"]["images"] == 340
    assert [sum(classes) for classes in record["data"]["counts"].values()] == [1457, 340]
    assert 0 <= record["test"]["accuracy"] <= 1
    assert {row["timestep"] for row in record["firing"]} == {0, 1}
    assert "energy_mj" not in record  # it follows from the operations
    assert sop_spikformer(record["operations"]) > 0
    assert record["images_per_second"] > 0
    assert 0.01 < record["peak_memory_gb"] < 1000


def test_the_same_cell_gives_the_same_record_bit_for_bit(record, tmp_path):
    again = train_cell(tiny_cell(), tmp_path)
    assert comparable(again) == comparable(record)
    other = train_cell(tiny_cell(seed=1), tmp_path / "other")
    assert other["history"] != record["history"]


@pytest.mark.parametrize("epoch", [1, 3])
def test_a_stopped_cell_ends_as_if_never_stopped(record, tmp_path, epoch):
    with pytest.raises(Stopped):
        train_cell(tiny_cell(), tmp_path, report=stop_after(epoch))
    reported = []
    resumed = train_cell(tiny_cell(), tmp_path, report=reported.append)
    assert [progress["epoch"] for progress in reported] == list(range(epoch + 1, 4))
    assert comparable(resumed) == comparable(record)


EVERYTHING = {
    "precision": "fp32",
    "hflip": True,
    "rand_augment": "rand-m9-n2-mstd0.5-inc1",
    "crop_scale": [0.5, 1.0],
    "mixup": 0.5,
    "cutmix": 1.0,
    "random_erasing": 0.5,
    "random_erasing_mode": "pixel",
    "mixup_off_epoch": 1,
    "grad_accum_steps": 2,
    "ema_decay": 0.9,
    "cooldown_epochs": 1,
    "epochs": 1,
    "optimizer": "lamb",
}


def stop_after_save(monkeypatch, number):
    """Have the process end behind its checkpoint of this number."""
    saved, save = [], progress_module.save_checkpoint

    def last(path, state):
        save(path, state)
        saved.append(state["taken"])
        if len(saved) == number:
            raise Stopped

    monkeypatch.setattr(progress_module, "save_checkpoint", last)
    return saved


@pytest.mark.slow
def test_a_cell_killed_in_the_middle_of_an_epoch_ends_as_if_never_stopped(
    tmp_path, monkeypatch, caplog
):
    cell = tiny_cell(**EVERYTHING)
    with monkeypatch.context() as patch:
        saved = stop_after_save(patch, 100)
        whole = train_cell(cell, tmp_path / "whole")
        assert saved == [None, None], "the clock asks for no others"
    with monkeypatch.context() as patch:
        saved = stop_after_save(patch, 6)
        with pytest.raises(Stopped):
            train_cell(cell, tmp_path / "killed", checkpoint_seconds=0)
    assert saved[-1]["steps"] == 2, "of 4 steps an epoch, each with a checkpoint"
    with caplog.at_level(logging.INFO, "msvit"):
        resumed = train_cell(cell, tmp_path / "killed")
    assert "after step 2 of epoch 2" in caplog.text
    assert comparable(resumed) == comparable(whole)
    assert len(whole["history"]) == 2
    assert whole["history"][-1]["lr"] == cell.training["min_lr"]


def test_the_record_says_how_long_data_was_waited_for(record):
    assert 0 <= record["data_wait"] < 0.5
    assert measured(record)["data_wait"] == record["data_wait"]


needs_bf16 = pytest.mark.skipif(not processor.multiplies_bf16(), reason="would take minutes here")


@needs_bf16
@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp16", marks=pytest.mark.slow)])
def test_resume_is_exact_with_every_source_of_randomness(tmp_path, precision):
    cell = tiny_cell(
        precision=precision,
        mixup=0.5,
        clip_grad=1.0,
        hflip=True,
        loss="tet",
        optimizer="lamb",
        ema_decay=0.9,
    )
    whole = train_cell(cell, tmp_path / "whole")
    with pytest.raises(Stopped):
        train_cell(cell, tmp_path / "stopped", report=stop_after(2))
    assert comparable(train_cell(cell, tmp_path / "stopped")) == comparable(whole)
    assert whole["history"][0]["train_accuracy"] is None, "mixed images have no one class"
    assert whole["precision"].startswith(f"{precision} autocast")


@needs_bf16
def test_a_cell_goes_on_in_the_precision_it_was_begun_in(tmp_path, monkeypatch):
    monkeypatch.setattr(processor, "description", lambda: "AuthenticAMD avx512_bf16")
    with pytest.raises(Stopped):
        train_cell(tiny_cell(precision="auto"), tmp_path, report=stop_after(1))
    monkeypatch.setattr(processor, "description", lambda: "GenuineIntel avx512_bf16")
    assert train_cell(tiny_cell(precision="auto"), tmp_path)["precision"].startswith("bf16")
    fresh = train_cell(tiny_cell(precision="auto", epochs=1), tmp_path / "fresh")
    assert fresh["precision"].startswith("fp32")


def test_progress_is_reported_after_each_epoch(tmp_path):
    reported = []
    train_cell(tiny_cell(epochs=2), tmp_path, report=reported.append)
    assert [(p["epoch"], p["epochs"]) for p in reported] == [(1, 2), (2, 2)]
    told = {"lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds"}
    assert all(set(p) == {"epoch", "epochs", *told} for p in reported)
    assert all(math.isfinite(p["train_loss"]) and p["seconds"] > 0 for p in reported)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign"])
def test_a_damaged_checkpoint_is_set_aside(record, tmp_path, damage, caplog):
    checkpoint = tmp_path / "checkpoint.pt"
    stopped = tiny_cell(seed=5) if damage == "foreign" else tiny_cell()
    with pytest.raises(Stopped):
        train_cell(stopped, tmp_path, report=stop_after(2))
    content = bytearray(checkpoint.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        content[len(content) // 2] ^= 1  # one bit, somewhere in the weights
    elif damage == "empty":
        content = b""
    checkpoint.write_bytes(content)

    reported = []
    with caplog.at_level(logging.WARNING, "msvit"):
        again = train_cell(tiny_cell(), tmp_path, report=reported.append)
    assert [p["epoch"] for p in reported] == [1, 2, 3], "training did not start again"
    assert comparable(again) == comparable(record)
    assert "checkpoint.pt" in caplog.text
    assert (tmp_path / "checkpoint.damaged.pt").read_bytes() == bytes(content)


def test_epochs_on_other_images_are_not_gone_on_with(tmp_path, monkeypatch):
    with pytest.raises(Stopped):
        train_cell(tiny_cell(), tmp_path, report=stop_after(1))

    def others(options, data_dir):
        splits = load_splits(options, data_dir)
        return replace(splits, fingerprint={**splits.fingerprint, "digest": "0" * 16})

    monkeypatch.setattr(cell_module, "load_splits", others)
    with pytest.raises(DataError, match=r"checkpoint\.pt was trained on .*digest .*digest 0000"):
        train_cell(tiny_cell(), tmp_path)


def test_a_checkpoint_of_another_version_is_set_aside(record, tmp_path, caplog):
    checkpoint = tmp_path / "checkpoint.pt"
    with pytest.raises(Stopped):
        train_cell(tiny_cell(), tmp_path, report=stop_after(1))
    state = torch.load(checkpoint, weights_only=True)
    del state["precision"]
    torch.save(state, checkpoint)
    assert comparable(train_cell(tiny_cell(), tmp_path)) == comparable(record)
    assert "lacks precision" in caplog.text


def test_no_half_checkpoint_is_left_when_writing_fails(tmp_path, monkeypatch):
    with pytest.raises(Stopped):
        train_cell(tiny_cell(), tmp_path, report=stop_after(1))
    before = (tmp_path / "checkpoint.pt").read_bytes()

    def full_disk(state, file):
        file.write(b"half a checkpoint")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full_disk)
        with pytest.raises(OSError, match="No space left"):
            train_cell(tiny_cell(), tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_loss_that_is_no_number_names_epoch_and_step(tmp_path):
    said = r"epoch 1, step 2 of 4: the training loss is nan; the norm of \S+ is nan"
    with pytest.raises(TrainingDiverged, match=said):
        with_model(at_update(2, fill("head.linear.weight", math.nan)), tiny_cell(), tmp_path)
    assert not (tmp_path / "checkpoint.pt").exists()


def with_model(change, cell, folder, **options):
    """Train what ``change`` makes of the fresh model."""
    make = cell_module.create_model

    def create(**options):
        model = make(**options)
        change(model)
        return model

    cell_module.create_model = create
    try:
        return train_cell(cell, folder, **options)
    finally:
        cell_module.create_model = make


def at_update(step, change):
    """What changes a model just before the forward pass of update ``step`` (from 1)."""

    def prepare(model):
        calls = []

        def count(module, inputs):
            calls.extend([1] * module.training)
            if module.training and len(calls) == step:
                change(module)

        model.register_forward_pre_hook(count)

    return prepare


def fill(name, value):
    """What sets the first element of a model's tensor."""

    def change(model):
        model.state_dict()[name].view(-1)[0] = value

    return change


def teach(name, change):
    """What changes the gradient of a parameter."""
    return lambda model: model.get_parameter(name).register_hook(change)


STEM = "embeddings.0.units.0"
BROKEN = {
    "a weight": (at_update(6, fill(f"{STEM}.conv.weight", math.nan)), "epoch 2, step 2 of 4"),
    "the first weight": (at_update(1, fill(f"{STEM}.conv.weight", math.inf)), "step 1 of 4"),
    "a statistic": (at_update(3, fill(f"{STEM}.norm.running_var", math.nan)), "step 3 of 4"),
    "a gradient": (teach(f"{STEM}.norm.bias", lambda grad: grad * math.nan), "step 1 of 4"),
    # Its square is infinite: Adam would never move this weight again.
    "a huge gradient": (teach(f"{STEM}.norm.bias", lambda grad: grad + 1e25), "step 1 of 4"),
}


@pytest.mark.parametrize("kernels", ["fused", "plain"])
@pytest.mark.parametrize("broken", BROKEN)
def test_what_spikes_hide_is_found_in_what_learns(broken, kernels, tmp_path, monkeypatch):
    """A neuron whose potential is NaN does not fire, and the loss stays finite."""
    if kernels == "plain":
        monkeypatch.setenv("MSVIT_KERNELS", "off")
    change, when = BROKEN[broken]
    with pytest.raises(
        TrainingDiverged, match=rf"{when}: the norm of .*{STEM}\.\w+\.\w+ is"
    ) as error:
        with_model(change, tiny_cell(precision="fp32"), tmp_path)
    assert "loss" not in str(error.value), "it was finite"


@pytest.mark.parametrize("options", [{"clip_grad": 1.0}, {"precision": "bf16"}])
def test_clipping_and_autocast_hide_nothing(options, tmp_path):
    change, when = BROKEN["a huge gradient"]
    with pytest.raises(TrainingDiverged, match=f"{when}: the norm of"):
        with_model(change, tiny_cell(**options), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (range(1, 5), "epoch 1, step 4 of 4: the norm of the gradient of head.linear.bias is nan"),
        (range(5, 9), "epoch 2, step 4 of 4: the norm of the gradient of head.linear.bias is nan"),
        ((1, 2, 3, 6), ""),
    ],
)
def test_fp16_may_skip_steps_but_no_whole_epoch(bad, said, tmp_path):
    """Each step with a gradient that is not finite halves the scale."""
    seen = count(1)
    change = teach("head.linear.bias", lambda grad: grad * (math.nan if next(seen) in bad else 1))
    cell = tiny_cell(precision="fp16", epochs=2)
    if said:
        with pytest.raises(TrainingDiverged, match=f"{said}, and in fp16 the last 4 steps were"):
            with_model(change, cell, tmp_path)
    else:
        assert len(with_model(change, cell, tmp_path)["history"]) == 2


def test_fp16_that_no_scale_helps_does_not_wait_for_the_end_of_the_epoch(tmp_path, monkeypatch):
    small = partial(torch.amp.GradScaler, init_scale=2.0**-23)
    monkeypatch.setattr(torch.amp, "GradScaler", small)
    change = teach("head.linear.bias", lambda grad: grad * math.nan)
    with pytest.raises(TrainingDiverged, match=r"step 2 of 4: .*the last 2 steps were not taken"):
        with_model(change, tiny_cell(precision="fp16", epochs=1), tmp_path)


def test_weights_that_are_no_numbers_neither_start_nor_go_on_nor_are_measured(tmp_path):
    weight = f"{STEM}.conv.weight"
    said = rf"the norm of {STEM}\.conv\.weight is nan"
    with pytest.raises(TrainingDiverged, match=f"before the first step: {said}"):
        with_model(fill(weight, math.nan), tiny_cell(), tmp_path)

    checkpoint = tmp_path / "checkpoint.pt"
    with pytest.raises(Stopped):
        train_cell(tiny_cell(), tmp_path, report=stop_after(1))
    good = torch.load(checkpoint, weights_only=True)
    for name, when in {"model": "as resumed after epoch 1", "best": "the weights of epoch"}.items():
        state = copy.deepcopy(good)
        state[name][weight][0] = math.nan
        state["selected"]["val_accuracy"] = 1.0  # so that no later epoch is better
        torch.save(state, checkpoint)
        with pytest.raises(TrainingDiverged, match=f"{when}.*{said}"):
            train_cell(tiny_cell(), tmp_path)
    assert not (tmp_path / "weights.safetensors").exists()


def test_a_late_look_still_names_the_first_bad_step():
    """On a GPU several steps are looked at together."""
    model = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(model.bias, math.nan)
    losses, norms = torch.ones(4), torch.tensor([1.0, math.nan, math.nan, math.nan])
    with pytest.raises(TrainingDiverged, match="epoch 2, step 18 of 40: the norm of bias is nan"):
        check_steps(losses, norms, 16, model, epoch=2, steps=40)
    check_steps(losses[:1], norms[:1], 16, model, epoch=2, steps=40)


@needs_bf16
def test_kernels_are_there_before_the_clock_starts(tmp_path, monkeypatch):
    loaded, at_the_start = [], []
    load, train_epoch = build._load, Trainer.train_epoch

    def noted(*args):
        loaded.append(args[2])
        return load(*args)

    def begun(*args, **options):
        at_the_start.extend(loaded)
        return train_epoch(*args, **options)

    monkeypatch.setattr(build, "_load", noted)
    for make in (passes.backend, sparse_products.library, build.units, build.sparse_products):
        make.cache_clear()
    monkeypatch.setattr(Trainer, "train_epoch", begun)
    train_cell(tiny_cell(precision="bf16", epochs=1), tmp_path)
    assert loaded == at_the_start
    kinds = [f"{what}-{kind}" for what in ("units", "products") for kind in ("float", "bf16")]
    assert set(kinds) <= set(loaded)


def test_the_best_epoch_by_validation_is_kept_and_scored(tmp_path, monkeypatch):
    seen = []
    # Loss and accuracy on the validation images, epoch by epoch: the lower loss breaks the tie.
    validation = [(2.0, 0.3), (1.5, 0.6), (1.4, 0.6), (1.0, 0.5)]
    evaluate = cell_module.evaluate

    def scripted(batches, scores):
        result = evaluate(batches, scores)
        seen.append({name: value.clone() for name, value in scores.model.state_dict().items()})
        return validation[len(seen) - 1] if len(seen) <= len(validation) else result

    monkeypatch.setattr(cell_module, "evaluate", scripted)
    result = train_cell(tiny_cell(epochs=4), tmp_path)
    assert len(seen) == 5, "one validation per epoch, and the test images once"
    assert result["selected_epoch"] == 3
    assert all(torch.equal(seen[4][name], value) for name, value in seen[2].items())
    assert not all(torch.equal(seen[4][name], value) for name, value in seen[3].items())


@pytest.mark.slow
def test_a_few_epochs_teach_the_digits(tmp_path):
    cell = resolve_cell(
        {
            "model": {"name": "spikformer", "dim": 32, "heads": 2, "depths": [1], "timesteps": 2},
            "data": {"name": "digits", "image_size": 8, "train_per_class": 100},
            "training": {"epochs": 5, "batch_size": 32, "lr": 0.004, "label_smoothing": 0.0},
        },
        "test",
    )
    assert train_cell(cell, tmp_path)["test"]["accuracy"] > 0.6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs"),
        ({"epochs": 10**9}, "epochs"),
        ({"batch_size": -4}, "batch_size"),
        ({"lr": 0.0}, "lr"),
        ({"lr": float("nan")}, "lr"),
        ({"lr": "1e-3"}, "lr"),
        ({"lr": 0.001, "min_lr": 0.01}, r"min_lr \(0.01\) must not be above lr"),
        ({"epochs": 3, "warmup_epochs": 3}, r"warmup_epochs \(3\) must be below epochs \(3\)"),
        ({"mixup": 0.5, "batch_size": 7}, "even batch_size"),
        ({"optimizer": "adanw"}, "did you mean 'adamw'"),
        ({"precision": "fp8"}, "unknown value 'fp8'"),
        ({"epoch": 3}, "did you mean 'epochs'"),
        ({"clip_grad": 0}, "clip_grad"),
    ],
)
def test_impossible_training_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message) as error:
        TrainingOptions.parse(options, "grid.yaml: training")
    assert str(error.value).startswith("grid.yaml: training")


def test_every_recipe_can_be_used_and_overridden():
    assert "digits" in list_recipes()
    for name in list_recipes():
        values = load_recipe(name)
        options = TrainingOptions.parse(values, name)
        set_to = {key: getattr(options, key) for key in values}
        assert json.loads(json.dumps(set_to)) == values
    with pytest.raises(ConfigError, match="did you mean 'digits'"):
        load_recipe("digit")
    cell = resolve_cell(
        {
            "model": {"name": "msvit"},
            "data": {"name": "digits"},
            "training": {"recipe": "digits", "epochs": 2},
        },
        "test",
    )
    assert cell.training["epochs"] == 2
    assert cell.training["lr"] == load_recipe("digits")["lr"]
    assert "recipe" not in cell.training


def test_the_schedule_warms_up_and_ends_at_min_lr():
    options = TrainingOptions(epochs=4, lr=1e-2, min_lr=1e-4, warmup_epochs=0.5, warmup_lr=1e-3)
    optimizer = make_optimizer(torch.nn.Linear(2, 2), options)
    schedule = make_schedule(optimizer, options, steps=20)

    def rate(update):
        schedule.step_update(update)
        return optimizer.param_groups[0]["lr"]

    assert rate(0) == pytest.approx(1e-3)
    assert rate(5) == pytest.approx(5.5e-3)
    assert rate(40) == pytest.approx((1e-2 + 1e-4) / 2)
    assert rate(79) == pytest.approx(1e-4, rel=0.05)
    constant = make_schedule(optimizer, options.model_copy(update={"schedule": "constant"}), 20)
    constant.step_update(79)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-2)


def test_rates_are_those_of_timms_script():
    """Cooldown included; a rate an epoch, or one an update."""
    for by_update in (False, True):
        options = TrainingOptions.parse(
            {
                "epochs": 6,
                "cooldown_epochs": 2,
                "lr": 1e-2,
                "min_lr": 1e-4,
                "warmup_epochs": 2,
                "warmup_lr": 1e-3,
                "sched_on_updates": by_update,
            },
            "t",
        )
        steps = 5
        weight = torch.nn.Linear(2, 2)
        theirs = make_optimizer(weight, options)
        schedule, epochs = create_scheduler_v2(
            theirs,
            sched="cosine",
            num_epochs=6,
            cooldown_epochs=2,
            min_lr=1e-4,
            warmup_lr=1e-3,
            warmup_epochs=2,
            step_on_epochs=not by_update,
            updates_per_epoch=steps,
        )
        assert epochs == options.all_epochs
        ours = make_optimizer(weight, options)
        rates = Rates(ours, options, steps, CPU)
        for update in range(epochs * steps):
            if by_update:
                schedule.step_update(update)
            elif update % steps == 0:
                schedule.step(update // steps)
            rates.set(update)
            assert rates.current == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-12)
        assert rates.current == pytest.approx(1e-4)


def test_a_cosine_behind_the_warm_up_is_that_of_the_imagenet_scripts():
    options = TrainingOptions.parse(
        {
            "epochs": 10,
            "lr": 6e-4,
            "min_lr": 1e-6,
            "warmup_epochs": 2,
            "warmup_lr": 0.0,
            "warmup_prefix": True,
            "batch_size": 512,
            "lr_base_size": 256,
        },
        "t",
    )
    rates = Rates(make_optimizer(torch.nn.Linear(2, 2), options), options, 4, CPU)
    for update in range(40):
        epoch = update / 4
        expected = 1.2e-3 * epoch / 2
        if epoch >= 2:
            expected = 1e-6 + (1.2e-3 - 1e-6) * 0.5 * (1 + math.cos(math.pi * (epoch - 2) / 8))
        rates.set(update)
        assert rates.current == pytest.approx(expected)


def one_step(model, images, labels, average=None, **training):
    """Loss and gradient of a step on ``images``, normalised already."""
    options = TrainingOptions.parse({"batch_size": len(labels), **training}, "t")
    optimizer = make_optimizer(model, options)
    normalise, fp32 = Normalise((0.5,), (0.2,), CPU), choose_precision("fp32", CPU)
    step = TrainingStep(model.train(), options, optimizer, normalise, fp32, average=average)
    loss, hits, norm = step.learn(images, labels)
    grads = {n: w.grad.clone() for n, w in model.named_parameters() if w.grad is not None}
    step.update(norm)
    return float(loss), int(hits), grads


@pytest.mark.parametrize("soft", [False, True])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(soft):
    """Where no statistics are taken over a batch."""
    torch.manual_seed(0)
    sizes = {"dim": 16, "heads": 2, "depths": (1,), "patch_size": 4, "image_size": 8}
    model = create_model("vit", **sizes, timesteps=1, in_channels=1)
    images, labels = torch.randn(16, 1, 8, 8), torch.arange(16) % 10
    target = mixup_target(labels, 10, 0.3, 0.1) if soft else labels
    state = copy.deepcopy(model.state_dict())
    whole = one_step(model, images, target)
    model.load_state_dict(state)
    parts = one_step(model, images, target, grad_accum_steps=2)
    assert parts[0] == pytest.approx(whole[0])
    assert parts[1] == whole[1]
    for name, grad in whole[2].items():
        torch.testing.assert_close(parts[2][name], grad, atol=1e-6, rtol=1e-4, msg=name)


def test_fewer_images_than_parts_of_a_batch_are_refused_in_words(tmp_path):
    cell = tiny_cell(batch_size=256, grad_accum_steps=256)
    with pytest.raises(ConfigError, match=r"a batch of 130 images cannot be had in 256 parts"):
        train_cell(cell, tmp_path)


def test_averaged_weights_are_timms_and_are_what_is_kept(tmp_path):
    torch.manual_seed(0)
    sizes = {"dim": 8, "heads": 2, "depths": (1,), "image_size": 8, "timesteps": 1}
    model = create_model("spikformer", **sizes, in_channels=1)
    images, labels = torch.randn(4, 1, 8, 8), torch.arange(4)
    average = ModelEmaV3(model, decay=0.9)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(3):
        one_step(model, images, labels, average=average)
        for name, value in model.state_dict().items():
            new = 0.9 * expected[name] + 0.1 * value if value.is_floating_point() else value
            expected[name] = new.clone()
    for name, value in average.module.state_dict().items():
        torch.testing.assert_close(value, expected[name], msg=name)

    cell = tiny_cell(epochs=1, ema_decay=0.5)
    row = train_cell(cell, tmp_path)["history"][0]
    assert row["val_loss"] != row["raw_val_loss"]
    assert 0 <= row["raw_val_accuracy"] <= 1
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    kept = load_trained(tmp_path).state_dict()
    assert all(torch.equal(kept[name], value) for name, value in state["average"].items())
    assert not all(torch.equal(kept[name], value) for name, value in state["model"].items())


def test_mixing_ends_after_its_last_epoch():
    seen = []

    class Step:
        scaler, skipped = torch.amp.GradScaler("cpu", enabled=False), torch.tensor(False)

        def __call__(self, images, target):
            seen.append(target.max(-1).values.min())
            return torch.zeros(()), torch.zeros(()), torch.zeros(())

    class Still:
        def set(self, update):
            pass

    options = TrainingOptions(mixup=1.0, batch_size=8, label_smoothing=0.0)
    mixup = make_mixup(options, 8)
    normalise = Normalise((0.5,), (0.2,), CPU)
    trainer = Trainer(torch.nn.Linear(1, 1), Step(), Still(), normalise, mixup, mixup_off_epoch=2)
    batch = Images(torch.zeros(8, 1, 2, 2, dtype=torch.uint8), torch.arange(8))
    for epoch in (1, 2, 3):
        _, accuracy = trainer.train_epoch([batch] * 5, epoch, Taken.none_yet(5, CPU))
        assert accuracy is None
    assert all(share < 1 for share in seen[:10])
    assert all(share == 1 for share in seen[10:])


def test_a_cell_starts_from_the_weights_of_another(tmp_path, caplog):
    first = tiny_cell(epochs=1)
    folder = cell_folder(tmp_path, first.id)
    write_record(tmp_path, train_cell(first, folder))
    model = {"timesteps": 4, "num_classes": 12}
    second = tiny_cell(epochs=1, model=model, start_from=first.id)
    assert second.id != tiny_cell(epochs=1, model=model).id
    fresh = create_model(**second.model)
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    with caplog.at_level(logging.INFO, "msvit"):
        load_start(fresh, first.id, tmp_path)
    assert f"{first.id} has other classes: the classifier begins anew" in caplog.text
    kept = load_trained(folder).state_dict()
    for name, value in fresh.state_dict().items():
        assert torch.equal(value, (before if name.startswith("head.") else kept)[name]), name
    record = train_cell(second, cell_folder(tmp_path, second.id))
    assert record["cell"]["training"]["start_from"] == first.id

    with pytest.raises(DataError, match=r"cell 0123456789ab has left no weights in .*run it first"):
        train_cell(tiny_cell(start_from="0123456789ab"), cell_folder(tmp_path, "x"))
    with pytest.raises(DataError, match=r"none\.pth: no such file .*seen from the results folder"):
        load_start(fresh, "none.pth", tmp_path)
    shutil.copy(folder / "weights.safetensors", tmp_path / "some.safetensors")
    load_start(create_model(**first.model), "some.safetensors", tmp_path)
    other = create_model(**{**first.model, "dim": 32})
    with pytest.raises(CheckpointError) as caught:
        load_start(other, "some.safetensors", tmp_path)
    (line,) = str(caught.value).splitlines()
    file = tmp_path / "some.safetensors"
    assert line.startswith(f"training.start_from some.safetensors: {file} does not fit ")
    assert "mismatched" in line


def test_a_missing_start_is_said_before_anything_runs(tmp_path, capsys):
    override = "training.start_from=0123456789ab"
    assert run_main(["--grid", "scales", "--set", override, "--results", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: training.start_from: cell 0123456789ab has left no weights")
    assert not list(tmp_path.iterdir())


def test_biases_norms_and_neurons_do_not_decay():
    from msvit.models import create_model

    model = create_model("msvit", dim=16, heads=2, image_size=8, timesteps=2, neuron="psn")
    optimizer = make_optimizer(model, TrainingOptions(weight_decay=0.1))
    decaying = {id(p) for g in optimizer.param_groups if g["weight_decay"] > 0 for p in g["params"]}
    for name, parameter in model.named_parameters():
        is_weight = name.endswith(("conv.weight", "linear.weight", "query.weight"))
        assert (id(parameter) in decaying) == is_weight, name


def test_trust_ratios_of_lamb_end_at_one_where_asked():
    """A step of large weights, which LAMB makes longer, is then Adam's."""
    moved = {}
    for clip in (False, True):
        model = torch.nn.Linear(4, 4, bias=False)
        torch.nn.init.constant_(model.weight, 3.0)
        options = TrainingOptions(optimizer="lamb", trust_clip=clip, lr=0.01, weight_decay=1e-6)
        optimizer = make_optimizer(model, options)
        model.weight.grad = torch.full((4, 4), 0.1)
        optimizer.step()
        moved[clip] = float((3.0 - model.weight).detach().mean())
    assert moved[True] == pytest.approx(0.01, rel=1e-3)
    assert moved[False] == pytest.approx(0.03, rel=1e-3)


def test_losses_are_those_of_the_papers():
    logits = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 4, 2, 2])
    mean = TrainingOptions(loss="mean", label_smoothing=0.0)
    tet = TrainingOptions(loss="tet", label_smoothing=0.1)
    log_p = logits.mean(0).log_softmax(-1)
    expected = -sum(log_p[i, c] for i, c in enumerate(labels.tolist())) / 4
    assert training_loss(logits, labels, mean) == pytest.approx(float(expected))
    smooth = mixup_target(labels, 5, lam=1.0, smoothing=0.1)
    steps = [SoftTargetCrossEntropy()(step, smooth) for step in logits]
    assert training_loss(logits, labels, tet) == pytest.approx(float(sum(steps)) / 3)
    soft = mixup_target(labels, 5, lam=0.3, smoothing=0.1)
    expected = SoftTargetCrossEntropy()(logits.mean(0), soft)
    assert training_loss(logits, soft, mean) == pytest.approx(float(expected))


def test_fp32_is_fp32_and_other_precisions_say_so():
    assert choose_precision("fp32", CPU).label == "fp32"
    assert choose_precision("tf32", CPU).label == choose_precision("fp32", CPU).label
    fastest = "bf16" if bf16_is_faster(CPU) else "fp32"
    assert choose_precision("auto", CPU) == choose_precision(fastest, CPU)
    assert product_error(CPU) < MAX_ERROR
    half = choose_precision("bf16", CPU)
    assert half.label.startswith("bf16 autocast over fp32")
    with half.autocast(CPU):
        assert (torch.ones(4, 4) @ torch.ones(4, 4)).dtype == torch.bfloat16
    with choose_precision("fp32", CPU).autocast(CPU):
        assert (torch.ones(4, 4) @ torch.ones(4, 4)).dtype == torch.float32


def test_tf32_does_not_stay_for_the_next_cell(monkeypatch):
    """Settings of a GPU that is not there: several cells may run in one process."""
    import msvit.precision as precision

    monkeypatch.setattr(precision, "exact_matmul_precision", lambda device: "highest")
    gpu, before = torch.device("cuda"), torch.get_float32_matmul_precision()
    try:
        labels = [choose_precision(name, gpu).label for name in ("fp32", "tf32")]
        assert torch.backends.cudnn.allow_tf32
        labels.append(choose_precision("fp32", gpu).label)
        assert labels == ["fp32", "tf32", "fp32"]
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_rounding_matmul_is_not_kept(monkeypatch):
    import msvit.precision as precision

    settings = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", settings.append)
    rounding = {"medium": 2e-3, "highest": 2e-7}
    monkeypatch.setattr(precision, "product_error", lambda device: rounding[settings[-1]])
    precision.exact_matmul_precision.cache_clear()
    try:
        assert precision.choose_precision("fp32", CPU).label == "fp32"
        assert settings == ["medium", "highest", "highest"]
    finally:
        precision.exact_matmul_precision.cache_clear()


@pytest.mark.slow
def test_a_process_takes_its_threads_from_its_cpus_and_knows_its_peak_memory():
    script = """
import torch
from msvit.runtime import peak_memory_gb, prepare_process, reset_peak_memory
prepare_process()
reset_peak_memory(torch.device("cpu"))
before = peak_memory_gb(torch.device("cpu"))
torch.ones(100_000_000).sum()
print(torch.get_num_threads(), peak_memory_gb(torch.device("cpu")) - before)
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    output = subprocess.check_output([sys.executable, "-c", script], env=environment, text=True)
    threads, peak = output.split()
    assert threads == "1"
    assert 0.39 < float(peak) < 0.5  # gigabytes


def test_each_set_of_images_serves_its_own_end(tmp_path, monkeypatch):
    seen = []
    train_batches = cell_module.train_batches

    def watch(loader, *rest, **more):
        seen.append(loader.samples)
        return train_batches(loader, *rest, **more)

    scored, eval_batches = [], cell_module.eval_batches

    def watch_scores(loader):
        scored.append(loader.samples)
        return eval_batches(loader)

    monkeypatch.setattr(cell_module, "train_batches", watch)
    monkeypatch.setattr(cell_module, "eval_batches", watch_scores)
    cell = tiny_cell(epochs=1, ema_decay=0.5)
    train_cell(cell, tmp_path)
    splits = load_splits(
        data_options("digits", {"image_size": 8, "train_per_class": 13}, "test"), None
    )
    assert torch.equal(seen[0].images, splits.train.images)
    *selecting, last = scored
    assert len(selecting) == 2, "averaged and raw weights"
    assert all(torch.equal(some.images, splits.validation.images) for some in selecting)
    assert torch.equal(last.images, splits.test.images)


@pytest.mark.slow
def test_images_that_stream_are_cropped_as_they_are_read_and_resumed(tmp_path, monkeypatch):
    """Random parts of images on disk, in the middle of an epoch too."""
    monkeypatch.setattr(image_files, "MEMORY_BYTES", 0)
    generator = np.random.default_rng(0)
    for split, images in (("train", 24), ("test", 4)):
        for label in ("a", "b"):
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            for number in range(images):
                pixels = generator.integers(0, 256, (20, 24, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    cell = resolve_cell(
        {
            "model": {"name": "spikformer", "dim": 8, "heads": 2, "depths": [1], "timesteps": 1},
            "data": {"name": "image_folder", "num_classes": 2, "image_size": 16},
            "training": {"epochs": 1, "batch_size": 8, "crop_scale": [0.2, 1.0], "hflip": True},
        },
        "t",
    )
    given = {"data_dir": tmp_path / "images"}
    whole = train_cell(cell, tmp_path / "whole", **given)
    with monkeypatch.context() as patch:
        stop_after_save(patch, 2)
        with pytest.raises(Stopped):
            train_cell(cell, tmp_path / "killed", checkpoint_seconds=0, **given)
    assert comparable(train_cell(cell, tmp_path / "killed", **given)) == comparable(whole)
