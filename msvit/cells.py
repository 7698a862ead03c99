"""Cells: fully resolved configurations, named by the hash of what they say.

A cell is one run of one model on one data set with one training recipe and one seed. Every
default is written out in it (but ``compile: null``, which is younger than the first records), so
that a record says all that led to it, and so that the same run asked for in two ways, or in two
grids, has the same id and is trained once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from msvit.data import data_options
from msvit.data.options import DataOptions
from msvit.models import model_options
from msvit.models.options import ModelOptions
from msvit.options import ConfigError, unknown
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
    settings apply where the mapping has none of its own. The model's ``num_classes``,
    ``in_channels`` and ``image_size`` come from the data set unless they are given.

    Raises:
        ConfigError: for unknown keys, names and options, and for values that cannot be.
    """
    for key in raw:
        if key not in (*SECTIONS, "seed"):
            raise ConfigError(unknown(key, (*SECTIONS, "seed"), f"{where}.{key}: unknown key"))
    data_name, data_values = _named(raw, "data", where)
    model_name, model_values = _named(raw, "model", where)

    data = data_options(data_name, data_values, f"{where}.data")
    model_values = {**_from_data(data), **model_values}
    model = model_options(model_name, model_values, f"{where}.model")
    _check_fit(model, data, f"{where}.model")
    return Cell(
        model={"name": model_name, **model.model_dump(mode="json", exclude={"name"})},
        data={"name": data_name, **data.model_dump(mode="json", exclude={"name"})},
        training=_training(section_of(raw, "training", where), f"{where}.training"),
        seed=_seed(raw.get("seed", 0), f"{where}.seed"),
    )


def option_names(section: str, name: str | None, where: str) -> list[str]:
    """The keys that ``section`` takes for the model or data set ``name``, as written by users."""
    if section == "training":
        return ["recipe", *TrainingOptions.model_fields]
    options = (model_options if section == "model" else data_options)(name, {}, where)
    return ["name", *(field for field in type(options).model_fields if field != "name")]


def section_of(raw: Mapping[str, Any], section: str, where: str) -> dict[str, Any]:
    """``raw[section]`` as a dict; an absent or empty one is an empty dict."""
    values = raw.get(section)
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}.{section}: a mapping of options is needed (got {values!r})")
    return dict(values)


def _named(raw: Mapping[str, Any], section: str, where: str) -> tuple[str, dict[str, Any]]:
    values = section_of(raw, section, where)
    name = values.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(f"{where}.{section}.name: a name is needed (got {name!r})")
    return name, values


def _from_data(data: DataOptions) -> dict[str, Any]:
    return {key: getattr(data, key) for key in ("num_classes", "in_channels", "image_size")}


def _check_fit(model: ModelOptions, data: DataOptions, where: str) -> None:
    """A model told to expect other images than the data set has would fail only in training."""
    for key in ("in_channels", "image_size"):
        if getattr(model, key) != getattr(data, key):
            raise ConfigError(
                f"{where}.{key}: the data set gives {getattr(data, key)!r}, "
                f"the model is set to {getattr(model, key)!r}"
            )
    if model.num_classes < data.num_classes:
        raise ConfigError(
            f"{where}.num_classes: the data set has {data.num_classes} classes "
            f"(got {model.num_classes})"
        )


def _training(values: dict[str, Any], where: str) -> dict[str, Any]:
    recipe = values.pop("recipe", None)
    if recipe is not None:
        if recipe not in list_recipes():
            raise ConfigError(
                unknown(recipe, list_recipes(), f"{where}.recipe: unknown recipe {recipe!r}")
            )
        values = {**dict(load_recipe(recipe)), **values}
    return TrainingOptions.parse(values, where).model_dump(mode="json")


def _seed(seed: Any, where: str) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
        raise ConfigError(f"{where}: an integer from 0 to {MAX_SEED} is needed (got {seed!r})")
    return seed
