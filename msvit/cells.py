"""Cells: fully resolved configurations, named by the hash of what they say.

A cell is one run of one model on one data set with one training recipe and one seed. Every
default is written out in it (but what the kind of neuron does not have), so that a record says all
that led to it, and so that the same run asked for in two ways, or in two grids, has the same id and
is trained once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from pydantic import ValidationError

from msvit.data import data_options
from msvit.data.events import EventOptions
from msvit.data.options import DataOptions
from msvit.models import model_options, options_without_effect, zoo
from msvit.models.options import ModelOptions
from msvit.options import ConfigError, Problem, unknown
from msvit.recipes import TrainingOptions, list_recipes, load_recipe

SCHEMA = 1
"""Version of cells and records. It is part of every id: a change of meaning changes all ids."""

SECTIONS = ("model", "data", "training")
MAX_SEED = 2**32 - 1  # what every generator in use accepts


@dataclass(frozen=True)
class Cell:
    """One resolved configuration; ``model`` and ``data`` hold ``name`` and all options."""

    model: Mapping[str, Any]
    data: Mapping[str, Any]
    training: Mapping[str, Any]
    seed: int

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types, as they stand in the record."""
        sections = {section: dict(getattr(self, section)) for section in SECTIONS}
        return {**sections, "seed": self.seed}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`as_dict`; trusts ``values`` to be resolved already."""
        return cls(**{key: values[key] for key in (*SECTIONS, "seed")})

    @property
    def id(self) -> str:
        """First 12 hex digits of the SHA-256 of the canonical JSON."""
        return hashlib.sha256(canonical_json(self.as_dict()).encode()).hexdigest()[:12]


def canonical_json(cell: Mapping[str, Any]) -> str:
    """One text per meaning: sorted keys, no spaces, the schema version included."""
    content = {"schema": SCHEMA, **cell}
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def resolve_cell(raw: Mapping[str, Any], where: str) -> Cell:
    """Check ``raw`` (``model``, ``data``, ``training``, ``seed``) and fill in every default.

    ``model`` and ``data`` need a ``name``; ``training`` may hold ``recipe: NAME``, whose
    settings apply where the mapping has none of its own and these data and epochs give them a
    meaning (:func:`left_out_of_recipe`). The model's ``num_classes``,
    ``in_channels`` and ``image_size`` come from the data set unless they are given; of events,
    which come in frames, also its ``timesteps``.

    Raises:
        ConfigError: for unknown keys, names and options, for values that cannot be, and for
            options that are set without effect.
    """
    recipe = _recipe(raw, where)  # what is wrong with its file is said of its file alone
    try:
        return _resolved(raw, recipe)
    except ConfigError as error:
        raise error.within(where) from None


def _resolved(raw: Mapping[str, Any], recipe: Mapping[str, Any]) -> Cell:
    """What is wrong with ``raw`` is said without a place of its own, by dotted key."""
    for key in raw:
        if key not in (*SECTIONS, "seed"):
            raise ConfigError("", str(key), unknown(key, (*SECTIONS, "seed"), "unknown key"))
    data_name, data_values = _named(raw, "data")
    model_name, model_values = _named(raw, "model")

    data = data_options(data_name, data_values, "data")
    model_values = {**_from_data(data), **model_values}
    model = model_options(model_name, model_values, "model")
    _check_fit(model, data)
    training = _training(section_of(raw, "training", ""), recipe, data)
    return Cell(
        model={"name": model_name, **model.model_dump(mode="json", exclude={"name"})},
        data={"name": data_name, **data.model_dump(mode="json", exclude={"name"})},
        training=training,
        seed=_seed(raw.get("seed", 0)),
    )


def left_out_of_recipe(raw: Mapping[str, Any]) -> dict[str, str]:
    """Options that the recipe of ``raw``, which can be resolved, sets in vain there, and why."""
    values = section_of(raw, "training", "")
    recipe = _recipe(raw, "")
    data = data_options(*_named(raw, "data"), "data")
    usual = TrainingOptions.model_fields
    return {
        option: why
        for option, why in _in_vain(values, recipe, data).items()
        if recipe[option] != usual[option].get_default()
    }


def option_names(section: str, name: Any, where: str) -> list[str]:
    """The keys that ``section`` takes for the model or data set ``name``, as written by users.

    Raises:
        ConfigError: where there is none of this name.
    """
    if section == "training":
        return ["recipe", *TrainingOptions.model_fields]
    options = (model_options if section == "model" else data_options)(name, {}, where)
    return ["name", *(field for field in type(options).model_fields if field != "name")]


def without_effect(section: str, values: Mapping[str, Any]) -> dict[str, str]:
    """Options of ``section`` that do nothing beside ``values`` (as written by users), and why.

    None where it takes a name that is not there, which is told where the cell is resolved.
    """
    options = {key: value for key, value in values.items() if key not in ("name", "recipe")}
    if section == "training":
        recipe = values.get("recipe")
        own = load_recipe(recipe) if recipe in list_recipes() else {}
        return TrainingOptions.without_effect({**own, **options})
    name = values.get("name")
    if section == "model" and isinstance(name, str) and name in zoo():
        return options_without_effect(name, options)
    return {}


def section_of(raw: Mapping[str, Any], section: str, where: str) -> dict[str, Any]:
    """``raw[section]`` as a dict; an absent or empty one is an empty dict."""
    values = raw.get(section)
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise ConfigError(where, section, f"a mapping of options is needed (got {values!r})")
    return dict(values)


def _named(raw: Mapping[str, Any], section: str) -> tuple[str, dict[str, Any]]:
    values = section_of(raw, section, "")
    name = values.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(section, "name", f"a name is needed (got {name!r})")
    return name, values


def _from_data(data: DataOptions) -> dict[str, Any]:
    found = {key: getattr(data, key) for key in ("num_classes", "in_channels", "image_size")}
    return {**found, "timesteps": data.frames_number} if isinstance(data, EventOptions) else found


def _check_fit(model: ModelOptions, data: DataOptions) -> None:
    """A model told to expect other images than the data set has would fail only in training."""
    given = _from_data(data)
    for key in ("in_channels", "image_size", "timesteps"):
        set_to = getattr(model, key)
        if key in given and set_to != given[key]:
            message = f"the data set gives {given[key]!r}, the model is set to {set_to!r}"
            if key == "timesteps":
                message += "; set data.frames_number instead, and leave timesteps out"
            raise ConfigError("model", key, message)
    if (tested := data.tested_size()) != given["image_size"]:
        _check_tested(model, tested)
    if model.num_classes < data.num_classes:
        message = f"the data set has {data.num_classes} classes (got {model.num_classes})"
        raise ConfigError("model", "num_classes", message)


def _check_tested(model: ModelOptions, size: int) -> None:
    """Whether it can be tested on images of this ``size``, which is not that of its training."""
    key = "test_image_size"
    if not model.takes_other_sizes:
        raise ConfigError("data", key, f"this model takes {model.image_size} pixels alone")
    try:
        type(model).model_validate({**model.model_dump(), "image_size": size})
    except ValidationError as error:
        why = str(error.errors()[0]["ctx"]["error"]).removeprefix("image_size: ")
        raise ConfigError("data", key, why) from None


def _not_for(data: DataOptions, training: Mapping[str, Any]) -> dict[str, str]:
    """What of ``training`` is for images and not for events, or the other way round, and why."""
    found = {}
    if not data.events and training.get("event_augmentation", "none") != "none":
        found["event_augmentation"] = f"it is for events, and {data.name} has images"
    if training.get("rand_augment") is not None and (data.events or data.in_channels not in (1, 3)):
        message = f"it is for images, grey or in three colours, and {data.name} has events"
        found["rand_augment"] = message
    if training.get("crop_pct") is not None and not data.cut_out:
        message = f"it is for images that are cut out as they are read; {data.name} has them whole"
        found["crop_pct"] = message
    return found


def _recipe(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The settings of the recipe that ``raw`` names, if it names one."""
    name = section_of(raw, "training", where).get("recipe")
    if name is None:
        return {}
    if name not in list_recipes():
        message = unknown(name, list_recipes(), f"unknown recipe {name!r}")
        raise ConfigError(where, "training.recipe", message)
    return load_recipe(name)


