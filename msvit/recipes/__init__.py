"""How a model is trained: the options, and recipes that set them by name.

A recipe is a YAML file in this folder:

``about``
    What it is for, and what of its source it leaves out.
``source``
    Paper, repository and files that its values are from.
``for``
    ``models`` (registry entries or architectures) and ``data`` that it was made for, their
    ``timesteps``, and ``start_from: true`` where it goes on from trained weights. Another use is
    said, not forbidden.
``training``
    A mapping of :class:`TrainingOptions`.

Importing this needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from msvit.data import DATASETS
from msvit.models import zoo
from msvit.options import ConfigError, Options, later, unknown
from msvit.recipes.rand_augment import RandAugmentSettings
from msvit.yaml_files import read_yaml

_FOLDER = Path(__file__).parent

REMOVED = {"compile": "gone, as on a GPU every step is a CUDA graph, which is faster"}
"""Options of earlier versions, and why they are no more; records that name them stay readable."""


class TrainingOptions(Options):
    """Everything that training depends on besides model, data and seed."""

    epochs: int = Field(10, ge=1, le=10_000)
    """Epochs of the schedule; ``cooldown_epochs`` come on top."""
    cooldown_epochs: int = later(0, ge=0, le=1_000)
    """Epochs behind the schedule, at ``min_lr``."""
    batch_size: int = Field(64, ge=1, le=65_536)
    """Images per update; an incomplete last batch of an epoch is left out."""
    grad_accum_steps: int = later(1, ge=1, le=1_024)
    """Parts in which a batch goes through the model, its gradient being their mean. The statistics
    of a batch norm are those of a part: of one GPU's images, where a recipe had several GPUs."""
    sync_batchnorm: bool = later(False)
    """Where several workers share a batch, norms (and running firing rates) take their statistics
    over all of it, as one worker does. Off, as in published scripts, each takes those of its own
    images, and the result depends on the number of workers, which the record tells."""
    optimizer: Literal["adamw", "adam", "sgd", "lamb"] = "adamw"
    """By timm's names; ``sgd`` has Nesterov momentum 0.9."""
    trust_clip: bool = later(False)
    """No weight's step is longer than Adam's would be: LAMB's trust ratios end at 1."""
    lr: float = Field(1e-3, gt=0, le=10)
    lr_base_size: int | None = later(None, ge=1, le=65_536)
    """Batch size that ``lr`` is meant for: the rate is ``lr · batch_size / lr_base_size``.
    ``min_lr`` and ``warmup_lr`` stay as they are."""
    weight_decay: float = Field(0.06, ge=0, le=1)
    """Not applied to biases, normalisation and the neurons' own parameters."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """How the learning rate goes on after the warm-up; ``cosine`` ends at ``min_lr``."""
    sched_on_updates: bool = later(True)
    """The rate changes with every update; or else with every epoch, as in timm's script."""
    min_lr: float = Field(1e-5, ge=0, le=10)
    warmup_epochs: float = Field(0.5, ge=0, le=1_000)
    """Epochs, or part of one, in which the rate rises linearly from ``warmup_lr`` to ``lr``."""
    warmup_lr: float = Field(1e-5, ge=0, le=10)
    warmup_prefix: bool = later(False)
    """The cosine begins behind the warm-up; or else with it, its first part never being seen."""
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    loss: Literal["mean", "tet"] = "mean"
    """Cross-entropy of the time-averaged logits, or (temporal efficient training, Deng et al.
    2022, arXiv 2202.11946, eq. 9) the mean of each step's cross-entropy."""
    clip_grad: float | None = Field(None, gt=0)
    """Largest norm of the gradient of all weights together."""
    ema_decay: float | None = later(None, gt=0, lt=1)
    """Also keep weights (and statistics) that are averaged over updates, exponentially. They are
    then what is selected, tested and kept; the raw ones are validated beside them."""
    crop_scale: tuple[float, float] | None = later(None)
    """Shares of an image's area, from and to: train on random parts, resized (bicubic)."""
    crop_ratio: tuple[float, float] = later((3 / 4, 4 / 3))
    """Width through height of these parts, from and to."""
    crop_pct: float | None = later(None, gt=0, le=1)
    """Share of the shorter side that is shown of validation and test images, their middle; what the
    data set says where it is not given. Those in memory are enlarged from their final size."""
    hflip: bool = False
    """Mirror every second training image, chosen at random."""
    shift: int = Field(0, ge=0, le=16)
    """Move training images by up to this many pixels each way; black moves in."""
    rand_augment: str | None = later(None)
    """RandAugment (Cubuk et al. 2020) as timm writes it: ``rand-m9-n1-mstd0.4-inc1``."""
    event_augmentation: Literal["none", "snn_wide"] = later("none")
    """Of frames of events, the same for all of a sample; ``snn_wide`` mirrors every second sample
    and turns, shears, moves or cuts most (:mod:`msvit.training.augmentation.events`)."""
    mixup: float = Field(0.0, ge=0, le=10)
    """Alpha of mixup (Zhang et al. 2018); 0 mixes nothing."""
    cutmix: float = later(0.0, ge=0, le=10)
    """Alpha of CutMix (Yun et al. 2019); 0 cuts nothing."""
    mixup_prob: float = later(1.0, gt=0, le=1)
    """Share of the batches that are mixed or cut at all."""
    mixup_switch_prob: float = later(0.5, ge=0, le=1)
    """Share of these that are cut, where both are on."""
    mixup_off_epoch: int = later(0, ge=0, le=11_000)
    """Epochs after which nothing is mixed or cut any more; 0: always."""
    random_erasing: float = later(0.0, ge=0, le=1)
    """Share of the images in which a rectangle is erased (Zhong et al. 2020)."""
    random_erasing_mode: Literal["const", "pixel"] = later("const")
    """With the mean colour, or with noise."""
    erasing_first: bool = later(False)
    """Each image before they are mixed, as where erasing is part of timm's transform; or else
    behind it, as timm's loader does."""
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    """``auto`` is the fastest known to train to the same accuracy on the device. ``tf32`` is
    fp32 with products rounded to 10 bits on GPUs that have them, and fp32 elsewhere."""
    eval_batch_size: int = Field(128, ge=1, le=65_536)
    start_from: str | None = later(None, min_length=1)
    """Weights to begin with: the id of a finished cell in the same results folder, or a file, seen
    from the results folder. Where it has other classes, the classifier begins anew."""

    @property
    def all_epochs(self) -> int:
        return trained_epochs(self.__dict__)

    @property
    def peak_lr(self) -> float:
        """The rate that the warm-up leads to."""
        return self.lr * self.batch_size / (self.lr_base_size or self.batch_size)

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed, so that their classes are."""
        return self.mixup > 0 or self.cutmix > 0

    def batch_of(self, images: int) -> int:
        """Images in a batch: the recipe's, or all ``images`` of a smaller training set.

        Those that are mixed are an even number, as they are paired.
        """
        size = min(self.batch_size, images)
        return size - size % 2 if self.mixes else size

    def uneven(self, workers: int, images: int | None = None) -> str:
        """Why ``workers`` (or one) cannot share every batch evenly, empty where they can.

        Mixed ones are shared in pairs, and one that is accumulated part by part
        (:func:`msvit.workers.own`).
        """
        size = self.batch_of(images or self.batch_size)
        if size < self.grad_accum_steps:
            return f"a batch of {size} images cannot be had in {self.grad_accum_steps} parts"
        if workers == 1 or size % (workers * self.grad_accum_steps * (2 if self.mixes else 1)) == 0:
            return ""
        how = ", in pairs as mixed images are" if self.mixes else ""
        if self.grad_accum_steps > 1:
            how += f", in {self.grad_accum_steps} parts"
        return f"{workers} workers cannot share a batch of {size} images evenly{how}"

    @classmethod
    def idle(cls, values: Mapping[str, Any]) -> dict[str, str]:
        found = {}
        if values["optimizer"] != "lamb":
            found["trust_clip"] = "only lamb has trust ratios"
        if values["schedule"] == "constant":
            found["min_lr"] = "a constant schedule stays at lr"
            found["cooldown_epochs"] = "a constant schedule has no end; epochs says how long it is"
            found["warmup_prefix"] = "a constant schedule has nothing that it could put off"
        if values["warmup_epochs"] == 0:
            for option in ("warmup_lr", "warmup_prefix"):
                found[option] = "there is no warm-up (warmup_epochs 0)"
            if values["schedule"] == "constant":
                found["sched_on_updates"] = "the rate never changes"
        if values["lr_base_size"] == values["batch_size"]:
            found["lr_base_size"] = "lr is for this batch_size as it is"
        if values["crop_scale"] is None:
            found["crop_ratio"] = "images are not cropped (no crop_scale)"
        epochs = values["epochs"] + values["cooldown_epochs"]
        if (off := values["mixup_off_epoch"]) >= epochs:
            message = f"mixup_off_epoch ({off}) must be below all epochs ({epochs}), or never comes"
            found["mixup_off_epoch"] = message
        if not values["mixup"] and not values["cutmix"]:
            for option in ("mixup_prob", "mixup_off_epoch", "erasing_first"):
                found[option] = "nothing is mixed (mixup and cutmix are 0)"
        if not values["mixup"] or not values["cutmix"]:
            found["mixup_switch_prob"] = "mixup and cutmix do not both happen"
        if values["random_erasing"] == 0:
            found["random_erasing_mode"] = "nothing is erased (random_erasing 0)"
            found["erasing_first"] = "nothing is erased (random_erasing 0)"
        return found

    @field_validator("rand_augment")
    @classmethod
    def _in_one_form(cls, text: str | None) -> str | None:
        return None if text is None else str(RandAugmentSettings.parse(text))

    @field_validator("crop_scale", "crop_ratio")
    @classmethod
    def _a_range(cls, ends: tuple[float, float] | None) -> tuple[float, float] | None:
        if ends is not None and not 0 < ends[0] <= ends[1]:
            raise ValueError(f"two numbers above 0 are needed, the smaller one first (got {ends})")
        return ends

    @classmethod
    def _explained(cls, error: Mapping[str, Any]) -> str:
        if error["type"] == "extra_forbidden":
            return unknown_option(str(error["loc"][-1]), cls.model_fields)
        given = error["input"]
        if error["loc"] in (("crop_scale",), ("crop_ratio",)) and isinstance(given, int | float):
            end = "1.0" if error["loc"] == ("crop_scale",) else f"{given}"
            return f"from and to are needed (got {given}); write it as [{given}, {end}]"
        return super()._explained(error)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if problems := list(self._contradictions()):
            raise ValueError("; ".join(problems))
        return self

    def _contradictions(self) -> Iterator[str]:
        if self.warmup_epochs >= self.epochs:
            yield f"warmup_epochs ({self.warmup_epochs:g}) must be below epochs ({self.epochs})"
        if self.schedule == "cosine" and self.min_lr > self.peak_lr:
            yield f"min_lr ({self.min_lr:g}) must not be above lr ({self.peak_lr:g})"
        if self.mixes and self.batch_size % 2:
            name = "mixup" if self.mixup else "cutmix"
            yield f"{name} needs an even batch_size (got {self.batch_size})"
        if self.batch_size % self.grad_accum_steps:
            yield (
                f"batch_size ({self.batch_size}) must be a multiple of grad_accum_steps "
                f"({self.grad_accum_steps})"
            )
        if self.crop_scale is not None and self.crop_scale[1] > 1:
            yield f"crop_scale ends at 1, the whole image (got {self.crop_scale[1]:g})"


def trained_epochs(training: Mapping[str, Any]) -> int:
    """All epochs that the ``training`` of a cell takes; those of a cooldown count."""
    return int(training["epochs"]) + int(training.get("cooldown_epochs", 0))


def unknown_option(name: str, valid: Iterable[str], message: str = "unknown option") -> str:
    """``message``, and what an option that is not there (``training.lr``, or ``lr``) may mean."""
    if (option := name.removeprefix("training.")) in REMOVED:
        return f"{message}: {option} is {REMOVED[option]}"
    return unknown(name, valid, message)


@dataclass(frozen=True)
class Recipe:
    """What a recipe's file says."""

    name: str
    about: str
    source: str
    models: tuple[str, ...]
    """Registry entries or architectures that it is for; empty: any."""
    data: tuple[str, ...]
    """Data sets that it is for; empty: any."""
    training: Mapping[str, Any]
    timesteps: int | None = None
    """Of the model, or frames of a sample of events; None: any."""
    start_from: bool = False
    """Whether it goes on from trained weights."""

    def further_notes(self, timesteps: int, start_from: str | None) -> Iterator[str]:
        """Sentences where a cell of so many time steps is not begun as it was made for."""
        if self.timesteps not in (None, timesteps):
            meant = f"{self.timesteps} time step" + ("s" if self.timesteps != 1 else "")
            yield f"recipe {self.name} is made for {meant}; here are {timesteps}"
        if self.start_from and start_from is None:
            yield f"recipe {self.name} goes on from trained weights; training.start_from names none"

    def note(self, model: str, architecture: str, data: str) -> str | None:
        """A sentence where it is used with another model or data set than it was made for."""
        fits = not self.models or {model, architecture} & set(self.models)
        if fits and (not self.data or data in self.data):
            return None
        models, sets = (" or ".join(names) for names in (self.models, self.data))
        meant = f"{models or 'any model'} on {sets or 'any data'}"
        return f"recipe {self.name} is made for {meant}; here it trains {model} on {data}"


