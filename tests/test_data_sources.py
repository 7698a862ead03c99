"""Every form in which a data set comes: what was written is read, or a line says why not."""

import io
import json
import pickle
import shutil
import tarfile
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io
import torch
from PIL import Image
from torchvision.transforms.functional import InterpolationMode, center_crop, resize

from msvit.cells import resolve_cell
from msvit.data import (
    DATASETS,
    cifar_batches,
    data_options,
    fashion_mnist,
    image_files,
    load_splits,
    notes_on_data,
    prepare_data,
    sources_of_data,
)
from msvit.data.channel_statistics import of_array
from msvit.data.encoded import Encoded
from msvit.data.imagenet import ImageNetOptions
from msvit.data.splits import Streamed
from msvit.data.tiny_imagenet import TinyImageNetOptions
from msvit.data.views import Centre
from msvit.options import ConfigError, DataError
from tests.image_sets import (
    cifar10_batches,
    cifar_batch,
    class_folders,
    encoded,
    pixels,
    tar,
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def options(name, **values):
    return data_options(name, values, "test")


def decoded(samples):
    """Images uint8 ``[N, C, H, W]`` and labels, wherever they are."""
    if not isinstance(samples, Streamed):
        return samples.images.numpy(), samples.labels.numpy()
    images = np.empty((len(samples), *samples.shape), np.uint8)
    samples.decode(np.arange(len(samples)), images)
    return images, samples.labels.numpy()


def pairs(*splits):
    """How often each image stands with each label."""
    found = Counter()
    for samples in splits:
        for image, label in zip(*decoded(samples), strict=True):
            found[image.tobytes(), int(label)] += 1
    return found


def written(images, labels):
    planes = images.transpose(0, 3, 1, 2)
    return Counter((i.tobytes(), int(n)) for i, n in zip(planes, labels, strict=True))


def assert_read(splits, train, test):
    assert pairs(splits.train, splits.validation) == written(*train)
    assert pairs(splits.test) == written(*test)


# CIFAR


def cifar_sets():
    random = np.random.default_rng(1)
    labels = random.permutation(np.repeat(np.arange(10), 4))
    return (pixels(40, 32), labels), (
        pixels(20, 32, 1),
        random.permutation(labels[:20] * 0 + np.arange(20) % 10),
    )


@pytest.fixture
def batches(tmp_path):
    cifar10_batches(tmp_path / "data" / "cifar-10-batches-py", *cifar_sets())
    return tmp_path / "data"


def test_cifar10_is_the_same_from_batches_their_archive_and_folders(batches, tmp_path):
    train, test = cifar_sets()
    found = load_splits(options("cifar10"), batches)
    assert_read(found, train, test)
    assert found.mean == (0.4914, 0.4822, 0.4465)

    packed = tmp_path / "packed"
    packed.mkdir()
    with tarfile.open(packed / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(batches / "cifar-10-batches-py", "cifar-10-batches-py")
    folders = tmp_path / "folders"
    class_folders(folders, *train, "train")
    class_folders(folders, *test, "test")
    for place in (packed, folders, batches / "cifar-10-batches-py"):
        other = load_splits(options("cifar10"), place)
        assert other.fingerprint == found.fingerprint
        for split in ("train", "validation", "test"):
            ours, theirs = getattr(found, split), getattr(other, split)
            assert torch.equal(ours.images, theirs.images)
            assert torch.equal(ours.labels, theirs.labels)


def test_cifar100_has_its_fine_labels(tmp_path):
    images, labels = pixels(200, 32), np.arange(200) % 100
    for name, part in (("train", slice(None)), ("test", slice(0, 100))):
        cifar_batch(tmp_path / "cifar-100-python" / name, images[part], labels[part], "fine_labels")
    splits = load_splits(options("cifar100"), tmp_path)
    assert_read(splits, (images, labels), (images[:100], labels[:100]))
    (note,) = notes_on_data([{"name": "cifar100"}], tmp_path)
    assert "not the published cifar100: 200 train and 100 test images" in note
    usual = {"train": [500] * 100, "test": [100] * 100}
    assert DATASETS["cifar100"].unlike_published(usual) is None


def test_cifar_that_is_not_there_is_downloaded_or_missed(tmp_path, monkeypatch):
    monkeypatch.setattr(
        cifar_batches,
        "_download",
        lambda kind, target: cifar10_batches(target / kind.folder, *cifar_sets()),
    )
    place = tmp_path / "empty"
    assert options("cifar10").fingerprint(place) is None
    (line,) = sources_of_data([{"name": "cifar10"}], place)
    assert line == f"cifar10: to be downloaded to {place}, not counted yet"
    assert not place.exists(), "a look downloads nothing"
    assert len(load_splits(options("cifar10"), place).test) == 20

    def no_network(kind, target):
        raise OSError("no route to host")

    monkeypatch.setattr(cifar_batches, "_download", no_network)
    with pytest.raises(DataError, match=r"CIFAR-100 is not there: .*cifar-100-python.*no route"):
        options("cifar100").check(place)
    (place / "train").mkdir()
    shutil.rmtree(place / "cifar-10-batches-py")
    with pytest.raises(DataError, match="test: cannot be read"):
        options("cifar10").check(place)


class Harm:
    def __reduce__(self):
        return (print, ("harm",))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"no pickle", "no batch of CIFAR-10"),
        (pickle.dumps({"data": np.zeros((4, 3072), np.uint8)}, 2), "it has no 'labels'"),
        (pickle.dumps({"data": np.zeros((4, 99), np.uint8), "labels": [0] * 4}, 2), "(4, 99)"),
        (pickle.dumps({"data": np.zeros((4, 3072), np.uint8), "labels": [0] * 3}, 2), "3 labels"),
        (pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [10]}, 2), "label 10"),
        (pickle.dumps({"data": Harm()}, 2), "it asks for __builtin__.print"),
    ],
)
def test_a_broken_batch_is_named(batches, content, said, capsys):
    file = batches / "cifar-10-batches-py" / "data_batch_3"
    file.write_bytes(content)
    with pytest.raises(DataError) as caught:
        options("cifar10").check(batches)
    assert str(file) in str(caught.value)
    assert said in str(caught.value)
    assert capsys.readouterr().out == ""


