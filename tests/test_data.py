"""Data sets: read from files in their real formats, divided once and for all."""

import gzip
import multiprocessing
import os
import shutil
import struct
import zlib
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from msvit.cells import resolve_cell
from msvit.data import DATASETS, data_options, list_datasets, load_splits, notes_on_data
from msvit.data import decoded as decoded_module
from msvit.data import fashion_mnist as fashion_mnist_module
from msvit.data.cifar import Cifar10Options
from msvit.data.decoding import red_green_blue
from msvit.data.fingerprint import fingerprint
from msvit.data.options import DataOptions
from msvit.data.splits import Images, Splits, split_train
from msvit.options import ConfigError, DataError
from msvit.recipes import TrainingOptions
from msvit.training import train_cell
from msvit.training.augmentation import Augmentation
from msvit.training.augmentation.moves import mirror_and_shift
from msvit.training.batches import Normalise, train_batches
from msvit.training.loading import Loader


def load(name, data_dir=None, **options):
    return load_splits(data_options(name, options, "test"), data_dir)


def rows(images):
    """Images as a set of byte strings."""
    return {image.numpy().tobytes() for image in images}


def write_idx(path: Path, values: np.ndarray) -> None:
    header = struct.pack(">BBBB", 0, 0, 8, values.ndim)
    header += struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(gzip.compress(header + values.tobytes()))


@pytest.fixture
def fashion_mnist(tmp_path):
    random = np.random.default_rng(0)
    for split, per_class in (("train", 20), ("t10k", 4)):
        labels = np.repeat(np.arange(10, dtype=np.uint8), per_class)
        random.shuffle(labels)
        images = random.integers(0, 256, (len(labels), 28, 28), dtype=np.uint8)
        write_idx(tmp_path / f"{split}-images-idx3-ubyte.gz", images)
        write_idx(tmp_path / f"{split}-labels-idx1-ubyte.gz", labels)
    return tmp_path


@pytest.fixture
def cifar10(tmp_path):
    """Ten classes of plain colours; the green of a pixel is 20 times its class."""
    for split, per_class in (("train", 10), ("test", 2)):
        for label in range(10):
            folder = tmp_path / "cifar10" / split / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(per_class):
                pixels = np.full((32, 32, 3), (i * 20, label * 20, 128), np.uint8)
                suffix = "png" if i % 2 else "jpg"
                Image.fromarray(pixels).save(folder / f"{i:04}.{suffix}")
    return tmp_path


def test_options_are_checked_by_name_and_range():
    static = {"cifar10", "cifar100", "digits", "fashion_mnist", "imagenet", "tiny_imagenet"}
    assert {*static, "image_folder"} <= set(list_datasets())
    with pytest.raises(ConfigError, match=r"g\.data\.name: unknown data set 'digit'.*'digits'"):
        data_options("digit", {}, "g.data")
    with pytest.raises(ConfigError, match=r"g\.data\.train_per_clas: unknown.*train_per_class"):
        data_options("cifar10", {"train_per_clas": 3}, "g.data")
    for name, bad in (
        ("digits", {"image_size": 0}),
        ("digits", {"image_size": 4096}),
        ("digits", {"train_per_class": -1}),
        ("cifar10", {"train_per_class": 4751}),
        ("fashion_mnist", {"image_size": 28}),
    ):
        with pytest.raises(ConfigError, match=r"^g\.data\."):
            data_options(name, bad, "g.data")


class StripesOptions(DataOptions):
    """What a contributor writes: columns (class 0) and rows (class 1) of light, 8×8 pixels."""

    name: ClassVar[str] = "stripes"
    num_classes: ClassVar[int] = 2
    in_channels: ClassVar[int] = 1
    image_size: ClassVar[int] = 8
    mean: ClassVar[tuple[float, ...]] = (0.5,)
    std: ClassVar[tuple[float, ...]] = (0.5,)

    def load(self, data_dir):
        columns = torch.tensor([0, 255], dtype=torch.uint8).repeat(8, 4)
        images = torch.stack([columns, columns.T])[:, None].repeat(60, 1, 1, 1)
        both = Images(images, torch.tensor([0, 1]).repeat(60))
        train, validation = split_train(both[:80], 0.2, self.train_per_class)
        return Splits(train, validation, both[80:], self.mean, self.std)


