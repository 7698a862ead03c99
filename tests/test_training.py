"""Training of a cell: repeatable, resumable, honest about what went wrong."""

import copy
import json
import logging
import math
import os
import subprocess
import sys

import pytest
import torch
from timm.data.mixup import mixup_target
from timm.loss import SoftTargetCrossEntropy

import msvit.training.cell as cell_module
from msvit import processor
from msvit.cells import resolve_cell
from msvit.data import data_options, load_splits
from msvit.options import ConfigError
from msvit.precision import MAX_ERROR, bf16_is_faster, choose_precision, product_error
from msvit.recipes import TrainingOptions, list_recipes, load_recipe
from msvit.records.energy import sop_spikformer
from msvit.records.store import read_record, write_record
from msvit.training import TrainingDiverged, train_cell
from msvit.training.optimization import make_optimizer, make_schedule, training_loss

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


def comparable(record):
    """A record without what may differ between two runs of one cell."""
    record = copy.deepcopy(record)
    for row in record["history"]:
        del row["seconds"]
    for key in ("training_seconds", "images_per_second", "peak_memory_gb", "environment"):
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


needs_bf16 = pytest.mark.skipif(not processor.multiplies_bf16(), reason="would take minutes here")


@needs_bf16
@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp16", marks=pytest.mark.slow)])
def test_resume_is_exact_with_every_source_of_randomness(tmp_path, precision):
    cell = tiny_cell(
        precision=precision, mixup=0.5, clip_grad=1.0, hflip=True, loss="tet", optimizer="lamb"
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
    assert all(
        set(p) == {"epoch", "epochs", "train_loss", "val_loss", "val_accuracy", "seconds"}
        for p in reported
    )
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
    with pytest.raises(TrainingDiverged, match=r"epoch 1, step 2 of 4: the training loss is nan"):
        with_broken_step(tiny_cell(), tmp_path, step=2)
    assert not (tmp_path / "checkpoint.pt").exists()


def with_broken_step(cell, folder, step):
    """Train with a weight that becomes NaN before update ``step`` (from 1)."""
    make = cell_module.create_model

    def create(**options):
        model = make(**options)
        calls = []

        def poison(module, inputs):
            calls.append(1)
            if module.training and len(calls) == step:
                module.head.linear.weight.data[0, 0] = math.nan

        model.register_forward_pre_hook(poison)
        return model

    cell_module.create_model = create
    try:
        return train_cell(cell, folder)
    finally:
        cell_module.create_model = make


def test_the_best_epoch_by_validation_is_kept_and_scored(tmp_path, monkeypatch):
    seen = []
    # Loss and accuracy on the validation images, epoch by epoch: the lower loss breaks the tie.
    validation = [(2.0, 0.3), (1.5, 0.6), (1.4, 0.6), (1.0, 0.5)]
    evaluate = cell_module.evaluate

    def scripted(model, batches, normalise, precision):
        result = evaluate(model, batches, normalise, precision)
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return validation[len(seen) - 1] if len(seen) <= len(validation) else result

    monkeypatch.setattr(cell_module, "evaluate", scripted)
    result = train_cell(tiny_cell(epochs=4), tmp_path)
    assert len(seen) == 5, "one validation per epoch, and the test images once"
    assert result["selected_epoch"] == 3
    assert all(torch.equal(seen[4][name], value) for name, value in seen[2].items())
    assert not all(torch.equal(seen[4][name], value) for name, value in seen[3].items())


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
        assert options.model_dump().items() >= values.items()
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


def test_biases_norms_and_neurons_do_not_decay():
    from msvit.models import create_model

    model = create_model("msvit", dim=16, heads=2, image_size=8, timesteps=2, neuron="psn")
    optimizer = make_optimizer(model, TrainingOptions(weight_decay=0.1))
    decaying = {id(p) for g in optimizer.param_groups if g["weight_decay"] > 0 for p in g["params"]}
    for name, parameter in model.named_parameters():
        is_weight = name.endswith(("conv.weight", "linear.weight", "query.weight"))
        assert (id(parameter) in decaying) == is_weight, name


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
    assert choose_precision("fp32", CPU).label.startswith("fp32 (matmul ")
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
        assert labels == ["fp32 (matmul highest)", "tf32 (matmul high)", "fp32 (matmul highest)"]
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
        assert precision.choose_precision("fp32", CPU).label == "fp32 (matmul highest)"
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


def test_training_sees_no_test_or_validation_image(tmp_path, monkeypatch):
    seen = []
    train_batches = cell_module.train_batches

    def watch(data, options, random):
        seen.append(data)
        return train_batches(data, options, random)

    monkeypatch.setattr(cell_module, "train_batches", watch)
    cell = tiny_cell(epochs=1)
    train_cell(cell, tmp_path)
    splits = load_splits(
        data_options("digits", {"image_size": 8, "train_per_class": 13}, "test"), None
    )
    assert torch.equal(seen[0].images, splits.train.images)