def test_a_broken_archive_is_named(batches):
    shutil.rmtree(batches / "cifar-10-batches-py")
    archive = batches / "cifar-10-python.tar.gz"
    for content in (b"\x1f\x8b\x08 and no more", b"nothing that is packed" * 99):
        archive.write_bytes(content)
        with pytest.raises(DataError, match=f"{archive}: cannot be unpacked") as caught:
            options("cifar10").check(batches)
        assert len(str(caught.value).splitlines()) == 1


def test_annotations_that_lack_are_named(tmp_path):
    for folder in ("train/n01/images", "val/images"):
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(DataError, match=r"val/val_annotations\.txt: not there"):
        options("tiny_imagenet").check(tmp_path)
    with pytest.raises(DataError, match=r"train-\*\.parquet"):
        options("tiny_imagenet").check(tmp_path / "train")


def test_one_missing_batch_is_named_and_nothing_downloaded(batches, monkeypatch):
    monkeypatch.setattr(cifar_batches, "_download", lambda kind, target: pytest.fail("downloaded"))
    (batches / "cifar-10-batches-py/data_batch_4").unlink()
    for look in (options("cifar10").check, options("cifar10").source):
        with pytest.raises(DataError, match=r"batches-py: it has no data_batch_4 of CIFAR-10$"):
            look(batches)


def test_a_set_that_no_network_brings_is_missed_in_one_line(tmp_path, monkeypatch):
    def no_network(*where):
        raise OSError("error downloading:\nTried one place\nTried another")

    monkeypatch.setattr(cifar_batches, "_download", no_network)
    monkeypatch.setattr(fashion_mnist, "_download", no_network)
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "none")
    for name in ("cifar100", "fashion_mnist"):
        with pytest.raises(DataError, match=r"could not download it .*Tried another") as caught:
            options(name).check(tmp_path / "data")
        assert len(str(caught.value).splitlines()) == 1


# Folders of one's own


@pytest.fixture
def own(tmp_path):
    """Three classes of images of several sizes, with a validation split."""
    for split, count in (("train", 5), ("val", 2), ("test", 3)):
        for label in range(3):
            folder = tmp_path / "own" / split / f"kind{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                image = pixels(1, 48, 100 * label + i + len(split))[0][: 30 + 4 * i]
                Image.fromarray(image).save(folder / f"{i}.jpg")
    return tmp_path / "own"


