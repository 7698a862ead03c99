"""Events: recordings, frames of them, simulated ones, and what a network does with them."""

from __future__ import annotations

import logging
import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spikingjelly.datasets import utils as spikingjelly
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from analysis.notes import _which_images
from msvit import load_trained
from msvit.cells import resolve_cell
from msvit.data import DATASETS, data_options, load_splits, notes_on_data
from msvit.data import events as events_module
from msvit.data.cifar10dvs import CLASSES
from msvit.data.events import as_bytes, resized, to_frames
from msvit.data.scale_textures import PERIODS, highest_accuracy, rows_of_period
from msvit.data.simulated_events import angles_of, camera
from msvit.data.splits import Images
from msvit.options import ConfigError, DataError
from msvit.recipes import TrainingOptions
from msvit.training import train_cell
from msvit.training.augmentation import Augmentation
from msvit.training.augmentation.events import OPERATIONS, augment_events
from msvit.training.augmentation.moves import mirror_and_shift
from msvit.training.batches import Normalise, time_first, train_batches
from msvit.training.loading import Loader
from studies import baselines
from tests.event_files import some_events, write_aedat2, write_aedat3, write_atis, write_npz
from tests.image_sets import class_folders, pixels
from tests.small import small_model

CPU = torch.device("cpu")
SMALL = settings(max_examples=25, deadline=None)


def load(name, data_dir=None, **options):
    return load_splits(data_options(name, options, "test"), data_dir)


@pytest.fixture(autouse=True)
def no_cache_outside(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def nmnist(tmp_path):
    """Four recordings of each digit to train on and two to test on; 200 to 229 events each."""
    for folder, number in (("Train", 4), ("Test", 2)):
        for digit in range(10):
            for i in range(number):
                seed = 100 * digit + 10 * i + (folder == "Test")
                recording = some_events(200 + 10 * i + digit % 10, 34, seed)
                write_atis(tmp_path / "nmnist" / folder / str(digit) / f"{i:05}.bin", recording)
    return tmp_path


# Frames


@SMALL
@given(
    st.integers(1, 12),
    st.integers(12, 300),
    st.integers(0, 99),
    st.sampled_from(["number", "time"]),
)
def test_frames_hold_every_event_once(number, count, seed, split_by):
    recorded = some_events(count, 8, seed)
    frames = to_frames(recorded, number, split_by, 8)
    assert frames.shape == (number, 2, 8, 8)
    whole = np.zeros((2, 8, 8), int)
    np.add.at(whole, (recorded["p"], recorded["y"], recorded["x"]), 1)
    assert np.array_equal(frames.sum(0), whole), "pixel by pixel, OFF in channel 0"
    if split_by == "number":
        assert set(frames.sum((1, 2, 3))[:-1]) <= {count // number}


@SMALL
@given(st.integers(1, 8), st.integers(0, 99))
def test_frames_of_equal_time_are_those_of_spikingjelly(number, seed):
    recorded = some_events(400, 6, seed)  # enough of them that no frame is empty, where it stops
    expected = spikingjelly.integrate_events_by_fixed_frames_number(recorded, "time", number, 6, 6)
    assert np.array_equal(to_frames(recorded, number, "time", 6), expected)


def test_a_frame_in_which_nothing_happens_is_empty():
    recorded = {
        key: np.array(v)
        for key, v in {"t": [0, 1, 99], "x": [0] * 3, "y": [0] * 3, "p": [1] * 3}.items()
    }
    assert to_frames(recorded, 3, "time", 2)[:, 1, 0, 0].tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"x": np.full(20, 8)}, "an event at x = 8, on 8 × 8 pixels"),
        ({"y": np.full(20, -1)}, "an event at y = -1, on 8 × 8 pixels"),
        ({"x": np.full(20, 2.5)}, r"an event at x = 2\.5, on 8 × 8 pixels"),
        ({"y": np.full(20, np.nan)}, "an event at y = nan"),
        ({"t": np.full(20, np.inf)}, "an event with t = inf"),
        ({"p": np.full(20, -1)}, "an event with p = -1, expected 0 or 1"),
        ({"p": np.full(20, 2)}, "an event with p = 2, expected 0 or 1"),
        ({"x": np.zeros(19, int)}, r"one t, x, y and p an event .* x \(19,\)"),
        ({"x": np.array(["a"] * 20)}, "x holds no numbers"),
        ({"t": np.arange(20)[::-1].copy()}, "event 1 is before event 0: times are not in order"),
        ({"t": np.zeros(20, int)}, "within 0 µs, too short for 4 frames"),
        ({key: np.zeros(3, int) for key in "txyp"}, "3 events, too few for 4 frames"),
    ],
)
def test_recordings_that_make_no_frames_are_refused(change, said):
    with pytest.raises(ValueError, match=said):
        to_frames(some_events(20, 8) | change, 4, "time", 8)