def test_a_new_data_set_is_a_class_and_its_line_in_the_registry(tmp_path, monkeypatch):
    monkeypatch.setitem(DATASETS, StripesOptions.name, StripesOptions)
    cell = resolve_cell(
        {
            "model": {
                "name": "msvit",
                "dim": 16,
                "heads": 2,
                "depths": [1, 1],
                "widths": [0.5, 1.0],
            }
            | {"timesteps": 2},
            "data": {"name": "stripes", "train_per_class": 32},
            "training": {"epochs": 1, "batch_size": 8},
        },
        "test",
    )
    assert (cell.model["num_classes"], cell.model["image_size"]) == (2, 8)
    record = train_cell(cell, tmp_path)
    assert record["test"]["images"] == 40
    assert record["cell"]["data"] == {"name": "stripes", "train_per_class": 32}


@pytest.mark.parametrize("left_out", ["name", "num_classes", "in_channels", "image_size"])
def test_a_data_set_states_what_its_images_are(left_out):
    with pytest.raises(TypeError, match=rf"data set Partial: it states no {left_out} of its own$"):
        define("Partial", DataOptions, vars(StripesOptions), left_out)


@pytest.mark.parametrize("left_out", ["name", "mean", "std"])
def test_a_data_set_that_refines_another_does_not_inherit_its_statistics(left_out):
    own = {"name": "cifar100", "num_classes": 100, "mean": (0.5,) * 3, "std": (0.2,) * 3}
    assert define("Cifar100", Cifar10Options, own, None).in_channels == 3
    with pytest.raises(TypeError, match=rf"data set Cifar100: it states no {left_out} of its own$"):
        define("Cifar100", Cifar10Options, own, left_out)


def define(name, base, own, left_out):
    """A data set's class with what ``own`` states, as a class statement would make it."""
    stated = ("name", "num_classes", "in_channels", "image_size", "mean", "std", "load")
    body = {key: own[key] for key in stated if key in own and key != left_out}
    body["__annotations__"] = {key: ClassVar for key in body if key != "load"}
    return type(base)(name, (base,), {"__module__": __name__, **body})


@pytest.mark.parametrize(
    ("mean", "std", "said"),
    [
        ((0.5,), (0.5,), r"mean \(0.5,\): one number for each of 3 channels"),
        ((0.5,) * 3, (0.5, 0.0, 0.5), "std .* above 0"),
        ((float("nan"),) * 3, (0.5,) * 3, "mean"),
    ],
)
def test_statistics_that_do_not_fit_the_images_are_refused(mean, std, said):
    images = Images(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]))
    with pytest.raises(DataError, match=said):
        Splits(images, images, images, mean, std)