def small(**values):
    return options("image_folder", **{"num_classes": 3, "image_size": 16, **values})


def test_folders_of_ones_own_are_resized_and_measured(own):
    splits = load_splits(small(), own)
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [15, 6, 9]
    assert splits.fingerprint["counts"] == {"train": [5] * 3, "val": [2] * 3, "test": [3] * 3}
    image = Image.open(own / "test" / "kind0" / "2.jpg")
    plain = center_crop(resize(image, [16], InterpolationMode.BICUBIC), [16, 16])
    assert np.array_equal(decoded(splits.test)[0][2].transpose(1, 2, 0), np.asarray(plain))
    scaled = splits.train.images.double() / 255
    assert splits.mean == pytest.approx(scaled.mean((0, 2, 3)).tolist(), abs=1e-4)
    deviation = scaled.std((0, 2, 3), correction=0)
    assert splits.std == pytest.approx(deviation.tolist(), abs=1e-4)
    fewer = load_splits(small(train_per_class=2), own)
    assert len(fewer.train) == 6
    assert (fewer.mean, fewer.fingerprint) == (splits.mean, splits.fingerprint)
    with pytest.raises(DataError, match="class kind0: train_per_class 6 of 5 images"):
        load_splits(small(train_per_class=6), own)


def test_without_a_test_the_validation_images_are_reported(own):
    shutil.rmtree(own / "test")
    splits = load_splits(small(), own)
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [12, 3, 6]


def test_large_sets_stream_the_same_pixels(own, monkeypatch):
    kept = load_splits(small(), own)
    (decoded_once,) = (own / ".msvit-cache").glob("*.npy")
    monkeypatch.setattr(image_files, "MEMORY_BYTES", 0)
    decoded_once.unlink()
    streamed = load_splits(small(), own)
    for split in ("train", "validation", "test"):
        ours, theirs = decoded(getattr(kept, split)), decoded(getattr(streamed, split))
        assert all(map(np.array_equal, ours, theirs))
    assert (streamed.mean, streamed.std) == (kept.mean, kept.std)
    assert streamed.fingerprint["counts"] == kept.fingerprint["counts"]
    assert options("image_folder", num_classes=3, image_size=16).fingerprint(own) == (
        streamed.fingerprint
    )
    assert not list((own / ".msvit-cache").glob("*.npy"))
    (statistics,) = (own / ".msvit-cache").glob("statistics-*.json")
    statistics.write_text(json.dumps({"mean": [0.1] * 3, "std": [0.2] * 3}))
    assert load_splits(small(), own).mean == (0.1,) * 3, "measured once"


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_broken_file_of_a_set_that_streams_is_named_before_training(own, monkeypatch, suffix):
    monkeypatch.setattr(image_files, "MEMORY_BYTES", 0)
    file = own / "val" / "kind1" / f"x.{suffix}"
    Image.fromarray(pixels(1, 64)[0]).save(file)
    file.write_bytes(file.read_bytes() + b"and more that some camera has put there")
    small().prepare(own)
    cut(file)
    with pytest.raises(DataError, match=rf"{file}: cannot be decoded \(.*truncated"):
        small().prepare(own)
    file.write_bytes(b"")
    with pytest.raises(DataError, match=rf"{file}: cannot be decoded"):
        small().prepare(own)
    file.unlink()
    small().prepare(own)
    monkeypatch.setattr(Encoded, "check", None)
    small().prepare(own)  # looked through once


def test_a_wrong_number_of_classes_is_told_with_the_right_one(own):
    with pytest.raises(DataError, match=r"train: 3 class folders, data\.num_classes is 10: kind0"):
        options("image_folder").check(own)
    with pytest.raises(DataError, match="needs --data-dir"):
        options("image_folder").check(None)
    cell = {"model": {"name": "msvit", "num_classes": 2}, "data": {"name": "image_folder"}}
    with pytest.raises(ConfigError, match="the data set has 10 classes"):
        resolve_cell(cell, "test")


def test_what_is_decoded_once_is_decoded_before_the_cells(own):
    sections = [{"name": "image_folder", "num_classes": 3, "image_size": 16}]
    assert sources_of_data(sections, own) == [
        f"image_folder: class folders in {own}, 15 train and 6 val and 9 test images"
    ]
    assert not (own / ".msvit-cache").exists()
    prepare_data([*sections, {"name": "digits"}], own)
    assert list((own / ".msvit-cache").glob("*.npy"))


