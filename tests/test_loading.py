"""Batches on the device, wherever a split is: the same for any number of workers, which all end."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from msvit.cells import resolve_cell
from msvit.data import image_files
from msvit.data.crops import RandomPart
from msvit.data.encoded import Encoded
from msvit.data.splits import Images, Streamed
from msvit.data.views import Centre, Whole
from msvit.options import DataError
from msvit.training import train_cell
from msvit.training.loading import Loader
from tests.image_sets import class_folders, pixels

CPU = torch.device("cpu")
COUNT = 22
WHOLE = Whole(24)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder of images of 24×24 pixels."""
    root = tmp_path_factory.mktemp("files")
    class_folders(root, pixels(COUNT, 24), np.arange(COUNT) % 3, "train")
    return root


def streamed(root, view=WHOLE):
    names = sorted(str(file.relative_to(root)) for file in root.glob("train/*/*.png"))
    labels = torch.tensor([int(name[-13:-10]) for name in names])
    return Streamed(Encoded.of_files(root, names), labels, view)


def in_memory(samples):
    images = np.empty((len(samples), *samples.shape), np.uint8)
    samples.decode(np.arange(len(samples)), images)
    return Images(torch.from_numpy(images), samples.labels)


def joined(batches):
    images, labels = zip(*((batch.images, batch.labels) for batch in batches), strict=True)
    return torch.cat(images), torch.cat(labels)


@pytest.mark.parametrize("view", [WHOLE, Centre(16), Centre(16, 0.875)])
@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_batches_are_those_in_memory(files, view, workers):
    samples = streamed(files, view)
    order = torch.randperm(COUNT)[:-3]
    for asked in (None, order):
        ours = list(Loader(samples, 4, CPU, workers).batches(asked))
        theirs = list(Loader(in_memory(samples), 4, CPU).batches(asked))
        assert [len(batch) for batch in ours] == [len(batch) for batch in theirs]
        for found, expected in zip(joined(ours), joined(theirs), strict=True):
            assert torch.equal(found, expected)
    part = torch.tensor([5, 3, 8])
    assert torch.equal(in_memory(samples[part]).images, in_memory(samples)[part].images)


def test_random_parts_follow_from_seed_epoch_and_image_alone(files):
    samples = streamed(files).seen(RandomPart(16))
    order = torch.randperm(COUNT)

    def epoch(seed, asked=order, workers=0):
        return joined(Loader(samples, 4, CPU, workers).batches(asked, (seed, 1)))[0]

    first = epoch(7)
    assert torch.equal(first, epoch(7, workers=2))
    assert torch.equal(first[8:], epoch(7, order[8:], workers=2)), "on in the middle of an epoch"
    assert torch.equal(first.flip(0), epoch(7, order.flip(0)))
    other = epoch(8)
    assert all(not torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_random_parts_are_timms_and_leave_the_generator_alone():
    import random

    from timm.data.transforms import RandomResizedCropAndInterpolation

    ramp = np.stack(np.meshgrid(np.arange(96), np.arange(96), indexing="ij"), -1).astype(np.uint8)
    image = Image.fromarray(np.concatenate([ramp, ramp[..., :1]], -1))
    view, extents = RandomPart(48, scale=(0.25, 0.5), ratio=(0.75, 4 / 3)), []
    random.seed(3)
    state = random.getstate()
    for index in range(300):
        part = np.asarray(view(image, (0, index))).astype(int)
        assert part.shape == (48, 48, 3)
        extents.append([part[..., 0].max() - part[..., 0].min(), np.ptp(part[..., 1])])
    assert random.getstate() == state
    area = np.prod(np.array(extents) + 1, axis=1) / 96**2
    assert 0.22 < area.min() < 0.27
    assert 0.48 < area.max() < 0.53
    words = np.random.SeedSequence([0, 5]).generate_state(1, np.uint64)
    random.seed(int(words[0]))
    theirs = RandomResizedCropAndInterpolation(48, (0.25, 0.5), (0.75, 4 / 3), "bicubic")(image)
    assert np.array_equal(np.asarray(theirs), np.asarray(view(image, (0, 5))))


def test_a_loader_knows_how_long_it_was_waited_for(files):
    class Slow(Whole):
        def __call__(self, image, seed):
            time.sleep(0.01)
            return image

    loader = Loader(streamed(files, Slow(24)), 11, CPU, workers=0)
    first, *_ = loader.batches()
    assert len(first) == 11
    assert loader.waited > 0.2
    began = loader.waited
    for _ in loader.batches():
        time.sleep(0.2)  # a step
    assert loader.waited - began < 0.6


def test_workers_end_with_the_epoch_however_it_ends(files):
    loader = Loader(streamed(files), 4, CPU, workers=2)
    for _ in loader.batches():
        assert len(multiprocessing.active_children()) == 2
    assert not multiprocessing.active_children()
    batches = loader.batches()
    next(batches)
    batches.close()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_file_is_named_and_ends_the_epoch(files, tmp_path, workers):
    samples = streamed(files)
    names = samples.encoded.files.copy()
    broken = files / "train" / "broken.png"
    broken.write_bytes(b"no image")
    names[13] = b"train/broken.png"
    spoilt = Streamed(Encoded(files, names.astype("S40")), samples.labels, samples.view)
    batches = Loader(spoilt, 4, CPU, workers).batches()
    with pytest.raises(DataError, match=rf"^{broken}: cannot be decoded"):
        list(batches)
    assert not multiprocessing.active_children()


def test_a_worker_that_is_killed_ends_the_epoch_with_a_line(files):
    batches = Loader(streamed(files), 1, CPU, workers=1).batches()
    next(batches)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(DataError, match="was ended from outside, perhaps for want of memory"):
        list(batches)


@pytest.mark.slow
def test_workers_do_not_outlive_a_parent_that_is_killed(files, tmp_path):
    script = f"""
import multiprocessing, torch
from pathlib import Path
from msvit.training.loading import Loader
from tests.test_loading import CPU, streamed
batches = Loader(streamed(Path({str(files)!r})), 1, CPU, workers=2).batches()
next(batches)
print(*(worker.pid for worker in multiprocessing.active_children()), flush=True)
input()
"""
    command = [sys.executable, "-c", script]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **streams) as parent:
        workers = [int(number) for number in parent.stdout.readline().split()]
        assert len(workers) == 2
        parent.kill()
    end = time.monotonic() + 10
    while any(map(lives, workers)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(map(lives, workers))


def lives(process):
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_a_cell_trains_on_streamed_images_as_on_those_in_memory(tmp_path, monkeypatch):
    root = tmp_path / "own"
    class_folders(root, pixels(30, 16), np.arange(30) % 3, "train")
    class_folders(root, pixels(9, 16, 1), np.arange(9) % 3, "test")
    cell = resolve_cell(
        {
            "model": {"name": "spikformer", "dim": 16, "heads": 2, "depths": [1], "timesteps": 2},
            "data": {"name": "image_folder", "num_classes": 3, "image_size": 8},
            "training": {"epochs": 2, "batch_size": 8, "shift": 1, "hflip": True},
        },
        "test",
    )
    records = []
    for bound in (2e9, 0):
        monkeypatch.setattr(image_files, "MEMORY_BYTES", bound)
        records.append(train_cell(cell, tmp_path / str(bound), data_dir=root))
    kept, from_disk = ([row["train_loss"] for row in r["history"]] for r in records)
    assert kept == from_disk
    assert records[0]["test"] == records[1]["test"]
    assert records[0]["operations"] == records[1]["operations"]
