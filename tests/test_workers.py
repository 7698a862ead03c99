"""Several workers compute what one does: their parts, their sums, a training from end to end."""

import pickle
import random
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from msvit import workers
from msvit.data.splits import Images
from msvit.layers.blocks import drop_images
from msvit.layers.shared_statistics import share_statistics
from msvit.metrics import Meter
from msvit.precision import choose_precision
from msvit.recipes import TrainingOptions
from msvit.training import cell as cell_module
from msvit.training import train_cell
from msvit.training.augmentation import Augmentation
from msvit.training.batches import Normalise, train_batches
from msvit.training.data_parallel import data_parallel
from msvit.training.loading import Loader
from msvit.training.loop import Trainer
from msvit.training.optimization import make_erasing, make_mixup, make_optimizer
from msvit.training.step import TrainingStep
from tests.small import fire, small_input, small_model
from tests.test_training import Stopped, comparable, tiny_cell
from tests.two_workers import two_workers

CPU = torch.device("cpu")


@contextmanager
def worker(monkeypatch, rank, count):
    """As the worker of this rank sees it, where nothing has to be summed."""
    with monkeypatch.context() as patch:
        patch.setattr(workers, "rank", lambda: rank)
        patch.setattr(workers, "count", lambda: count)
        yield


def seeded():
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002 -- timm draws from the global generator
    torch.manual_seed(3)
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("turns", [1, 2])
def test_parts_are_the_batch_and_reversed_parts_the_reversed_batch(monkeypatch, turns):
    batch = torch.arange(24)
    parts = []
    for rank in range(3):
        with worker(monkeypatch, rank, 3):
            part = workers.own(batch, turns=turns)
            assert torch.equal(part.flip(0), workers.own(batch.flip(0), turns=turns))
            assert torch.equal(workers.own(batch.view(1, -1), 1, turns), part[None])
            assert workers.own_of(batch.tolist(), turns) == part.tolist()
        parts.append(part)
    assert torch.equal(torch.cat(parts).sort().values, batch)
    for turn in range(turns):  # each has as many images of every turn
        of_turn = batch.view(turns, -1)[turn]
        for part in parts:
            assert set(part.view(turns, -1)[turn].tolist()) <= set(of_turn.tolist())
    with worker(monkeypatch, 0, 5), pytest.raises(ValueError, match="5 workers cannot share 24"):
        workers.own(batch)


@pytest.mark.parametrize(("images", "size"), [(50, 8), (10, 16), (32, 8)])
def test_every_image_is_evaluated_by_one_worker_in_the_batch_it_always_has(
    monkeypatch, images, size
):
    found = []
    for rank in range(3):
        with worker(monkeypatch, rank, 3):
            found += workers.own_batches(images, size).split(size)
    whole = [batch.tolist() for batch in torch.arange(images).split(size)]
    assert sorted(batch.tolist() for batch in found if len(batch)) == whole


AUGMENTED = {
    "images": {"hflip": True, "shift": 2, "mixup": 0.5, "cutmix": 1.0, "random_erasing": 0.7},
    "accumulated": {"grad_accum_steps": 2, "mixup": 0.5, "random_erasing": 0.7, "shift": 1},
    "drawn by timm": {"rand_augment": "rand-m9-n2-mstd0.5", "crop_scale": [0.3, 1.0]},
    "noise": {"random_erasing": 0.9, "random_erasing_mode": "pixel"},
    "events": {"event_augmentation": "snn_wide", "hflip": True},
}