@pytest.mark.parametrize("size", [(31, 57), (57, 31), (20, 20), (224, 225)])
@pytest.mark.parametrize("ratio", [1.0, 0.875])
def test_the_middle_of_an_image_is_torchvisions(size, ratio):
    image = Image.fromarray(pixels(1, 240)[0][: size[1], : size[0]])
    plain = resize(image, [int(16 / ratio)], InterpolationMode.BICUBIC)
    found = Centre(16, ratio)(image, ())
    assert np.array_equal(np.asarray(found), np.asarray(center_crop(plain, [16, 16])))


# ImageNet and Tiny-ImageNet, with three classes


@pytest.fixture(autouse=True)
def three_classes(monkeypatch):
    for kind in (ImageNetOptions, TinyImageNetOptions):
        monkeypatch.setattr(kind, "num_classes", 3)


SYNSETS = ("n01440764", "n02084071", "n09999999")


def imagenet_sets():
    return (pixels(12, 40), np.repeat([0, 1, 2], 4)), (
        pixels(6, 40, 5),
        np.array([2, 0, 1, 1, 2, 0]),
    )


def shown(images):
    """What the middle of an ImageNet image of this project's tests is at 32 pixels."""
    plain = (Centre(32, 224 / 256)(Image.fromarray(image), ()) for image in images)
    return np.stack([np.asarray(image) for image in plain])


def assert_imagenet(data_dir):
    (train, train_labels), (test, test_labels) = imagenet_sets()
    splits = load_splits(options("imagenet", image_size=32), data_dir)
    assert isinstance(splits.train, Streamed)
    assert_read(splits, (shown(train), train_labels), (shown(test), test_labels))
    return splits