def list_recipes() -> list[str]:
    """Names that ``training.recipe`` of a cell may have."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def load_recipe(name: str) -> dict[str, Any]:
    """The training options that recipe ``name`` sets; all others keep their defaults.

    Raises:
        ConfigError: for an unknown recipe or one that cannot be used.
    """
    return dict(read_recipe(name).training)


def read_recipe(name: str) -> Recipe:
    """All that the file of recipe ``name`` says.

    Raises:
        ConfigError: for an unknown recipe or one that cannot be used.
    """
    if name not in list_recipes():
        raise ConfigError("", "", unknown(name, list_recipes(), f"unknown recipe {name!r}"))
    return _read(_FOLDER / f"{name}.yaml")


_KEYS = ("about", "source", "for", "training")
_FOR = ("models", "data", "timesteps", "start_from")


@cache  # every cell of a study asks
def _read(path: Path) -> Recipe:
    content = read_yaml(path)
    if not isinstance(content, dict) or set(content) - {"source", "for"} != {"about", "training"}:
        needed = f"the keys {', '.join(_KEYS)}, of which source and for may be left out"
        raise ConfigError(str(path), "", f"a recipe has {needed}")
    for key in ("about", "source"):
        if not isinstance(content.get(key, ""), str):
            raise ConfigError(str(path), key, f"a text is needed (got {content[key]!r})", ": ")
    if not isinstance(content["training"], dict):
        message = f"a mapping of options is needed (got {content['training']!r})"
        raise ConfigError(str(path), "training", message, ": ")
    TrainingOptions.parse(content["training"], f"{path}: training")
    meant = _checked_for(content.get("for", {}), f"{path}: for")
    return Recipe(
        name=path.stem,
        about=" ".join(content["about"].split()),
        source=" ".join(content.get("source", "").split()),
        models=tuple(meant.get("models", ())),
        data=tuple(meant.get("data", ())),
        training=content["training"],
        timesteps=meant.get("timesteps"),
        start_from=meant.get("start_from", False),
    )


def _checked_for(meant: Any, where: str) -> dict[str, Any]:
    """What stands below ``for``, whose models and data sets are there."""
    if not isinstance(meant, dict):
        raise ConfigError(where, "", f"a mapping is needed (got {meant!r})")
    architectures = {entry["architecture"] for entry in zoo().values()}
    known = {"models": {*zoo(), *architectures}, "data": set(DATASETS)}
    for key, value in meant.items():
        if key not in _FOR:
            raise ConfigError(where, str(key), unknown(key, _FOR, "unknown key"))
        if key in known:
            if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
                raise ConfigError(where, key, f"a list of names is needed (got {value!r})")
            for name in value:
                if name not in known[key]:
                    raise ConfigError(where, key, unknown(name, known[key], f"no {name!r}"))
        elif type(value) is not (bool if key == "start_from" else int):
            needed = "true or false" if key == "start_from" else "a whole number"
            raise ConfigError(where, key, f"{needed} is needed (got {value!r})")
    return meant
