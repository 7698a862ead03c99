"""Training on a GPU: its graph against the same step without one, bit for bit; shared GPUs."""

from __future__ import annotations

import contextlib
import logging

import numpy as np
import pytest
import torch
from timm.utils import ModelEmaV3

import msvit.training.cell as cell_module
import msvit.training.graph as graph_module
import msvit.training.loading as loading_module
from msvit import create_model
from msvit.data.encoded import Encoded
from msvit.data.splits import Images, Streamed
from msvit.data.views import Whole
from msvit.models import model_options
from msvit.neurons import NEURONS
from msvit.precision import choose_precision
from msvit.recipes import TrainingOptions
from msvit.records.store import cell_folder, read_record
from msvit.training import train_cell
from msvit.training.augmentation import Augmentation
from msvit.training.batches import Normalise, train_batches
from msvit.training.graph import CudaGraphs
from msvit.training.loading import Loader
from msvit.training.loop import evaluate
from msvit.training.optimization import Rates, make_erasing, make_mixup, make_optimizer
from msvit.training.step import Scores, TrainingStep
from studies.cluster import Place
from studies.executor import run_cells
from studies.grids import load_study
from studies.packing import Packing
from studies.progress import Display
from tests.image_sets import class_folders, pixels
from tests.small import SMALL
from tests.test_training import Stopped, comparable, stop_after, tiny_cell

pytestmark = pytest.mark.gpu

GPU = torch.device("cuda")
STEPS = 20


def normalise(channels: int) -> Normalise:
    return Normalise((0.4,) * channels, (0.3,) * channels, GPU)


def trained(model, recorder, precision="bf16", **training):
    """Losses and norms of some steps, and the state they end in."""
    options = TrainingOptions.parse({"batch_size": 8, "lr": 1e-2, **training}, "test")
    size, channels = model.options.image_size, model.options.in_channels
    optimizer = make_optimizer(model, options, GPU)
    rates = Rates(optimizer, options, STEPS, GPU)
    chosen = choose_precision(precision, GPU)
    step = TrainingStep(model.train(), options, optimizer, normalise(channels), chosen, recorder)
    random = torch.Generator().manual_seed(1)
    images = torch.randint(
        0, 256, (64, channels, size, size), dtype=torch.uint8, generator=random
    ).to(GPU)
    data = Images(images, torch.randint(0, 10, (64,), generator=random).to(GPU))
    loader = Loader(data, options.batch_size, GPU)
    augment = Augmentation(options, (0.4,) * channels, GPU)
    torch.manual_seed(2)  # what drop path draws
    rows = []
    for update in range(STEPS):
        rates.set(update)
        batch = next(train_batches(loader, options, augment, random))
        rows.append(torch.stack([x.double() for x in step(batch.images, batch.labels)]))
    return torch.stack(rows).cpu(), {k: v.cpu() for k, v in model.state_dict().items()}, step.how


def assert_same(name, how="graph", **options):
    found = []
    for recorder in (None, CudaGraphs()):
        torch.manual_seed(0)
        model = create_model(name, **options).to(GPU)
        found.append(trained(model, recorder))
    (rows, state, eager), (other_rows, other_state, recorded) = found
    assert (eager, recorded) == ("eager", how)
    assert torch.equal(rows, other_rows)
    assert all(torch.equal(state[key], other_state[key]) for key in state)
    assert rows[:, 0].std() > 0


@pytest.mark.parametrize("name", SMALL)
def test_a_graph_gives_the_numbers_of_single_kernels(name):
    known = type(model_options(name, {})).model_fields
    wanted = {"drop_path": 0.2, "image_size": 32} | SMALL[name]
    assert_same(name, **{key: value for key, value in wanted.items() if key in known})


@pytest.mark.parametrize("neuron", NEURONS)
def test_a_graph_knows_every_neuron(neuron):
    options = {"dim": 16, "heads": 2, "depths": (1, 1), "widths": (0.5, 1.0), "timesteps": 2}
    assert_same("msvit", image_size=8, neuron=neuron, **options)


@pytest.mark.parametrize("twin", ["ann", "quantised"])
def test_a_graph_knows_twins(twin):
    options = {"dim": 16, "heads": 2, "depths": (1, 1), "widths": (0.5, 1.0), "timesteps": 1}
    assert_same("msvit", image_size=8, twin=twin, **options)