@pytest.fixture
def archives(tmp_path):
    """ILSVRC 2012 as it comes: a tar of tars, a tar, and the development kit."""
    root = tmp_path / "archives"
    root.mkdir()
    (train, train_labels), (test, test_labels) = imagenet_sets()
    classes = {}
    for label, synset in enumerate(SYNSETS):
        chosen = enumerate(train[train_labels == label])
        classes[f"{synset}.tar"] = tar({f"{synset}_{i}.JPEG": encoded(x) for i, x in chosen})
    (root / "ILSVRC2012_img_train.tar").write_bytes(tar(classes))
    names = (f"ILSVRC2012_val_{i:08}.JPEG" for i in range(1, len(test) + 1))
    images = dict(zip(names, map(encoded, test), strict=True))
    (root / "ILSVRC2012_img_val.tar").write_bytes(tar(dict(reversed(images.items()))))

    numbers = (2, 3, 1)  # of the synsets, in no order of theirs; number 4 has them below it
    kinds = [("ILSVRC2012_ID", "f8"), ("WNID", object), ("num_children", "f8")]
    rows = [*((n, s, 0) for n, s in zip(numbers, SYNSETS, strict=True)), (4, "n00001740", 3)]
    meta = io.BytesIO()
    scipy.io.savemat(meta, {"synsets": np.array(rows, kinds)})
    truth = "".join(f"{numbers[label]}\n" for label in test_labels)
    with tarfile.open(root / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as kit:
        files = {
            "meta.mat": meta.getvalue(),
            "ILSVRC2012_validation_ground_truth.txt": truth.encode(),
        }
        for name, content in files.items():
            member = tarfile.TarInfo(f"ILSVRC2012_devkit_t12/data/{name}")
            member.size = len(content)
            kit.addfile(member, io.BytesIO(content))
    return root


def test_imagenet_is_read_from_its_archives_where_they_are(archives):
    sections = [{"name": "imagenet"}]
    (line,) = sources_of_data(sections, archives)
    assert line == f"imagenet: ILSVRC tar files in {archives}, not counted yet"
    first = assert_imagenet(archives)
    assert "12 train and 6 val images" in sources_of_data(sections, archives)[0]
    again = load_splits(options("imagenet", image_size=32), archives)  # by the index
    assert again.fingerprint == first.fingerprint
    assert pairs(again.train) == pairs(first.train)
    (note,) = notes_on_data(sections, archives)
    assert "not the published imagenet: 12 train and 6 val images were found" in note

    (archives / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    labels = "".join(f"{SYNSETS[label]}\n" for label in imagenet_sets()[1][1])
    (archives / "imagenet_2012_validation_synset_labels.txt").write_text(labels)
    assert assert_imagenet(archives).fingerprint == first.fingerprint


def test_imagenet_in_folders_has_the_fingerprint_of_its_archives(archives, tmp_path):
    (_, _), (test, test_labels) = imagenet_sets()
    root = tmp_path / "unpacked" / "imagenet"
    with tarfile.open(archives / "ILSVRC2012_img_train.tar") as outer:
        for member in outer:
            with tarfile.open(fileobj=outer.extractfile(member)) as inner:
                inner.extractall(root / "train" / member.name[:-4], filter="data")
    for i, label in enumerate(test_labels, start=1):
        folder = root / "val" / SYNSETS[label]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"ILSVRC2012_val_{i:08}.JPEG").write_bytes(encoded(test[i - 1]))
    splits = assert_imagenet(tmp_path / "unpacked")
    assert splits.fingerprint == options("imagenet").fingerprint(archives)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda root: cut(root / "ILSVRC2012_img_train.tar"), "img_train.tar: "),
        (lambda root: cut(root / "ILSVRC2012_img_val.tar"), "img_val.tar: "),
        (lambda root: (root / "ILSVRC2012_img_val.tar").unlink(), "img_val.tar: not there"),
        (
            lambda root: (root / "ILSVRC2012_devkit_t12.tar.gz").unlink(),
            "neither ILSVRC2012_devkit",
        ),
        (lambda root: cut(root / "ILSVRC2012_devkit_t12.tar.gz"), "devkit_t12.tar.gz: cannot be"),
        (
            lambda root: (root / "imagenet_2012_validation_synset_labels.txt").write_text("n1\n"),
            "6 images, and 1 labels",
        ),
    ],
)
def test_half_of_imagenet_is_told(archives, spoil, said):
    spoil(archives)

    def read():
        options("imagenet").check(archives)
        options("imagenet").load(archives)

    with pytest.raises(DataError) as caught:
        read()
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_imagenet_is_tested_at_a_size_of_its_own_by_models_that_can(archives):
    splits = load_splits(options("imagenet", image_size=32, test_image_size=48), archives)
    assert (splits.train.shape, splits.validation.shape) == ((3, 32, 32),) * 2
    assert splits.test.shape == (3, 48, 48)
    data = {"name": "imagenet", "image_size": 224, "test_image_size": 288}
    assert resolve_cell({"model": {"name": "msvit_10_384"}, "data": data}, "test").data == {
        **data,
        "train_per_class": None,
    }
    with pytest.raises(ConfigError, match=r"data\.test_image_size: 290 is no multiple"):
        resolve_cell(
            {"model": {"name": "msvit_10_384"}, "data": {**data, "test_image_size": 290}}, "test"
        )
    vit = {"name": "vit", "patch_size": 16}
    with pytest.raises(ConfigError, match=r"data\.test_image_size: this model takes 224 pixels"):
        resolve_cell({"model": vit, "data": data}, "test")
    with pytest.raises(ConfigError, match="have the image_size anyway"):
        options("imagenet", test_image_size=224)