def test_a_data_set_of_files_is_told_apart_by_what_it_loads(tmp_path):
    def load_saved(self, data_dir):
        both = torch.from_numpy(np.load(data_dir / "images.npy"))
        images = Images(both, torch.arange(2).repeat(len(both) // 2))
        return Splits(images, images, images, self.mean, self.std)

    own = {**vars(StripesOptions), "name": "saved", "load": load_saved}
    Saved = define("Saved", DataOptions, own, None)
    found = []
    for shade in (1, 2):
        np.save(tmp_path / "images.npy", np.full((4, 1, 8, 8), shade, np.uint8))
        found.append(Saved().fingerprint(tmp_path))
        assert found[-1] == load_splits(Saved(), tmp_path).fingerprint
    assert found[0]["digest"] != found[1]["digest"]
    assert Saved().fingerprint(None) is None
    assert data_options("digits", {}, "test").fingerprint(tmp_path) is None


def test_a_deviation_of_0_is_refused_where_it_is_stated():
    own = {**vars(StripesOptions), "std": (0.0,)}
    with pytest.raises(TypeError, match=r"data set Flat: std \(0.0,\): above 0"):
        define("Flat", DataOptions, own, None)


def test_digits_are_divided_into_disjoint_balanced_sets():
    splits = load("digits")
    train, validation, test = splits.train, splits.validation, splits.test
    assert (len(train), len(validation), len(test)) == (1247, 210, 340)
    assert train.images.shape[1:] == (1, 16, 16)
    assert train.images.dtype == torch.uint8
    assert validation.labels.bincount().tolist() == [21] * 10
    assert test.labels.bincount().tolist() == [34] * 10
    sets = [rows(part.images) for part in (train, validation, test)]
    assert len(set.union(*sets)) == 1797, "an image is in two sets, or lost"


def test_digits_are_the_same_images_at_any_size_and_in_every_load():
    first, again, small = load("digits"), load("digits"), load("digits", image_size=8)
    for name in ("train", "validation", "test"):
        assert torch.equal(getattr(first, name).images, getattr(again, name).images)
        assert torch.equal(getattr(first, name).labels, getattr(small, name).labels)
    assert small.test.images.shape[1:] == (1, 8, 8)


def test_normalised_training_images_have_mean_0_and_deviation_1():
    splits = load("digits")
    pixels = torch.cat([splits.train.images, splits.validation.images])
    normalised = Normalise(splits.mean, splits.std, torch.device("cpu"))(pixels)
    assert normalised.mean().abs() < 1e-3
    assert abs(normalised.std() - 1) < 1e-3


def test_a_subset_is_stratified_and_leaves_the_other_sets_alone():
    whole, part = load("digits"), load("digits", train_per_class=7)
    assert part.train.labels.bincount().tolist() == [7] * 10
    assert rows(part.train.images) < rows(whole.train.images)
    assert torch.equal(part.validation.images, whole.validation.images)
    assert torch.equal(part.test.images, whole.test.images)
    assert part.mean == whole.mean
    with pytest.raises(ConfigError, match="less than or equal to 119"):
        load("digits", train_per_class=120)


def test_fashion_mnist_is_read_from_idx_files_and_padded(fashion_mnist):
    splits = load("fashion_mnist", fashion_mnist, train_per_class=5)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (50, 10, 40)
    assert splits.train.labels.bincount().tolist() == [5] * 10
    assert splits.validation.labels.bincount().tolist() == [1] * 10
    raw = gzip.decompress((fashion_mnist / "t10k-images-idx3-ubyte.gz").read_bytes())[16:]
    image = splits.test.images[3, 0]
    assert image.shape == (32, 32)
    assert image[2:30, 2:30].numpy().tobytes() == raw[3 * 784 : 4 * 784]
    assert image.sum() == image[2:30, 2:30].sum(), "the padding is not black"


@pytest.mark.parametrize("damage", ["cut", "not_gzip", "labels_missing"])
def test_a_broken_idx_file_is_named(fashion_mnist, damage):
    file = fashion_mnist / "train-images-idx3-ubyte.gz"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-500])
    elif damage == "not_gzip":
        file.write_bytes(b"<html>not found</html>")
    else:
        file = fashion_mnist / "train-labels-idx1-ubyte.gz"
        write_idx(file, np.zeros(7, np.uint8))
    with pytest.raises(DataError, match=file.name):
        load("fashion_mnist", fashion_mnist)


@pytest.mark.parametrize("split", ["train", "t10k"])
def test_a_label_that_no_image_has_is_named(fashion_mnist, split):
    file = fashion_mnist / f"{split}-labels-idx1-ubyte.gz"
    write_idx(file, np.minimum(fashion_mnist_module.read_idx(file), 8))
    with pytest.raises(DataError, match=f"{file.name}: no image has the label 9"):
        load("fashion_mnist", fashion_mnist)


def test_fashion_mnist_is_found_where_debian_puts_it(fashion_mnist, tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist_module, "DEBIAN_FOLDER", fashion_mnist)
    expected = load("fashion_mnist", fashion_mnist).test.images
    for data_dir in (None, tmp_path / "empty"):
        assert torch.equal(load("fashion_mnist", data_dir).test.images, expected)


def test_missing_fashion_mnist_names_all_three_places(tmp_path, monkeypatch):
    def no_network(target, download):
        raise RuntimeError("no route to host")

    monkeypatch.setattr(fashion_mnist_module, "DEBIAN_FOLDER", tmp_path / "debian")
    monkeypatch.setattr("torchvision.datasets.FashionMNIST", no_network)
    with pytest.raises(DataError) as error:
        load("fashion_mnist", tmp_path / "mine")
    for place in (f"--data-dir ({tmp_path / 'mine'})", str(tmp_path / "debian"), "torchvision"):
        assert place in str(error.value)
    assert "dataset-fashion-mnist" in str(error.value)


