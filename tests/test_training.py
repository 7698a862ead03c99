"""Training of a cell: repeatable, resumable, honest about what went wrong."""

import copy
import json
import logging
import math
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from timm.data.mixup import mixup_target
from timm.loss import SoftTargetCrossEntropy

import msvit.training.cell as cell_module
from msvit import processor
from msvit.cells import resolve_cell
from msvit.data import data_options, load_splits
from msvit.options import ConfigError, DataError
from msvit.precision import MAX_ERROR, bf16_is_faster, choose_precision, product_error
from msvit.recipes import TrainingOptions, list_recipes, load_recipe
from msvit.records.energy import sop_spikformer
from msvit.records.store import read_record, write_record
from msvit.training import TrainingDiverged, train_cell
from msvit.training.health import check_steps
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


@pytest.mark.parametrize("scale", [2.0**16, 2.0**-22])
def test_fp16_may_skip_steps_but_not_all_of_them(scale, tmp_path, monkeypatch):
    """Each step with an infinite gradient halves the scale, until there is nothing to find."""
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=scale))
    change = teach("head.linear.bias", lambda grad: grad * math.nan)
    cell = tiny_cell(precision="fp16", epochs=1)
    if scale > 1:
        assert with_model(change, cell, tmp_path)["selected_epoch"] == 1
        return
    with pytest.raises(TrainingDiverged, match="not finite in fp16, however it is scaled"):
        with_model(change, cell, tmp_path)


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


def test_training_sees_no_test_or_validation_image(tmp_path, monkeypatch):
    seen = []
    train_batches = cell_module.train_batches

    def watch(loader, *rest, **more):
        seen.append(loader.samples)
        return train_batches(loader, *rest, **more)

    monkeypatch.setattr(cell_module, "train_batches", watch)
    cell = tiny_cell(epochs=1)
    train_cell(cell, tmp_path)
    splits = load_splits(
        data_options("digits", {"image_size": 8, "train_per_class": 13}, "test"), None
    )
    assert torch.equal(seen[0].images, splits.train.images)