def test_impossible_events_name_their_file(tmp_path):
    for name in CLASSES:
        for i in range(3):
            recorded = some_events(60, 128, i)
            if (name, i) == ("cat", 1):
                recorded["x"][7] = -3
            write_npz(tmp_path / "events_np" / name / f"{i}.npz", recorded)
    with pytest.raises(DataError, match=r"cat/1\.npz: an event at x = -3, on 128 × 128 pixels$"):
        load("cifar10dvs", tmp_path, frames_number=2)


def test_counts_are_bytes_and_sizes_are_cut_or_padded():
    assert as_bytes(np.array([0, 255, 256, 9999])).tolist() == [0, 255, 255, 255]
    frames = np.arange(2 * 36).reshape(2, 6, 6)
    assert np.array_equal(resized(frames, 4), frames[:, 1:5, 1:5])
    larger = resized(frames, 9)
    assert np.array_equal(larger[:, 1:7, 1:7], frames)
    assert larger.sum() == frames.sum()


# Data sets


def test_nmnist_is_read_and_said_to_be_a_part(nmnist):
    splits = load("nmnist", nmnist, frames_number=4)
    sizes = [len(part) for part in (splits.train, splits.validation, splits.test)]
    assert sizes == [30, 10, 20]
    assert splits.train.images.shape == (30, 4, 2, 32, 32)
    assert splits.train.images.dtype == torch.uint8
    file = nmnist / "nmnist/Test/3/00001.bin"
    recorded = spikingjelly.load_ATIS_bin(file)
    expected = spikingjelly.integrate_events_by_fixed_frames_number(recorded, "number", 4, 34, 34)
    at = (splits.test.labels == 3).nonzero()[1, 0]
    assert np.array_equal(splits.test.images[at], expected[..., 1:33, 1:33])
    normalised = Normalise(splits.mean, splits.std, CPU)(splits.test.images[at][None])
    assert torch.equal(normalised[0], splits.test.images[at].float()), "networks see counts"
    (note,) = notes_on_data([{"name": "nmnist"}], nmnist)
    assert note.startswith("not the published nmnist: 40 train and 20 test images")
    whole = {
        "train": DATASETS["nmnist"].published["train"],
        "test": DATASETS["nmnist"].published["test"],
    }
    assert DATASETS["nmnist"].unlike_published(whole) is None
    assert [sum(whole["train"]), sum(whole["test"])] == [60000, 10000]


def test_frames_are_made_once_for_each_way(nmnist, monkeypatch):
    first = load("nmnist", nmnist, frames_number=4)
    options = data_options("nmnist", {"frames_number": 4}, "test")
    by_time = load("nmnist", nmnist, frames_number=4, split_by="time")
    assert not torch.equal(by_time.train.images, first.train.images)
    assert by_time.fingerprint == first.fingerprint, "of the recordings, not of their frames"
    made = list(nmnist.glob("nmnist/.msvit-cache/*.npy"))
    assert len(made) == 2
    with monkeypatch.context() as patch:
        patch.setattr(events_module, "to_frames", None)
        assert torch.equal(load("nmnist", nmnist, frames_number=4).train.images, first.train.images)
        assert options.fingerprint(nmnist) == first.fingerprint
    write_atis(nmnist / "nmnist/Test/3/00001.bin", some_events(150, 34, 1))
    changed = load("nmnist", nmnist, frames_number=4)
    assert changed.fingerprint != first.fingerprint
    next(nmnist.glob("nmnist/.msvit-cache/*.json")).write_text("{")
    assert load("nmnist", nmnist, frames_number=4).fingerprint == changed.fingerprint


