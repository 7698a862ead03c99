"""What a training leaves to be used: ``weights.safetensors``, and a model made of it.

The file says which cell it is of, all its options, and how its images were normalised, so that it
can be used without anything beside it. Cells of earlier versions have their best weights in
``checkpoint.pt``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from msvit.cells import Cell, canonical_json, without_effect
from msvit.checkpoints import CheckpointError
from msvit.data import DATASETS, load_splits, options_of
from msvit.data.decoding import can_be_seen_through
from msvit.files import replace_file
from msvit.models import create_model, zoo
from msvit.records.store import WEIGHTS, cell_folder, read_record
from msvit.state_dicts import read_checkpoint
from msvit.training.batches import Normalise, time_first
from msvit.training.health import TrainingDiverged, check_state

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Prepare:
    """Images as people have them → normalised images ``[B, C, H, W]``, as a model was trained on.

    ``mean`` and ``std`` are those of pixels in [0, 1], one value per channel.
    """

    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Image.Image | np.ndarray | Tensor | list) -> Tensor:
        """Float32 ``[B, C, H, W]``, on the device of ``images``.

        Args:
            images: a PIL image, an array ``[H, W]`` or ``[H, W, C]`` or a list of them; or a
                tensor ``[C, H, W]`` or ``[B, C, H, W]``. Bytes; 0 is black.

        Raises:
            ValueError: for images of another size or shape, other than 8 bits, or that can be seen
                through; and for a list of none.
        """
        if isinstance(images, list | tuple):
            if not images:
                raise ValueError("an image is needed, or several; the list is empty")
            return torch.cat([self(image) for image in images])
        if not isinstance(images, Tensor):
            images = self._pixels(images)
        if images.dtype != torch.uint8:
            raise ValueError(f"images of bytes (0 to 255) are needed, not of {images.dtype}")
        images = images[None] if images.ndim == 3 else images
        expected = (self.channels, self.size, self.size)
        if images.ndim != 4 or images.shape[1:] != expected:
            raise ValueError(
                f"the model was trained on images [C, H, W] of {expected}, not of "
                f"{tuple(images.shape[-3:])}; bring them to this size as its training images were"
            )
        return Normalise(self.mean, self.std, images.device)(images)

    def _pixels(self, image: Image.Image | np.ndarray) -> Tensor:
        """``[C, H, W]``, grey or in colours as the model was trained."""
        if not isinstance(image, Image.Image):
            image = np.asarray(image)
            if image.dtype != np.uint8:
                raise ValueError(f"images of bytes (0 to 255) are needed, not of {image.dtype}")
            if image.ndim not in (2, 3) or image.shape[2:] not in ((), (1,), (2,), (3,), (4,)):
                raise ValueError(
                    "an array [H, W] or [H, W, C] of at most 4 channels is needed, not of "
                    f"{image.shape}; [C, H, W] and [B, C, H, W] are shapes of tensors"
                )
            image = Image.fromarray(image.squeeze(-1) if image.shape[2:] == (1,) else image)
        if can_be_seen_through(image):  # white or black behind it would be a guess
            raise ValueError("images that can be seen through are refused, as in training")
        if image.mode[0] in "IF":  # 16 or 32 bits, which a conversion would cut off
            raise ValueError(f"images of 8 bits are needed, not of PIL's mode {image.mode!r}")
        pixels = np.array(image.convert("L" if self.channels == 1 else "RGB"))
        return torch.from_numpy(pixels).reshape(*pixels.shape[:2], -1).permute(2, 0, 1)


@dataclass(frozen=True)
class PrepareEvents:
    """Frames that count events → frames ``[T, B, C, H, W]``, as a model was trained on.

    ``mean`` and ``std`` are those with which bytes, of which 255 is 1, enter the network.
    """

    timesteps: int
    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, frames: np.ndarray | Tensor | list) -> Tensor:
        """Float32 ``[T, B, C, H, W]``, on the device of ``frames``.

        Args:
            frames: counts ``[T, C, H, W]`` or ``[B, T, C, H, W]``, of any type, or a list of them.
                Those above 255 count as 255, as in training.

        Raises:
            ValueError: for another number of frames, another size, or what counts nothing; and for
                a list of none.
        """
        if isinstance(frames, list | tuple):
            if not frames:
                raise ValueError("frames of events are needed; the list is empty")
            return torch.cat([self(sample) for sample in frames], 1)
        frames = torch.as_tensor(frames)
        frames = frames[None] if frames.ndim == 4 else frames
        expected = (self.timesteps, self.channels, self.size, self.size)
        if frames.ndim != 5 or frames.shape[1:] != expected:
            raise ValueError(
                f"the model was trained on frames [T, C, H, W] of {expected}, not of "
                f"{tuple(frames.shape[-4:])}; make them of events as its training data were"
            )
        if frames.is_floating_point() and not bool((frames == frames.floor()).all()):
            raise ValueError("counts of events are needed, and these are no whole numbers")
        if bool((frames < 0).any()):
            raise ValueError("counts of events are needed, and some of these are below 0")
        frames = frames.clamp(max=255).to(torch.uint8)
        return time_first(Normalise(self.mean, self.std, frames.device)(frames))


def save_trained(
    folder: Path,
    cell: Cell,
    weights: Mapping[str, Tensor],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    commit: str | None,
) -> Path:
    """Write a cell's best weights, with all that using them takes; atomically.

    Raises:
        OSError: if the folder cannot be written.
    """
    facts = {
        "cell": cell.id,
        "architecture": zoo()[cell.model["name"]]["architecture"],
        "commit": commit or "",
        "configuration": canonical_json(cell.as_dict()),
        "mean": json.dumps(mean),
        "std": json.dumps(std),
    }
    content = save({name: tensor.contiguous() for name, tensor in weights.items()}, facts)
    replace_file(folder / WEIGHTS, lambda file: file.write(content))
    return folder / WEIGHTS


def load_trained(source: str | Path, cell_id: str | None = None) -> nn.Module:
    """A trained model with its best weights, in eval mode, on the CPU.

    ``load_trained(results, cell_id)``, or the path of a cell's folder or of its
    ``weights.safetensors``. The model's ``prepare`` makes its input of images
    (:class:`Prepare`) or of frames of events (:class:`PrepareEvents`); ``cell`` is what it was
    trained as::

        model = msvit.load_trained("results", "2f0c9a1b7d3e")
        label = model(model.prepare(image)).mean(0).argmax(-1)  # of one image or several

    Raises:
        CheckpointError: where no weights are kept, or what is kept does not fit.
        RecordError: where the cell's record cannot be used.
    """
    path = Path(source) if cell_id is None else cell_folder(Path(source), cell_id)
    if path.is_file() and path.suffix != Path(WEIGHTS).suffix:
        told = f"{path}: what holds a trained model is {WEIGHTS} or the folder of a cell"
        raise CheckpointError(f"{told} (this one's: {path.parent})")
    file = path if path.is_file() else path / WEIGHTS
    trained = _read_weights(file) if file.is_file() else _read_checkpoint(path)
    model = create_model(**_without_idle(trained.cell.model))
    try:
        model.load_state_dict(trained.weights)
        check_state(model, str(trained.file), "it cannot be used")
    except (RuntimeError, TrainingDiverged) as error:
        raise CheckpointError(f"{trained.file}: {error}") from None
    # No parts of the network:
    model.prepare = trained.prepare  # type: ignore[assignment]
    model.cell = trained.cell  # type: ignore[assignment]
    return model.eval()


def _without_idle(options: Mapping[str, Any]) -> dict[str, Any]:
    """``options`` without those that did nothing, which earlier versions have recorded as well."""
    idle = without_effect("model", options)
    return {key: value for key, value in options.items() if key not in idle}


@dataclass(frozen=True)
class _Trained:
    file: Path
    cell: Cell
    weights: Mapping[str, Tensor]
    prepare: Callable[[Any], Tensor]


def _read_weights(file: Path) -> _Trained:
    try:
        with safe_open(file, "pt") as content:
            facts = content.metadata() or {}
            weights = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{file}: not a file of safetensors ({error})") from None
    try:
        cell = Cell.from_dict(json.loads(facts["configuration"]))
        mean, std = tuple(json.loads(facts["mean"])), tuple(json.loads(facts["std"]))
    except (KeyError, json.JSONDecodeError):
        raise CheckpointError(
            f"{file}: not the weights of a cell (it does not tell their configuration)"
        ) from None
    return _Trained(file, cell, weights, _prepare(cell, mean, std))


def _read_checkpoint(folder: Path) -> _Trained:
    """What an earlier version has kept; the record knows the configuration."""
    file = folder / "checkpoint.pt"
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such cell")
    whole = folder.resolve()
    record = read_record(whole.parent.parent, whole.name)
    if record is None:
        raise CheckpointError(f"{folder}: the cell has no record; it was not trained to its end")
    if not file.is_file():
        raise CheckpointError(
            f"{folder}: no weights are kept, neither {WEIGHTS} nor {file.name}; "
            "delete the folder and run the cell again"
        )
    state = read_checkpoint(file)
    if state.get("cell") != record["id"] or not state.get("best"):
        raise CheckpointError(f"{file}: not the checkpoint of cell {record['id']}")
    cell = Cell.from_dict(record["cell"])
    return _Trained(file, cell, state["best"], _measured(cell))


def _prepare(
    cell: Cell, mean: tuple[float, ...], std: tuple[float, ...]
) -> Prepare | PrepareEvents:
    channels, size = cell.model["in_channels"], cell.model["image_size"]
    known = DATASETS.get(cell.data["name"])
    if known is not None and known.events:
        return PrepareEvents(cell.model["timesteps"], channels, size, mean, std)
    return Prepare(channels, size, mean, std)


def _measured(cell: Cell) -> Callable[[Any], Tensor]:
    """Earlier versions did not keep how images were normalised, but the data set tells."""

    def prepare(images: Any) -> Tensor:
        splits = load_splits(options_of(cell.data))
        return _prepare(cell, splits.mean, splits.std)(images)

    return prepare
