"""What the command measures: a network by its name or file, on images of a data set or folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from msvit.cells import Cell
from msvit.checkpoints import load_official
from msvit.data import DATASETS, data_options, load_splits, options_of
from msvit.models import create_model, zoo
from msvit.models.base import Model
from msvit.options import ConfigError, DataError, unknown
from msvit.precision import choose_precision
from msvit.recipes import TrainingOptions
from msvit.records.store import read_record
from msvit.training.batches import Normalise, time_first
from msvit.training.cell import as_scored
from msvit.training.loading import Loader
from msvit.training.trained import Prepare, PrepareEvents, load_trained

_BATCH = 16
_SUFFIXES = {".jpg", ".jpeg", ".png"}
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and deviation of ImageNet's pixels, as everybody normalises by."""


@dataclass(frozen=True)
class Network:
    """A model in eval mode, what it is; if trained here, as which cell and on what images."""

    model: Model
    what: str
    prepare: Prepare | None = None
    cell: Cell | None = None
    events: bool = False
    """Whether it is for frames of events."""
    precision: str = "fp32"
    """That a cell was tested in, as ``training.precision`` names it."""


@dataclass(frozen=True)
class Seen:
    """Normalised batches ``[B, C, H, W]``, and what they are of."""

    batches: Sequence[Tensor]
    what: str


def network_of(name: str, weights: Path | None) -> Network:
    """A name of the zoo, with random weights or those of a checkpoint, or a trained cell.

    Raises:
        ConfigError: for a name that is none.
        CheckpointError: for weights that cannot be used.
    """
    if name in zoo():
        torch.manual_seed(0)
        model = create_model(name).eval()
        data = DATASETS.get(name.rpartition("_")[2])  # entries that are for one end in its name
        events = data is not None and data.events
        if weights is None:
            return Network(model, f"{name} with random weights", events=events)
        load_official(model, weights)
        return Network(model, f"{name} with the weights of {weights}", events=events)
    if not Path(name).exists():
        raise ConfigError(name, "", unknown(name, zoo(), "no such file, and no model of the zoo"))
    if weights is not None:
        raise ConfigError(f"--weights {weights}", "", f"{name} has weights of its own")
    trained = load_trained(name)
    assert isinstance(trained, Model)
    prepare, precision = trained.prepare, _precision(Path(name), trained.cell)
    return Network(
        trained,
        f"the cell of {name} in {precision}",
        prepare if callable(prepare) else None,
        trained.cell if isinstance(trained.cell, Cell) else None,
        events=isinstance(prepare, PrepareEvents),
        precision=precision,
    )


def _precision(place: Path, cell: Any) -> str:
    """What the record of a cell says; without one, what its training would be here."""
    folder = (place if place.is_dir() else place.parent).resolve()
    record = read_record(folder.parent.parent, folder.name)
    if record is not None:
        return record["precision"].split()[0]
    return choose_precision(cell.training.get("precision", "auto"), torch.device("cpu")).name


def images_of(
    network: Network, data: str | None, folder: Path | None, data_dir: Path | None, most: int
) -> Seen | None:
    """Images to measure on, ``most`` of them evenly over all; None where none are given.

    Raises:
        ConfigError: for an unknown data set, both, and images of a folder for a network of events.
        DataError: where images are missing, or not of the size that the network takes.
    """
    if data is not None and folder is not None:
        raise ConfigError("--images", "", "--data names the images already")
    if folder is not None and network.events:
        takes = "frames of events, and a folder has images"
        names = ", ".join(name for name, options in DATASETS.items() if options.events)
        raise ConfigError(
            "--images", "", f"{network.what} takes {takes}: --data has them ({names})"
        )
    if data is not None:
        return _of_data_set(network, data, data_dir, most)
    return _of_folder(network, folder, most) if folder is not None else None


def _of_data_set(network: Network, name: str, data_dir: Path | None, most: int) -> Seen:
    wanted, cell = network.model.options, network.cell
    options = data_options(name, {}, "--data")
    if cell is not None and cell.data["name"] == name:
        options = options_of(cell.data)
    elif "image_size" in type(options).model_fields:
        options = data_options(name, {"image_size": wanted.image_size}, "--data")
    splits = load_splits(options, data_dir)
    test = splits.test
    if cell is not None:
        test = as_scored(test, TrainingOptions.parse(cell.training, "training"))
    takes = (wanted.in_channels, wanted.image_size, wanted.image_size)
    cpu = torch.device("cpu")
    loader, normalise = Loader(test, _BATCH, cpu), Normalise(splits.mean, splits.std, cpu)
    chosen = torch.as_tensor(_spread(len(test), most))
    batches = [time_first(normalise(part.images)) for part in loader.batches(chosen)]
    found = tuple(batches[0].shape[-3:])
    if found != takes:
        raise DataError(f"images of {name} are {found}, and {network.what} takes {takes}")
    return Seen(batches, f"{len(chosen)} of {len(test)} test images of {name}")


def _of_folder(network: Network, folder: Path, most: int) -> Seen:
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not files:
        raise DataError(f"{folder}: no images (.png, .jpg)")
    chosen = [files[i] for i in _spread(len(files), most)]
    batches = [torch.stack(part) for part in _by(_BATCH, [_read(f, network) for f in chosen])]
    how = (
        "as it was trained"
        if network.prepare
        else ("resized to 8/7 of what the network takes, its centre, normalised as ImageNet")
    )
    return Seen(batches, f"{len(chosen)} of {len(files)} images of {folder}, {how}")


def _read(file: Path, network: Network) -> Tensor:
    """``[C, H, W]``, normalised."""
    options = network.model.options
    try:
        with Image.open(file) as image:
            if network.prepare is not None:
                return network.prepare(image)[0]
            picture = image.convert("L" if options.in_channels == 1 else "RGB")
    except (OSError, UnidentifiedImageError, ValueError) as error:
        raise DataError(f"{file}: {error}") from None
    size = options.image_size
    scale = size * 8 / 7 / min(picture.size)
    picture = picture.resize([max(size, round(side * scale)) for side in picture.size])
    left, top = ((side - size) // 2 for side in picture.size)
    pixels = np.asarray(picture.crop((left, top, left + size, top + size)), dtype=np.float32) / 255
    mean, std = IMAGENET if pixels.ndim == 3 else ((0.5,), (0.5,))
    channels = torch.from_numpy(pixels.reshape(size, size, -1)).permute(2, 0, 1)
    return (channels - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)


def _spread(there: int, most: int) -> list[int]:
    """Places of ``most`` of ``there`` things, evenly over all."""
    return np.linspace(0, there - 1, min(there, most)).round().astype(int).tolist()


def _by(size: int, things: list[Tensor]) -> Iterator[list[Tensor]]:
    for start in range(0, len(things), size):
        yield things[start : start + size]