def test_counts_above_a_byte_are_kept_as_255_and_told(nmnist, caplog):
    crowded = some_events(2000, 34, 5, step=50)
    crowded["x"][:600], crowded["y"][:600], crowded["p"][:600] = 5, 6, 1
    write_atis(nmnist / "nmnist/Test/0/00000.bin", crowded)
    with caplog.at_level(logging.WARNING, "msvit"):
        splits = load("nmnist", nmnist, frames_number=2)
    assert splits.test.images[0, 0, 1, 5, 4] == 255
    assert "1 counts above 255 are kept as 255" in caplog.text


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("nmnist", ("Train.zip", "garrickorchard")),
        ("cifar10dvs", ("airplane.zip", "figshare")),
        ("dvs128", ("DvsGesture.tar.gz", "ibm")),
    ],
)
def test_missing_recordings_are_named_with_their_source(name, named, tmp_path):
    options = data_options(name, {}, "test")
    assert options.counts(None) is None
    assert options.fingerprint(None) is None
    for folder, place in ((None, "--data-dir"), (tmp_path, str(tmp_path / name))):
        with pytest.raises(DataError) as caught:
            options.check(folder)
        assert all(part in str(caught.value) for part in (*named, place))


def test_broken_recordings_are_named(nmnist):
    file = nmnist / "nmnist/Train/7/00002.bin"
    whole = file.read_bytes()
    for content, said in (
        (whole[:-2], "no whole events"),
        (whole[:10], "2 events, too few for 10"),
    ):
        file.write_bytes(content)
        with pytest.raises(DataError, match=f"00002.bin: .*{said}"):
            load("nmnist", nmnist)
    for bad in nmnist.glob("nmnist/Train/7/*"):
        bad.unlink()
    with pytest.raises(DataError, match=r"Train/7: no \.bin file"):
        data_options("nmnist", {}, "test").check(nmnist)


def test_parts_of_event_sets_are_named(tmp_path):
    for name in CLASSES[:-1]:
        for i in range(2):
            write_npz(tmp_path / "events_np" / name / f"{i}.npz", some_events(9, 128))
    options = data_options("cifar10dvs", {}, "test")
    with pytest.raises(DataError, match=r"events_np: it has no folder truck; .* not all there"):
        options.check(tmp_path)
    write_npz(tmp_path / "events_np/truck/0.npz", some_events(9, 128))
    with pytest.raises(DataError, match=r"airplane: 2 \.npz files; at least 3"):
        options.check(tmp_path)

    for i in (1, 2):
        write_npz(tmp_path / f"events_np/truck/{i}.npz", some_events(9, 128))
    for name in CLASSES[:-1]:
        write_npz(tmp_path / "events_np" / name / "2.npz", some_events(9, 128))
    assert options.left_out(tmp_path) is None
    (tmp_path / "events_np/cat/notes.txt").touch()
    said = f"{tmp_path / 'events_np'}: no recordings, and not read: cat/notes.txt"
    assert options.left_out(tmp_path) == said

    dvs128 = DATASETS["dvs128"]
    assert dvs128.unlike_published({"train": [1176], "test": [288]}) is None
    said = dvs128.unlike_published({"train": [20, 30], "test": [288]})
    assert "50 train and 288 test trials were found" in said
    stills = data_options("simulated_events", {"images": "cifar10"}, "test")
    assert "not the published cifar10" in stills.unlike_published({"train": [9] * 10, "test": [1]})