@pytest.mark.parametrize("name", AUGMENTED)
def test_workers_are_given_their_parts_of_the_batches_that_one_is_given(monkeypatch, name):
    shape = (3, 2, 12, 12) if name == "events" else (3, 12, 12)
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (40, *shape), dtype=torch.uint8, generator=generator)
    images = Images(pixels, torch.arange(40) % 10)
    options = TrainingOptions.parse({"batch_size": 16, **AUGMENTED[name]}, "test")
    mean = (0.5,) * pixels.shape[-3]

    def batches() -> list[Tensor]:
        generator = seeded()
        loader = Loader(images, options.batch_size // workers.count(), CPU)
        trainer = Trainer(
            model=nn.Identity(),
            step=None,
            rates=None,
            normalise=Normalise(mean, mean, CPU),
            mixup=make_mixup(options, 10),
            erase=make_erasing(options, CPU),
            turns=options.grad_accum_steps,
        )
        augment = Augmentation(options, mean, CPU)
        return [
            part
            for batch in train_batches(loader, options, augment, generator)
            for part in trainer.prepared(batch)
        ]

    whole = batches()
    assert len(whole) == 4
    assert not torch.equal(whole[0], images.images[:16])
    for rank in range(2):
        with worker(monkeypatch, rank, 2):
            expected = [workers.own(x, turns=options.grad_accum_steps) for x in whole]
            for part, theirs in zip(batches(), expected, strict=True):
                assert torch.equal(part, theirs)


def test_paths_are_dropped_for_the_same_images(monkeypatch):
    x = torch.ones(2, 8, 3)
    seeded()
    whole = drop_images(x, 0.5)
    assert 0 < int((whole == 0).sum()) < whole.numel()
    for rank in range(2):
        with worker(monkeypatch, rank, 2):
            seeded()
            part = drop_images(workers.own(x, 1), 0.5)
            assert torch.equal(part, workers.own(whole, 1))


@pytest.mark.parametrize("name", ["msvit", "sdt", "metaspikeformer", "vit"])
def test_meters_of_several_workers_add_up_to_that_of_one(name):
    model = small_model(name, **({} if name == "vit" else {"timesteps": 2})).eval()
    images = small_input(model, 5, torch.float32)
    if name != "vit":
        fire(model)

    def metered(*batches):
        with Meter(model) as meter, torch.no_grad():
            for batch in batches:
                model(batch)
        return meter

    whole = metered(images)
    idle, first = metered(), metered(images[:2])
    for meter in (first, metered(images[2:4], images[4:])):
        idle.add(pickle.loads(pickle.dumps(meter.counts())))
    assert idle.result() == whole.result()
    assert whole.result().operations


def test_gradients_come_in_the_same_buckets_from_the_first_step_on(one_process):
    """More than two workers would else round the first step after a stop otherwise."""
    model = small_model("msvit", timesteps=1, image_size=16).train()
    x = small_input(model, 2, torch.float32)
    places = {weight: place for place, weight in enumerate(model.parameters())}
    steps = []

    def learn(module):
        module(x).square().mean().backward()

    def summed(_, bucket):
        steps[-1].append([places[weight] for weight in bucket.parameters()])
        done = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    joined = data_parallel(model, learn, shares_statistics=True)
    joined.register_comm_hook(None, summed)
    for _ in range(3):
        steps.append([])
        learn(joined)
    assert sorted(place for bucket in steps[0] for place in bucket) == sorted(places.values())
    assert steps[0] == steps[1] == steps[2]


# ---- Two processes -----------------------------------------------------------------------------

MODELS = {
    "msvit": {"batch_coupled": False},
    "spikingresformer": {"layout": "cifar"},
    "sdt": {},
    "metaspikeformer": {},
}
SGD = {"batch_size": 16, "optimizer": "sgd", "lr": 0.1, "clip_grad": 1.0}
SHARED = {"sync_batchnorm": True}
CELLS = {
    "whole": {"hflip": True, "clip_grad": 1.0, **SHARED},
    "own statistics": {"mixup": 0.5, "random_erasing": 0.5, "ema_decay": 0.9},
}


def steps(name, options, device=CPU):
    """Weights and statistics after three updates by batches of 16, in float64."""
    model = small_model(name, timesteps=2, image_size=16, **MODELS[name]).double().to(device)
    images = small_input(model, 16).to(device)
    labels = torch.arange(16, device=device) % 10
    options = TrainingOptions.parse({**SGD, **options}, "test")
    if options.sync_batchnorm:
        share_statistics(model)
    optimizer = make_optimizer(model, options)
    normalise = Normalise((0.5,), (0.5,), device)
    step = TrainingStep(model, options, optimizer, normalise, choose_precision("fp32", device))
    model.train()
    for _ in range(3):
        step(workers.own(images), workers.own(labels))
    workers.take_buffers_of_first(model)
    return {name: tensor.cpu() for name, tensor in model.state_dict().items()}


def plain_ddp(name):
    """The same as torch's own script for several workers would."""
    model = small_model(name, timesteps=2, image_size=16, **MODELS[name]).double()
    images, labels = workers.own(small_input(model, 16)), workers.own(torch.arange(16) % 10)
    options = TrainingOptions.parse(SGD, "test")
    optimizer = make_optimizer(model, options)
    joined = DistributedDataParallel(model.train(), find_unused_parameters=True)
    for _ in range(3):
        optimizer.zero_grad()
        logits = joined(images).mean(0).float()
        nn.functional.cross_entropy(logits, labels, label_smoothing=0.1).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    workers.take_buffers_of_first(model)
    return model.state_dict()


def stop_at(update):
    """What breaks off a training in the middle of its forward pass ``update`` (from 1)."""

    def prepare(model):
        seen = []

        def count(module, inputs):
            seen.append(1)
            if len(seen) == update:
                raise Stopped

        model.register_forward_pre_hook(count)

    return prepare


def trained(cell, folder, update=None):
    """The record of ``cell``, also where it is broken off once and goes on."""
    if update is not None:
        make = cell_module.create_model

        def create(**options):
            model = make(**options)
            stop_at(update)(model)
            return model

        cell_module.create_model = create
        with pytest.raises(Stopped):
            train_cell(cell, folder, checkpoint_seconds=0)
        cell_module.create_model = make
        assert (folder / "checkpoint.pt").exists()
    return train_cell(cell, folder)


def all_of_it(folder):
    """What two workers find, each in its process."""
    found = {name: steps(name, SHARED) for name in MODELS}
    for name in ("msvit", "spikingresformer"):  # whose running firing rate reaches the forward pass
        found[f"own statistics: {name}"] = steps(name, {})
        found[f"plain DDP: {name}"] = plain_ddp(name)
    found["in turns"] = steps("msvit", {"grad_accum_steps": 2, **SHARED})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MSVIT_KERNELS", "off")
        found["plain kernels"] = steps("msvit", SHARED)
    for name, options in CELLS.items():
        cell = tiny_cell(epochs=2, precision="fp32", **options)
        found[f"cell: {name}"] = trained(cell, folder / name)
        found[f"stopped: {name}"] = trained(cell, folder / f"{name} stopped", update=9)
    return found


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What each of two workers has found."""
    folder = tmp_path_factory.mktemp("together")
    return two_workers(folder, lambda rank: all_of_it(folder))


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        close = {"atol": 1e-8, "rtol": 1e-8}
        torch.testing.assert_close(
            tensor, expected[name], **close, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_two_workers_at_8_end_as_one_at_16(together, name):
    expected = steps(name, {})
    for found in together:
        assert_same(found[name], expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["msvit", "spikingresformer"])
def test_with_statistics_of_its_own_each_worker_does_what_plain_ddp_does(together, name):
    for found in together:
        plain = found[f"plain DDP: {name}"]
        assert_same(found[f"own statistics: {name}"], plain)
        norms = [name for name in plain if name.endswith("running_var")]
        assert not torch.allclose(plain[norms[0]], together[0][name][norms[0]])


@pytest.mark.slow
def test_accumulated_and_plain_units_share_their_statistics_too(together):
    expected = steps("msvit", {"grad_accum_steps": 2})
    for found in together:
        assert_same(found["in turns"], expected)
        assert_same(found["plain kernels"], found["msvit"])


@pytest.mark.slow
@pytest.mark.parametrize("name", CELLS)
def test_workers_agree_and_a_training_that_was_stopped_ends_with_the_same_bits(together, name):
    first, second = (comparable(found[f"cell: {name}"]) for found in together)
    assert first == second
    for found in together:
        assert comparable(found[f"stopped: {name}"]) == first
    assert first["workers"] == {"count": 2, "machines": 1, "joined_by": "gloo"}
    assert first["test"]["images"] == 340


@pytest.mark.slow
def test_a_training_by_two_workers_is_that_by_one(together, tmp_path):
    one = train_cell(tiny_cell(epochs=2, precision="fp32", **CELLS["whole"]), tmp_path)
    two = together[0]["cell: whole"]
    assert "workers" not in one
    for key in ("data", "parameters", "selected_epoch"):
        assert two[key] == one[key]
    for row, expected in zip(two["history"], one["history"], strict=True):
        for key in ("lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy"):
            assert row[key] == pytest.approx(expected[key], rel=1e-5), key
    for key in ("firing", "operations"):
        assert [row["layer"] for row in two[key]] == [row["layer"] for row in one[key]]
    assert two["firing_rate"] == pytest.approx(one["firing_rate"], rel=1e-3)


def on_one_gpu(rank):
    return {name: steps(name, SHARED, torch.device("cuda")) for name in MODELS}


@pytest.mark.gpu
def test_two_workers_that_share_a_gpu_end_as_one(tmp_path):
    for found in two_workers(tmp_path, on_one_gpu, "spawn"):
        for name in MODELS:
            assert_same(found[name], steps(name, {}, torch.device("cuda")))