VARIED = {"mixup": 0.5, "clip_grad": 1.0, "hflip": True, "loss": "tet", "optimizer": "sgd"}


@pytest.mark.parametrize(
    ("training", "how"),
    [
        ({}, "graph"),
        (VARIED, "graph"),
        ({"optimizer": "lamb", "clip_grad": 1.0}, "graph without optimizer"),
        ({"precision": "tf32", "optimizer": "adam"}, "graph"),
        ({"precision": "fp16"}, "eager: fp16 scales its loss by what it finds"),
    ],
    ids=["plain", "varied", "lamb", "tf32", "fp16"],
)
def test_a_cell_gives_the_same_record_with_and_without_twice_and_stopped(
    training, how, tmp_path, monkeypatch
):
    cell = tiny_cell(**{"precision": "bf16"} | training)
    whole = train_cell(cell, tmp_path / "whole")
    again = train_cell(cell, tmp_path / "again")
    with pytest.raises(Stopped):
        train_cell(cell, tmp_path / "stopped", report=stop_after(2))
    stopped = train_cell(cell, tmp_path / "stopped")
    monkeypatch.setattr(cell_module, "choose_recorder", lambda *_: (None, ""))
    eager = train_cell(cell, tmp_path / "eager")
    assert (whole["step"], eager["step"]) == (how, "eager")
    records = [comparable(record) for record in (whole, again, stopped, eager)]
    for record in records:
        del record["step"]
    assert all(record == records[0] for record in records)


@pytest.mark.parametrize("seen", [True, False], ids=["noticed before", "noticed by the recording"])
def test_a_step_that_waits_for_the_device_goes_on_without_a_graph(seen, monkeypatch, caplog):
    if not seen:
        monkeypatch.setattr(graph_module, "_waits", lambda: contextlib.nullcontext([]))
    options = {"dim": 16, "heads": 2, "depths": (2,), "image_size": 8, "drop_path": 0.3}

    def look(module, inputs, output):
        output.sum().item()

    def with_hook():
        torch.manual_seed(0)
        model = create_model("spikformer", **options).to(GPU)
        model.head.register_forward_hook(look)
        return model

    expected, state, _ = trained(with_hook(), None)
    with caplog.at_level(logging.WARNING, "msvit"):
        found, other, how = trained(with_hook(), CudaGraphs())
    assert how.startswith("eager: ")
    assert len(caplog.records) == 1
    assert torch.equal(found, expected)
    assert all(torch.equal(state[key], other[key]) for key in state)


def test_an_epoch_does_not_wait_for_the_device():
    drawn = {"hflip": True, "shift": 2, "crop_scale": [0.3, 1.0], "mixup": 0.5, "cutmix": 1.0}
    drawn |= {"rand_augment": "rand-m9-n4-p1-mstd0.5-inc1", "random_erasing": 0.5}
    options = TrainingOptions.parse({"batch_size": 8, "ema_decay": 0.9, **drawn}, "test")
    model = create_model("spikformer", dim=16, heads=2, depths=(1,), image_size=8).to(GPU)
    optimizer = make_optimizer(model, options, GPU)
    rates = Rates(optimizer, options, STEPS, GPU)
    chosen = choose_precision("bf16", GPU)
    step_normalise, average = normalise(3), ModelEmaV3(model, decay=0.9)
    step = TrainingStep(
        *(model.train(), options, optimizer, step_normalise, chosen, CudaGraphs()), average=average
    )
    images = torch.randint(0, 256, (64, 3, 8, 8), dtype=torch.uint8, device=GPU)
    data = Images(images, torch.randint(0, 10, (64,), device=GPU))
    loader = Loader(data, options.batch_size, GPU)
    augment = Augmentation(options, (0.4,) * 3, GPU)
    mixup, erase = make_mixup(options, 10), make_erasing(options, GPU)
    assert mixup is not None
    assert erase is not None
    losses = torch.zeros(8, device=GPU)
    for epoch in range(2):
        torch.cuda.set_sync_debug_mode("error" if epoch else "default")
        try:
            random = torch.Generator().manual_seed(epoch)
            for i, batch in enumerate(train_batches(loader, options, augment, random)):
                rates.set(i)
                images, target = mixup(step_normalise(batch.images), batch.labels)
                losses[i], *_ = step(erase(images), target)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert step.how == "graph"
    assert losses.isfinite().all()