def test_cifar10dvs_is_read_and_divided_as_published(tmp_path):
    for label, name in enumerate(CLASSES):
        for i in range(12):
            recorded = some_events(60, 128, 20 * label + i)
            write_aedat2(tmp_path / "a/cifar10dvs" / name / f"cifar10_{name}_{i}.aedat", recorded)
            write_npz(tmp_path / "b/events_np" / name / f"cifar10_{name}_{i}.npz", recorded)
    splits = load("cifar10dvs", tmp_path / "a", frames_number=2)
    prepared = load("cifar10dvs", tmp_path / "b", frames_number=2)
    assert torch.equal(splits.train.images, prepared.train.images)
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [100, 10, 10]
    # By name, 9 is behind 8 and 10 and 11 are behind 1: the last of twelve.
    expected = to_frames(some_events(60, 128, 20 * 4 + 9), 2, "number", 128)
    assert np.array_equal(splits.test.images[4], expected)
    smaller = load("cifar10dvs", tmp_path / "b", frames_number=2, image_size=64)
    seen = Normalise(smaller.mean, smaller.std, CPU)(smaller.test.images)
    means = torch.nn.functional.avg_pool2d(splits.test.images.flatten(0, 1).float(), 2)
    assert torch.allclose(seen.flatten(0, 1), means)


def test_dvs128_is_read_and_divided_by_its_lists(tmp_path):
    folder = tmp_path / "dvs128" / "DvsGesture"
    expected = {}
    for split, users in (("train", ("user01_led", "user02_led")), ("test", ("user24_led",))):
        for seed, user in enumerate(users):
            recorded = some_events(2400, 128, seed)
            write_aedat3(folder / f"{user}.aedat", recorded)
            edges = recorded["t"][::200]
            rows = [f"{label % 11 + 1},{edges[label]},{edges[label] + 5000}" for label in range(12)]
            table = "\n".join(["class,startTime_usec,endTime_usec", *rows])
            (folder / f"{user}_labels.csv").write_text(table)
            for i, start in enumerate(edges):
                inside = (recorded["t"] >= start) & (recorded["t"] < start + 5000)
                trial = {key: values[inside] for key, values in recorded.items()}
                expected.setdefault((split, i % 11), []).append(to_frames(trial, 3, "number", 128))
                write_npz(tmp_path / f"b/events_np/{split}/{i % 11}/{user}_{i}.npz", trial)
        names = "\n".join(f"{user}.aedat" for user in users)
        (folder / f"trials_to_{split}.txt").write_text(names + "\n")
    options = data_options("dvs128", {"frames_number": 3}, "test")
    assert options.counts(tmp_path) == {"train": [4] + [2] * 10, "test": [2] + [1] * 10}
    splits = load_splits(options, tmp_path)
    prepared = load_splits(options, tmp_path / "b")
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (13, 11, 12)
    for found in (splits, prepared):
        for label in range(11):
            frames = found.test.images[found.test.labels == label].numpy()
            assert np.array_equal(frames, np.stack(expected["test", label]))
    (folder / "user02_led_labels.csv").write_text("class,start,end\n12,0,5\n")
    with pytest.raises(DataError, match=r"user02_led_labels.csv: class 12, expected 1 to 11"):
        options.check(tmp_path)
    (folder / "user01_led.aedat").unlink()
    with pytest.raises(DataError, match=r"user01_led.aedat: not there, but .*trials_to_train.txt"):
        options.check(tmp_path)


# Simulated events


@SMALL
@given(st.integers(0, 99), st.sampled_from([0.1, 0.3]), st.integers(1, 4))
def test_simulated_events_add_up_to_the_change_of_intensity(seed, threshold, frames):
    light = torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(seed))
    angles = torch.tensor([0.0, 1.0, 2.0])
    counts = camera(light, angles, frames, threshold, amplitude=1.0)
    # Back where it began: what the events say has changed is less than one of them.
    change = threshold * (counts[:, :, 1] - counts[:, :, 0]).sum(1)
    assert change.abs().max() < threshold + 1e-4
    assert counts.sum() > 0