@pytest.fixture
def tiny_imagenet(tmp_path):
    root = tmp_path / "tiny" / "tiny-imagenet-200"
    train, val = pixels(6, 64), pixels(3, 64, 1)
    for i, image in enumerate(train):
        folder = root / "train" / SYNSETS[i % 3] / "images"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{SYNSETS[i % 3]}_{i}.JPEG").write_bytes(encoded(image))
    (root / "val" / "images").mkdir(parents=True)
    lines = []
    for i, image in enumerate(val):
        (root / "val" / "images" / f"val_{i}.JPEG").write_bytes(encoded(image))
        lines.append(f"val_{i}.JPEG\t{SYNSETS[2 - i]}\t0\t0\t62\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("".join(f"{s}\n" for s in reversed(SYNSETS)))
    (root / "test" / "images").mkdir(parents=True)
    return root


def test_tiny_imagenet_is_read_as_its_archive_unpacks(tiny_imagenet):
    splits = load_splits(options("tiny_imagenet"), tiny_imagenet.parent)
    train, val = pixels(6, 64), pixels(3, 64, 1)
    assert_read(splits, (train, np.arange(6) % 3), (val, np.array([2, 1, 0])))
    assert splits.mean == of_array(train.transpose(0, 3, 1, 2))[0]


def test_what_tiny_imagenet_lacks_is_named(tiny_imagenet):
    annotations = tiny_imagenet / "val" / "val_annotations.txt"
    whole = annotations.read_text()
    image = tiny_imagenet / "val" / "images" / "val_1.JPEG"
    image.rename(tiny_imagenet / "away")
    with pytest.raises(DataError, match=f"{image}: no such file"):
        options("tiny_imagenet").check(tiny_imagenet)
    annotations.write_text(whole.replace(SYNSETS[2], "n0"))
    with pytest.raises(DataError, match="line 1: 'n0' is no class"):
        options("tiny_imagenet").check(tiny_imagenet)
    annotations.write_text("".join(whole.splitlines(keepends=True)[1:]))
    with pytest.raises(DataError, match=f"no image of the class {SYNSETS[2]}"):
        options("tiny_imagenet").check(tiny_imagenet)
    with pytest.raises(DataError, match="needs --data-dir"):
        options("tiny_imagenet").check(None)


# Parquet


def parquet(file, images, labels, image="image", label="label"):
    rows = [{"bytes": encoded(x), "path": f"{i}.png"} for i, x in enumerate(images)]
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({image: rows, label: pa.array(labels)}), file, row_group_size=2)


def test_parquet_files_are_read(tmp_path):
    train, labels = pixels(9, 16), np.array([2, 0, 1, 1, 2, 0, 0, 1, 2])
    for number, part in enumerate((slice(0, 5), slice(5, 9))):
        name = f"train-{number:05}-of-00002.parquet"
        parquet(tmp_path / "data" / name, train[part], labels[part])
    test = pixels(3, 16, 1), np.array([1, 2, 0])
    parquet(tmp_path / "data" / "validation-00000-of-00001.parquet", *test)
    parquet(tmp_path / "data" / "test-00000-of-00001.parquet", test[0], np.full(3, -1))
    splits = load_splits(small(), tmp_path)
    assert_read(splits, (train, labels), test)
    shutil.rmtree(tmp_path / "data" / ".msvit-cache")
    (tmp_path / "data" / ".msvit-cache").write_text("no folder can be made here")
    again = load_splits(small(), tmp_path / "data")
    assert again.fingerprint == splits.fingerprint
    assert list((tmp_path / "cache" / "msvit").glob("unpacked-*.images"))
    assert sources_of_data([{"name": "image_folder", "num_classes": 3}], tmp_path) == [
        f"image_folder: Parquet files in {tmp_path / 'data'}, 9 train and 3 val images"
    ]


def test_imagenet_is_read_from_parquet(tmp_path):
    train, test = imagenet_sets()
    parquet(tmp_path / "train-00000-of-00001.parquet", *train)
    parquet(tmp_path / "validation-00000-of-00001.parquet", *test)
    assert_imagenet(tmp_path)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda file: file.write_bytes(b"PAR1 and no more"), "cannot be read"),
        (lambda file: pq.write_table(pa.table({"label": [0, 1, 2]}), file), "no column image or"),
        (lambda file: parquet(file, pixels(2, 16), [0, 1], label="class"), "no column label or"),
        (lambda file: parquet(file, pixels(2, 16), ["a", "b"]), "the column label is string"),
        (lambda file: parquet(file, pixels(2, 16), [0, -1]), "label -1 in the split test"),
        (lambda file: parquet(file, pixels(2, 16), [0, 1]), "no test image has the label 2"),
        (lambda file: parquet(file, pixels(4, 16), range(4)), "4 classes, data.num_classes is 3"),
        (
            lambda file: pq.write_table(pa.table({"label": [0, 1, 2], "image": [1, 2, 3]}), file),
            "the column image is int64, and a struct",
        ),
    ],
)
def test_parquet_files_with_something_else_are_named(tmp_path, write, said):
    parquet(tmp_path / "train-00000-of-00001.parquet", pixels(6, 16), np.arange(6) % 3)
    write(tmp_path / "test-00000-of-00001.parquet")
    with pytest.raises(DataError) as caught:
        small().load(tmp_path)
    assert said in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
