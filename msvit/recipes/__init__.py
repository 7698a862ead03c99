"""How a model is trained: the options, and recipes that set them by name.

A recipe is a YAML file in this folder: ``about`` (what it is for, and its source) and
``training``, a mapping of :class:`TrainingOptions`. Importing this needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from msvit.options import ConfigError, Options, unknown
from msvit.yaml_files import read_yaml

_FOLDER = Path(__file__).parent

REMOVED = {"compile": "gone, as on a GPU every step is a CUDA graph, which is faster"}
"""Options of earlier versions, and why they are no more; records that name them stay readable."""


class TrainingOptions(Options):
    """Everything that training depends on besides model, data and seed."""

    epochs: int = Field(10, ge=1, le=10_000)
    batch_size: int = Field(64, ge=1, le=65_536)
    """Images per step; an incomplete last batch of an epoch is left out."""
    optimizer: Literal["adamw", "adam", "sgd", "lamb"] = "adamw"
    """By timm's names; ``sgd`` has Nesterov momentum 0.9."""
    lr: float = Field(1e-3, gt=0, le=10)
    weight_decay: float = Field(0.06, ge=0, le=1)
    """Not applied to biases, normalisation and the neurons' own parameters."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """How the learning rate goes on after the warm-up, per step; ``cosine`` ends at ``min_lr``."""
    min_lr: float = Field(1e-5, ge=0, le=10)
    warmup_epochs: float = Field(0.5, ge=0, le=1_000)
    """Epochs, or part of one, in which the rate rises linearly from ``warmup_lr`` to ``lr``."""
    warmup_lr: float = Field(1e-5, ge=0, le=10)
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    loss: Literal["mean", "tet"] = "mean"
    """Cross-entropy of the time-averaged logits, or (temporal efficient training, Deng et al.
    2022, arXiv 2202.11946, eq. 9) the mean of each step's cross-entropy."""
    clip_grad: float | None = Field(None, gt=0)
    """Largest norm of the gradient of all weights together."""
    hflip: bool = False
    """Mirror every second training image, chosen at random."""
    shift: int = Field(0, ge=0, le=16)
    """Move training images by up to this many pixels each way; black moves in."""
    mixup: float = Field(0.0, ge=0, le=10)
    """Alpha of mixup (Zhang et al. 2018); 0 mixes nothing."""
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    """``auto`` is the fastest known to train to the same accuracy on the device. ``tf32`` is
    fp32 with products rounded to 10 bits on GPUs that have them, and fp32 elsewhere."""
    eval_batch_size: int = Field(128, ge=1, le=65_536)

    @classmethod
    def idle(cls, values: Mapping[str, Any]) -> dict[str, str]:
        found = {}
        if values["schedule"] == "constant":
            found["min_lr"] = "a constant schedule stays at lr"
        if values["warmup_epochs"] == 0:
            found["warmup_lr"] = "there is no warm-up (warmup_epochs 0)"
        return found

    def uneven(self, workers: int, images: int | None = None) -> str:
        """Why ``workers`` cannot share a batch evenly, empty where they can.

        The batch is the recipe's, or all ``images`` of a smaller training set. Mixed images are
        shared in pairs, the first with the last (:func:`msvit.workers.own`).
        """
        size = min(self.batch_size, images or self.batch_size)
        if workers == 1 or size % (workers * (2 if self.mixup else 1)) == 0:
            return ""
        pairs = ", in pairs as mixed images are" if self.mixup else ""
        return f"{workers} workers cannot share a batch of {size} images evenly{pairs}"

    @classmethod
    def _explained(cls, error: Mapping[str, Any]) -> str:
        if error["type"] == "extra_forbidden":
            return unknown_option(str(error["loc"][-1]), cls.model_fields)
        return super()._explained(error)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs ({self.warmup_epochs:g}) must be below epochs ({self.epochs})"
            )
        if self.schedule == "cosine" and self.min_lr > self.lr:
            raise ValueError(f"min_lr ({self.min_lr:g}) must not be above lr ({self.lr:g})")
        if self.mixup and self.batch_size % 2:
            raise ValueError(f"mixup needs an even batch_size (got {self.batch_size})")
        return self


def unknown_option(name: str, valid: Iterable[str], message: str = "unknown option") -> str:
    """``message``, and what an option that is not there (``training.lr``, or ``lr``) may mean."""
    if (option := name.removeprefix("training.")) in REMOVED:
        return f"{message}: {option} is {REMOVED[option]}"
    return unknown(name, valid, message)


def list_recipes() -> list[str]:
    """Names that ``training.recipe`` of a cell may have."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def load_recipe(name: str) -> dict[str, Any]:
    """The training options that recipe ``name`` sets; all others keep their defaults.

    Raises:
        ConfigError: for an unknown recipe or one that cannot be used.
    """
    if name not in list_recipes():
        raise ConfigError("", "", unknown(name, list_recipes(), f"unknown recipe {name!r}"))
    return dict(_read(_FOLDER / f"{name}.yaml"))


@cache  # every cell of a study asks
def _read(path: Path) -> dict[str, Any]:
    content = read_yaml(path)
    if not isinstance(content, dict) or set(content) != {"about", "training"}:
        raise ConfigError(str(path), "", "a recipe has the keys about and training")
    TrainingOptions.parse(content["training"], f"{path}: training")
    return content["training"]