def test_a_bright_edge_that_comes_is_on_and_one_that_goes_is_off():
    light = torch.zeros(1, 8, 8)
    light[..., 4:] = 1
    # From (2, 0) to (-1, √3): a pixel sees what is farther and farther to the left.
    first = camera(light, torch.zeros(1), 3, 0.5, amplitude=2.0)[0, 0]
    assert first[0, :, 3].min() > 0, "OFF where the bright half leaves"
    assert first[1].sum() == 0


def test_simulated_events_are_the_same_in_any_batch(monkeypatch):
    options = {"image_size": 8, "frames_number": 2, "train_per_class": 4}
    whole = load("simulated_events", **options)
    monkeypatch.setattr("msvit.data.simulated_events._CHUNK", 7)
    parts = load("simulated_events", **options)
    assert torch.equal(whole.train.images, parts.train.images)
    still = load("digits", image_size=8, train_per_class=4)
    assert whole.fingerprint == still.fingerprint
    assert torch.equal(whole.test.labels, still.test.labels)
    assert whole.train.images.shape == (40, 2, 2, 8, 8)
    assert len(angles_of(still.train.images).unique()) > 30


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"images": "nmnist"}, "images: no still images 'nmnist'"),
        ({"images": "cifar10", "image_size": 16}, "image_size: that of cifar10 is 32"),
        ({"images": "imagenet"}, "images: no still images 'imagenet'"),
        ({"image_classes": 3}, "image_classes: digits has as many classes as it has"),
    ],
)
def test_simulated_events_need_still_images(options, said):
    with pytest.raises(ConfigError, match=said):
        data_options("simulated_events", options, "test")


def test_any_still_images_can_be_seen_by_the_camera(tmp_path, monkeypatch):
    images = pixels(12, 16)
    for split in ("train", "test"):
        class_folders(tmp_path, images, np.arange(12) % 3, split)
    chosen = {"images": "image_folder", "image_classes": 3, "image_size": 16, "frames_number": 2}
    splits = load("simulated_events", tmp_path, **chosen)
    assert splits.test.images.shape == (12, 2, 2, 16, 16)
    assert splits.test.labels.bincount().tolist() == [4, 4, 4]
    monkeypatch.setattr("msvit.data.image_files.MEMORY_BYTES", 0)
    with pytest.raises(DataError, match="image_folder: too many images to be held in memory"):
        load("simulated_events", tmp_path, **chosen)
    stills = {name for name, options in DATASETS.items() if not options.events} - {"imagenet"}
    for name in stills:
        size = data_options("simulated_events", {"images": name}, "t").image_size
        assert size == data_options(name, {}, "t").image_size


def test_simulated_events_are_called_so_wherever_numbers_are_shown():
    (said,) = notes_on_data([{"name": "simulated_events"}, {"name": "digits"}], None)
    assert said.startswith("simulated_events are simulated, not recorded")
    (below,) = _which_images(pd.DataFrame({"data": ["digits", "simulated_events"]}))
    assert below == f"{said[0].upper()}{said[1:]}."


# Textures


def test_textures_differ_only_in_what_is_wider_than_their_period():
    for period in PERIODS:
        pixels = rows_of_period(np.full(300, period), 24, np.random.RandomState(period)) > 0
        agree = [(pixels[..., :-a] == pixels[..., a:]).mean() for a in range(1, 13)]
        for apart, share in enumerate(agree, start=1):
            assert share == pytest.approx(1.0 if apart % period == 0 else 0.5, abs=0.02)
        # Each of the patterns of so many neighbours is as likely, wherever they are in a row.
        for width, start in ((3, 0), (3, 20), (min(period, 5), 11)):
            part = pixels[..., start : start + width].reshape(-1, width)
            counts = np.bincount(part @ (1 << np.arange(width)), minlength=2**width)
            assert counts / len(part) == pytest.approx(1 / 2**width, abs=0.02)
    assert [highest_accuracy(reach) for reach in (1, 5, 7, 9, 11)] == [0.2, 0.4, 0.6, 0.8, 1.0]