def test_cifar10_is_read_from_folders_and_cached(cifar10):
    first = load("cifar10", cifar10)
    assert (len(first.train), len(first.validation), len(first.test)) == (90, 10, 20)
    assert first.train.images.shape == (90, 3, 32, 32)
    green = first.test.images[:, 1].float().mean((1, 2))
    assert torch.allclose(green, first.test.labels * 20.0, atol=4), "labels do not match folders"

    (cache,) = cifar10.glob("cifar10/.msvit-cache/*.npy")
    again = load("cifar10", cifar10 / "cifar10")
    assert torch.equal(first.train.images, again.train.images)
    cache.write_bytes(cache.read_bytes()[:1000])  # cut off by a full disk, say
    repaired = load("cifar10", cifar10)
    assert torch.equal(first.train.images, repaired.train.images)


def test_a_changed_folder_is_decoded_again(cifar10):
    before = load("cifar10", cifar10)
    Image.new("RGB", (32, 32)).save(cifar10 / "cifar10" / "test" / "class3" / "new.png")
    assert len(load("cifar10", cifar10).test) == len(before.test) + 1


def _load_in_process(data_dir, queue):
    splits = load("cifar10", data_dir)
    queue.put(int(splits.train.images.sum(dtype=torch.int64)))


@pytest.mark.slow
def test_several_processes_may_decode_at_once(cifar10):
    # A forked child of a process that has used torch's threads waits for them for ever.
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    arguments = {"target": _load_in_process, "args": (cifar10, queue), "daemon": True}
    processes = [context.Process(**arguments) for _ in range(3)]
    for process in processes:
        process.start()
    sums = {queue.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert sums == {int(load("cifar10", cifar10).train.images.sum(dtype=torch.int64))}
    assert len(list(cifar10.glob("cifar10/.msvit-cache/*.npy"))) == 1


def test_cifar10_says_what_is_wrong_with_the_folders(cifar10, tmp_path):
    wrong = cifar10 / "cifar10" / "train" / "class0" / "wrong.png"
    Image.new("RGB", (30, 32)).save(wrong)
    with pytest.raises(DataError, match=r"wrong\.png: 30×32 pixels, expected 32×32"):
        load("cifar10", cifar10)
    wrong.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"wrong\.png: cannot be decoded"):
        load("cifar10", cifar10)
    wrong.unlink()
    (cifar10 / "cifar10" / "test" / "class10").mkdir()
    with pytest.raises(DataError, match=r"11 class folders, .* 10; train has no class10$"):
        load("cifar10", cifar10)
    (cifar10 / "cifar10" / "train" / "class10").mkdir()
    with pytest.raises(
        DataError, match=r"train: 11 class folders, .* 10: class0, class1, class10,"
    ):
        load("cifar10", cifar10)
    for name in ("class10", "class5"):
        shutil.rmtree(cifar10 / "cifar10" / "test" / name)
    (cifar10 / "cifar10" / "train" / "class10").rmdir()
    with pytest.raises(DataError, match=r"test: 9 class folders, .*; class5 is in train alone"):
        load("cifar10", cifar10)


def test_what_is_left_out_of_a_folder_is_told(cifar10):
    sections = [{"name": "cifar10"}, {"name": "cifar10", "train_per_class": 3}]
    root = cifar10 / "cifar10"
    (root / "train" / "Thumbs.db").write_bytes(b"")
    assert len(notes_on_data(sections, cifar10)) == 1, "only that it is not the published one"
    image = Image.new("RGB", (32, 32))
    (root / "train" / "class0" / "more").mkdir()
    for name in ("class0/more/1.png", "class1/1.bmp", "class2/1.bmp", "1.png"):
        image.save(root / "train" / name)
    _, note = notes_on_data(sections, cifar10)
    assert (
        f"{root}: not read: train/1.png, train/class0/more, train/class1/1.bmp and 1 more" in note
    )


