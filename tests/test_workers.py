"""Several workers compute what one does: their parts, their sums, a training from end to end."""

import copy
import multiprocessing
import random
from contextlib import contextmanager
from datetime import timedelta

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from msvit import workers
from msvit.data.splits import Images
from msvit.layers.blocks import drop_images
from msvit.layers.shared_statistics import share_statistics
from msvit.precision import choose_precision
from msvit.recipes import TrainingOptions
from msvit.training import cell as cell_module
from msvit.training import train_cell
from msvit.training.augmentation import Augmentation
from msvit.training.batches import Normalise, train_batches
from msvit.training.loading import Loader
from msvit.training.loop import Trainer
from msvit.training.optimization import make_erasing, make_mixup, make_optimizer
from msvit.training.step import TrainingStep
from tests.small import small_input, small_model
from tests.test_training import Stopped, comparable, tiny_cell

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
    np.random.seed(3)
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
            for part in trainer._prepared(batch)
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