def test_textures_are_made_once_and_for_all():
    splits = load("scale_textures", train_per_class=10)
    again = load("scale_textures")
    assert torch.equal(splits.test.images, again.test.images)
    assert splits.train.labels.bincount().tolist() == [10] * 5
    assert (len(again.train), len(again.validation), len(again.test)) == (1500, 250, 500)


# Cells


def cell(**changes):
    raw = {
        "model": {"name": "msvit", "dim": 16, "heads": 2, "depths": [1, 1], "widths": [0.5, 1.0]},
        "data": {
            "name": "simulated_events",
            "image_size": 8,
            "frames_number": 2,
            "train_per_class": 3,
        },
        "training": {"epochs": 1, "batch_size": 10, "warmup_epochs": 0},
    }
    sections = {key: {**raw[key], **changes.get(key, {})} for key in raw}
    if sections["data"]["name"] != "simulated_events":
        del sections["data"]["frames_number"]
    return resolve_cell(sections, "test")


def test_a_model_of_events_has_a_time_step_for_each_frame():
    resolved = cell()
    assert resolved.model["timesteps"] == 2
    assert resolved.model["in_channels"] == 2
    assert "event_augmentation" not in resolved.training
    with pytest.raises(ConfigError, match="timesteps: the data set gives 2, the model is set to 4"):
        cell(model={"timesteps": 4})
    with pytest.raises(ConfigError, match="event_augmentation: it is for events, and digits has"):
        cell(data={"name": "digits"}, training={"event_augmentation": "snn_wide"})


def test_two_channels_are_no_events():
    model = small_model("spikformer", timesteps=2, in_channels=2)
    assert model(torch.rand(3, 2, 32, 32)).shape == (2, 3, 10)


# Augmentation


def frames_of(count=6, steps=3, size=16):
    random = torch.Generator().manual_seed(4)
    return torch.randint(0, 9, (count, steps, 2, size, size), dtype=torch.uint8, generator=random)


def by_torchvision(frames, operation, step):
    def strength(most):
        return float(torch.linspace(-most, most, 31)[step])

    whole = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
    nearest = InterpolationMode.NEAREST
    if operation == "turn":
        return tv.rotate(frames, strength(30), nearest)
    if operation == "shear":
        whole["shear"] = [math.degrees(strength(0.3)), 0.0]
    elif operation == "move_along_row":
        whole["translate"] = [int(strength(5)), 0]
    elif operation == "move_along_column":
        whole["translate"] = [0, int(strength(5))]
    return tv.affine(frames, interpolation=nearest, **whole)


@pytest.mark.parametrize("operation", OPERATIONS[:-1])
@pytest.mark.parametrize("step", [0, 8, 15, 24, 30])
def test_operations_are_those_of_torchvision(operation, step, monkeypatch):
    frames = frames_of(2)
    draws = iter(
        [
            torch.full((2,), OPERATIONS.index(operation)),
            torch.full((2,), step),
        ]
    )
    monkeypatch.setattr(torch, "randint", lambda *_, **__: next(draws))
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.full(shape, 0.9))  # none mirrored
    changed = augment_events(frames, torch.Generator())
    expected = by_torchvision(frames, operation, step)
    assert (changed == expected).float().mean() > 0.998  # ties between two nearest pixels


def test_a_cut_is_a_square_of_up_to_a_ninth(monkeypatch):
    frames = torch.ones(400, 2, 2, 20, 20, dtype=torch.uint8)
    monkeypatch.setattr(torch, "randint", lambda high, size, **_: torch.full(size, 5))
    changed = augment_events(frames, torch.Generator().manual_seed(0))
    holes = (changed == 0).flatten(3).sum(-1)
    assert (holes == holes[:, :1, :1]).all(), "the same for all frames and polarities"
    sides = holes[:, 0, 0].double().sqrt()
    assert torch.equal(sides, sides.round())
    shares = torch.linspace(0.001, 0.11, 4000) * 400
    assert sorted(sides.unique().tolist()) == sorted(shares.sqrt().round().unique().tolist())
    rows = (changed[:, 0, 0] == 0).any(-1).float().mean(0)
    assert rows[0] > 0, "squares touch the edge"