def test_sixteen_bits_are_scaled_to_eight(cifar10):
    ramp = np.linspace(0, 65535, 1024).astype(np.uint16).reshape(32, 32)
    Image.fromarray(ramp).save(cifar10 / "cifar10" / "test" / "class9" / "zz.png")
    image = load("cifar10", cifar10).test.images[-1]
    assert torch.equal(
        image, torch.from_numpy((ramp / 257).round().astype(np.uint8)).expand(3, -1, -1)
    )


def clear(image):
    image.putalpha(128)
    return image


@pytest.mark.parametrize(
    ("image", "options", "said"),
    [
        (Image.fromarray(np.zeros((32, 32), np.int32)), {"format": "TIFF"}, "32 bits (mode I)"),
        (Image.fromarray(np.zeros((32, 32), np.float32)), {"format": "TIFF"}, "32 bits (mode F)"),
        (clear(Image.new("RGB", (32, 32))), {}, "seen through"),
        (Image.new("RGB", (32, 32)), {"transparency": (0, 0, 0)}, "seen through"),
        (Image.new("P", (32, 32)), {"transparency": 0}, "seen through"),
    ],
    ids=["I", "F", "RGBA", "RGB", "P"],
)
def test_what_eight_bits_of_colour_cannot_show_is_refused(cifar10, image, options, said):
    file = cifar10 / "cifar10" / "train" / "class0" / "odd.png"
    image.save(file, **{"format": "PNG", **options})
    with pytest.raises(DataError) as caught:
        load("cifar10", cifar10)
    assert str(file) in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_other_kinds_of_pixels_become_red_green_and_blue(cifar10, mode):
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)).convert(mode)
    name = "zz.jpg" if mode == "CMYK" else "zz.png"
    file = cifar10 / "cifar10" / "test" / "class9" / name
    image.save(file)
    expected = np.asarray(Image.open(file).convert("RGB"))
    found = load("cifar10", cifar10).test.images[-1]
    assert np.array_equal(found.permute(1, 2, 0).numpy(), expected)


def test_what_is_no_image_is_not_read(cifar10):
    before = load("cifar10", cifar10)
    root = cifar10 / "cifar10"
    for name in ("__MACOSX", "lost+found", "@eaDir", "$RECYCLE.BIN", ".hidden"):
        (root / "train" / name).mkdir()
    (root / "train" / "class0" / "._0000.jpg").write_bytes(b"Mac")
    (root / "train" / "class0" / "folder.png").mkdir()
    (root / "test" / "class0" / "notes.txt").write_text("no image")
    after = load("cifar10", cifar10)
    assert torch.equal(after.train.images, before.train.images)
    assert after.fingerprint == before.fingerprint


def png(width: int, height: int) -> bytes:
    """A PNG that says to be of this size, and holds next to nothing."""

    def chunk(kind, content):
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = {b"IHDR": header, b"IDAT": zlib.compress(b"\0"), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts.items())


