"""Tiny data sets of images in the forms in which real ones come."""

import io
import pickle
import tarfile

import numpy as np
from PIL import Image


def pixels(count, size, seed=0):
    """uint8 ``[count, size, size, 3]``, all different."""
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)


def encoded(image, form="PNG"):
    """The bytes of a file that holds ``image``; as PNG they hold it exactly."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, form)
    return file.getvalue()


def class_folders(root, images, labels, split, suffix="png"):
    """``root/split/class_<label>/<number>.png``."""
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = root / split / f"class_{label:03}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:05}.{suffix}").write_bytes(encoded(image))


def cifar_batch(file, images, labels, key):
    """As the author has pickled them: rows of all red, then green, then blue."""
    rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {"batch_label": file.name, key: labels.tolist(), "data": rows}
    file.write_bytes(pickle.dumps(content, protocol=2))


def cifar10_batches(folder, train, test):
    """``train`` and ``test`` are images and labels."""
    images, labels = train
    for number, part in enumerate(np.array_split(np.arange(len(labels)), 5), start=1):
        cifar_batch(folder / f"data_batch_{number}", images[part], labels[part], "labels")
    cifar_batch(folder / "test_batch", *test, "labels")


def tar(members):
    """The bytes of a tar file of ``members``, name → bytes."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()