def test_scores_of_a_graph_are_those_of_an_eager_model():
    """The last batch is smaller than the others."""
    torch.manual_seed(0)
    model = create_model("msvit", dim=32, heads=4, image_size=16).to(GPU)
    images = torch.randint(0, 256, (76, 3, 16, 16), dtype=torch.uint8, device=GPU)
    data = Images(images, torch.randint(0, 10, (76,), device=GPU))
    chosen = choose_precision("bf16", GPU)
    scores = Scores(model, normalise(3), chosen, CudaGraphs())
    for _ in range(3):
        with torch.no_grad():
            model.train()(normalise(3)(images))  # other statistics every time
        batches = [data[start : start + 16] for start in range(0, 76, 16)]
        expected = evaluate(batches, Scores(model, normalise(3), chosen))
        assert evaluate(batches, scores) == expected
    assert scores.how == "graph"


GRID = """
question: Side by side?
base:
  model: {name: msvit, dim: 16, heads: 2, depths: [1, 1], widths: [0.5, 1.0], timesteps: 2}
  data: {name: digits, image_size: 8, train_per_class: 13}
  training: {epochs: 3, batch_size: 16}
seeds: 3
"""


@pytest.mark.slow
def test_cells_side_by_side_give_the_records_of_single_ones(tmp_path):
    grid = tmp_path / "tiny.yaml"
    grid.write_text(GRID)
    entries = load_study(str(grid)).cells
    records = []
    for name, gpus in (("packed", None), ("single", 1.0)):
        results = tmp_path / name
        display = Display(entries, 0, len(entries))
        run_cells(entries, results, Place(gpus_per_cell=gpus), display)
        found = [read_record(results, entry.cell.id) for entry in entries]
        records.append([comparable(record) for record in found if record])
    assert records[0] == records[1]
    assert len(records[0]) == 3
    assert all(record["step"] == "graph" for record in records[0])
    known = Packing(tmp_path / "packed", None)._known
    ((name, needs),) = known.items()
    assert name == torch.cuda.get_device_name()
    assert all(0 < need["busy"] < 1 and need["memory_gb"] < 5 for need in needs.values())


@pytest.mark.slow
def test_a_cell_that_runs_out_of_memory_gets_more_room(tmp_path, capsys):
    grid = tmp_path / "large.yaml"
    text = GRID.replace("dim: 16", "dim: 128").replace("timesteps: 2", "timesteps: 4")
    text = text.replace("image_size: 8, train_per_class: 13", "image_size: 32")
    grid.write_text(text.replace("epochs: 3, batch_size: 16", "epochs: 1, batch_size: 512"))
    (entry,) = load_study(str(grid), ["training.warmup_epochs=0"], seeds=1).cells
    share = 1.2e9 / torch.cuda.get_device_properties(GPU).total_memory
    place = Place(gpus_per_cell=round(share, 4))
    run_cells([entry], tmp_path / "results", place, Display([entry], 0, 1))
    assert "again with a whole GPU" in capsys.readouterr().out
    assert read_record(tmp_path / "results", entry.cell.id)
    log = (cell_folder(tmp_path / "results", entry.cell.id) / "log.txt").read_text()
    assert "CUDA out of memory" in log


def test_batches_are_the_same_wherever_a_split_is(tmp_path, monkeypatch):
    """On the device, in memory, or decoded by processes forked from one that uses the device."""
    class_folders(tmp_path, pixels(21, 16), np.arange(21) % 3, "train")
    names = sorted(str(file.relative_to(tmp_path)) for file in tmp_path.glob("train/*/*.png"))
    streamed = Streamed(Encoded.of_files(tmp_path, names), torch.arange(21), Whole(16))
    images = np.empty((len(streamed), *streamed.shape), np.uint8)
    streamed.decode(np.arange(len(streamed)), images)
    kept = Images(torch.from_numpy(images), streamed.labels)
    order = torch.randperm(len(kept))

    def batches(samples):
        found = list(Loader(samples, 4, GPU, workers=2).batches(order))
        assert all(batch.images.is_cuda and batch.labels.is_cuda for batch in found)
        return [torch.cat([getattr(b, name) for b in found]) for name in ("images", "labels")]

    expected = batches(kept)
    monkeypatch.setattr(loading_module, "RESIDENT_BYTES", 0)
    for samples in (kept, streamed):
        assert all(map(torch.equal, batches(samples), expected))