def _training(
    values: dict[str, Any], recipe: Mapping[str, Any], data: DataOptions
) -> dict[str, Any]:
    vain = _in_vain(values, recipe, data)
    inherited = {key: value for key, value in recipe.items() if key not in vain}
    values.pop("recipe", None)
    problems = [Problem("training", key, why) for key, why in _not_for(data, values).items()]
    try:
        parsed = TrainingOptions.parse({**inherited, **values}, "training")
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError.of(problems)
    return parsed.model_dump(mode="json")


def _in_vain(
    values: Mapping[str, Any], recipe: Mapping[str, Any], data: DataOptions
) -> dict[str, str]:
    """What a recipe says but has no meaning with these data, or beside the ``values`` set here.

    It does not make another cell. What is itself set here is not inherited, and not among them.
    """
    inherited = {key: value for key, value in recipe.items() if key not in values}
    unfit = _not_for(data, inherited)
    rest = {key: value for key, value in inherited.items() if key not in unfit}
    own = {key: value for key, value in values.items() if key != "recipe"}
    vain = TrainingOptions.without_effect({**rest, **own})
    return {**unfit, **{key: why for key, why in vain.items() if key in rest}}


def _seed(seed: Any) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
        raise ConfigError("", "seed", f"an integer from 0 to {MAX_SEED} is needed (got {seed!r})")
    return seed