@pytest.mark.parametrize(
    ("make", "name", "said"),
    [
        (lambda path: path.symlink_to("nowhere.png"), "dangling.png", "a link to nothing"),
        (lambda path: path.symlink_to(path.name), "loop.png", "a link to nothing, or to itself"),
        (lambda path: path.write_bytes(png(32, 32)), os.fsdecode(b"caf\xe9.png"), "not UTF-8"),
        (lambda path: path.write_bytes(png(10_000, 10_000)), "large.png", "10000×10000 pixels"),
        (lambda path: path.write_bytes(png(60_000, 60_000)), "bomb.png", "bomb"),
        (lambda path: path.write_bytes(png(32, 32)), "cut.png", "cannot be decoded"),
        (lambda path: path.write_bytes(b""), "empty.png", "cannot be decoded"),
    ],
    ids=["dangling", "loop", "name", "large", "bomb", "cut", "empty"],
)
@pytest.mark.filterwarnings("error")
def test_a_file_that_cannot_be_read_is_named_in_one_line(cifar10, make, name, said):
    path = cifar10 / "cifar10" / "train" / "class0" / name
    make(path)
    with pytest.raises(DataError) as caught:
        load("cifar10", cifar10)
    shown = str(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    assert shown in str(caught.value)
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    str(caught.value).encode()


def test_a_class_of_one_image_is_named_before_training(cifar10, fashion_mnist):
    folder = cifar10 / "cifar10" / "train" / "class3"
    for file in sorted(folder.iterdir())[1:]:
        file.unlink()
    options = data_options("cifar10", {}, "test")
    for look in (options.check, options.load):
        with pytest.raises(DataError, match=f"{folder}: 1 .jpg or .png file; one to train on"):
            look(cifar10)
    labels = np.repeat(np.arange(10, dtype=np.uint8), 20)
    labels[labels == 7] = 6
    labels[0] = 7
    write_idx(fashion_mnist / "train-labels-idx1-ubyte.gz", labels)
    with pytest.raises(DataError, match="class 7: 1 images to train on and to hold out"):
        load("fashion_mnist", fashion_mnist)


def test_more_images_than_a_class_has_are_not_asked_for(cifar10):
    with pytest.raises(DataError, match="class class0: train_per_class 10 of 9 images"):
        load("cifar10", cifar10, train_per_class=10)


def test_a_fingerprint_knows_images_labels_and_shapes():
    images = np.arange(24, dtype=np.uint8).reshape(2, 1, 3, 4)

    def digest(images=images, labels=(0, 1), split="train"):
        return fingerprint({split: (images, np.array(labels))})["digest"]

    # Counts per class are the same where two images have changed their labels.
    others = [
        digest(labels=(1, 0)),
        digest(images[::-1]),
        digest(images.reshape(2, 1, 4, 3)),
        digest(split="test"),
    ]
    assert len({digest(), *others}) == 5
    assert digest(labels=np.array([0, 1], np.int32)) == digest()


def test_sixteen_bits_are_scaled_to_eight_by_rounding(tmp_path):
    sixteen = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(sixteen).save(tmp_path / "grey.png")
    with Image.open(tmp_path / "grey.png") as image:
        eight = np.asarray(red_green_blue(image))
    assert (eight == np.rint(sixteen / 257)[..., None]).all()  # 257 · 255 is white


@pytest.mark.parametrize(
    ("pixels", "clear", "refused"),
    [
        (np.full((4, 4), 500, np.uint16), 500, True),
        (np.full((4, 4), 500, np.uint16), 501, False),
        (np.full((4, 4), 50, np.uint8), 50, True),
        (np.full((4, 4), 50, np.uint8), 51, False),
    ],
)
def test_a_grey_that_is_clear_is_seen_through_at_any_depth(pixels, clear, refused, tmp_path):
    Image.fromarray(pixels).save(tmp_path / "grey.png", transparency=clear)
    with Image.open(tmp_path / "grey.png") as image:
        if refused:
            with pytest.raises(DataError, match="can be seen through"):
                red_green_blue(image)
        else:
            red_green_blue(image)


def test_a_clear_colour_of_sixteen_bits_is_seen_through(tmp_path):
    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    colour = struct.pack(">HHH", 0x1234, 0x5678, 0x9ABC)
    parts = {
        b"IHDR": struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0),
        b"tRNS": colour,
        b"IDAT": zlib.compress(b"\0" + colour + b"\xff" * 6),
        b"IEND": b"",
    }
    path = tmp_path / "colours.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts.items()))
    with Image.open(path) as image, pytest.raises(DataError, match="can be seen through"):
        red_green_blue(image)


def test_a_fingerprint_tells_the_images_of_one_folder_from_others(cifar10, monkeypatch):
    options = data_options("cifar10", {}, "test")
    first = options.fingerprint(cifar10)
    assert first["counts"] == {"train": [10] * 10, "test": [2] * 10}
    assert load("cifar10", cifar10, train_per_class=3).fingerprint == first
    with monkeypatch.context() as patched:
        patched.setattr(decoded_module, "_decode", None)
        assert options.fingerprint(cifar10) == first  # from the cache
    Image.new("RGB", (32, 32)).save(cifar10 / "cifar10" / "test" / "class3" / "0001.png")
    other = options.fingerprint(cifar10)
    assert other["counts"] == first["counts"]
    assert other["digest"] != first["digest"]
    assert options.fingerprint(None) is None