def test_samples_are_changed_alike_in_time_and_each_in_its_way():
    frames = frames_of(1).expand(64, -1, -1, -1, -1).contiguous()
    frames[:, 1:] = frames[:, :1]
    changed = augment_events(frames, torch.Generator().manual_seed(1))
    assert torch.equal(changed[:, 1], changed[:, 0])
    assert len({sample.numpy().tobytes() for sample in changed}) > 40
    same = augment_events(frames, torch.Generator().manual_seed(1))
    assert torch.equal(same, changed)
    floats = augment_events(frames.float(), torch.Generator().manual_seed(1))
    assert torch.equal(floats, changed.float())


def test_every_operation_is_as_likely_and_half_are_mirrored():
    count = 1200
    frames = torch.zeros(count, 1, 1, 21, 21, dtype=torch.uint8)
    frames[..., 8:13, 4:6] = 1
    frames[..., 10, 10] = 7  # the centre, which only moves are rid of
    changed = augment_events(frames, torch.Generator().manual_seed(2))
    flipped = (changed[..., 11:].sum((1, 2, 3, 4)) > changed[..., :10].sum((1, 2, 3, 4))).float()
    assert flipped.mean() == pytest.approx(0.5, abs=0.06)
    centred = (changed[:, 0, 0, 10, 10] == 7).float().mean()
    assert centred == pytest.approx(1 - 2 / 6 * 26 / 31 - 0.5 / 6 * 0.3, abs=0.06)


def test_mirrors_and_shifts_of_images_treat_all_frames_alike():
    frames = frames_of(4)
    frames[:, 1:] = frames[:, :1]
    changed = mirror_and_shift(frames, True, 2, torch.Generator().manual_seed(0))
    assert changed.shape == frames.shape
    assert torch.equal(changed[:, 1], changed[:, 0])
    still = mirror_and_shift(frames[:, 0], True, 2, torch.Generator().manual_seed(0))
    assert torch.equal(changed[:, 0], still)


def test_batches_are_augmented_only_where_it_is_asked_for():
    data = Images(frames_of(8), torch.arange(8))
    for name, same in (("none", True), ("snn_wide", False)):
        options = TrainingOptions(batch_size=8, event_augmentation=name)
        loader, change = Loader(data, 8, CPU), Augmentation(options, (0.0, 0.0), CPU)
        (batch,) = train_batches(loader, options, change, torch.Generator().manual_seed(0))
        assert torch.equal(batch.images, data.images[batch.labels]) == same
    assert time_first(batch.images).shape == (3, 8, 2, 16, 16)
    assert time_first(batch.images[:, 0]).shape == (8, 2, 16, 16)


# Training


@pytest.mark.slow
@pytest.mark.parametrize("training", [{"event_augmentation": "snn_wide"}, {"mixup": 0.5}])
def test_a_cell_on_events_is_trained_measured_and_used(training, tmp_path):
    record = train_cell(cell(training=training), tmp_path)
    assert record["test"]["images"] == 340
    assert {row["timestep"] for row in record["firing"]} == {0, 1}
    model = load_trained(tmp_path)
    test = load("simulated_events", image_size=8, frames_number=2).test
    with torch.no_grad():
        logits = model(model.prepare(test.images))
    hits = (logits.mean(0).argmax(-1) == test.labels).float().mean()
    assert float(hits) == pytest.approx(record["test"]["accuracy"], abs=0.01)
    one = model.prepare(test.images[0].double().numpy())
    assert torch.equal(one, model.prepare([test.images[0]]))
    assert one.shape == (2, 1, 2, 8, 8)
    for bad, said in (
        (test.images[0, :1], "not of"),
        (test.images[0] + 0.5, "no whole numbers"),
        (-test.images[0].int(), "below 0"),
    ):
        with pytest.raises(ValueError, match=said):
            model.prepare(bad)


def test_classifiers_without_a_network_take_events():
    told = baselines.table(
        "simulated_events", {"image_size": 8, "frames_number": 1, "train_per_class": 5}, None
    )
    assert "| nearest neighbours |" in told