def plain_folders(root, shade):
    """Files of one size and one time of change, whatever the ``shade`` of their images."""
    for split, count in (("train", 2), ("test", 1)):
        for file in (f"class{label}/{i}.png" for label in range(10) for i in range(count)):
            path = root / split / file
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (shade,) * 3).save(path, compress_level=0)
            os.utime(path, ns=(0, 0))
    return root


@pytest.mark.parametrize("same", ["place in the cache", "folder"])
def test_images_of_the_same_size_and_time_are_not_taken_for_others(tmp_path, monkeypatch, same):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = plain_folders(tmp_path / "first", 10)
    second = plain_folders(tmp_path / "second", 20) if same != "folder" else first
    for folder in {first, second}:
        (folder / ".msvit-cache").write_text("no folder can be made here")
    before = load("cifar10", first)
    if same == "folder":
        plain_folders(first, 20)
    after = load("cifar10", second)
    assert (int(before.test.images.max()), int(after.test.images.max())) == (10, 20)
    found = data_options("cifar10", {}, "test").fingerprint(second)
    assert found == after.fingerprint != before.fingerprint
    caches = list((tmp_path / "cache").rglob("*.npy"))
    assert len(caches) == 2, "one for each, or the other has been decoded again"


def test_fashion_mnist_and_digits_have_fingerprints_of_their_own(fashion_mnist):
    splits = load("fashion_mnist", fashion_mnist)
    found = data_options("fashion_mnist", {"train_per_class": 3}, "test").fingerprint(fashion_mnist)
    assert splits.fingerprint == found
    assert found["counts"] == {"train": [20] * 10, "test": [4] * 10}
    digits = load("digits").fingerprint
    assert digits == load("digits", image_size=8, train_per_class=3).fingerprint
    assert sum(map(sum, digits["counts"].values())) == 1797


def test_images_under_a_published_name_are_counted(cifar10, fashion_mnist):
    sections = [{"name": "cifar10"}, {"name": "cifar10", "train_per_class": 3}, {"name": "digits"}]
    (note,) = notes_on_data(sections, cifar10)
    assert "not the published cifar10: 100 train and 20 test images" in note
    assert "50,000 train and 10,000 test images (5,000 and 1,000 a class)" in note
    (note,) = notes_on_data([{"name": "fashion_mnist"}], fashion_mnist)
    assert "200 train and 40 test images" in note
    usual = {"train": [6000] * 10, "test": [1000] * 10}
    assert DATASETS["fashion_mnist"].unlike_published(usual) is None


def test_an_epoch_holds_every_image_at_most_once_in_an_order_of_its_own():
    splits = load("digits")
    options = TrainingOptions(batch_size=100)
    loader = Loader(splits.train, options.batch_size, torch.device("cpu"))
    augment = Augmentation(options, splits.mean, loader.device)

    def epoch(seed):
        random = torch.Generator().manual_seed(seed)
        return torch.cat([b.images for b in train_batches(loader, options, augment, random)])

    first, again, other = epoch(1), epoch(1), epoch(2)
    assert len(first) == 1200
    assert len(rows(first)) == 1200
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    seen = torch.cat(
        [batch.images for batch in Loader(splits.test, 64, torch.device("cpu")).batches()]
    )
    assert torch.equal(seen, splits.test.images)


def test_augmentation_moves_and_mirrors_each_image_as_a_whole():
    random = torch.Generator().manual_seed(0)
    images = torch.randint(1, 256, (400, 3, 6, 6), generator=random, dtype=torch.uint8)
    moved = mirror_and_shift(images, hflip=True, shift=1, random=random)
    assert moved.shape == images.shape

    found = set()
    for image, result in zip(images, moved, strict=True):
        padded = torch.nn.functional.pad(image, (1, 1, 1, 1))
        matches = [
            (mirrored, dy, dx)
            for mirrored, source in ((False, padded), (True, padded.flip(-1)))
            for dy in range(3)
            for dx in range(3)
            if torch.equal(source[:, dy : dy + 6, dx : dx + 6], result)
        ]
        assert len(matches) == 1
        found.update(matches)
    assert len(found) == 18, "some of the 2·3·3 ways never occur"
