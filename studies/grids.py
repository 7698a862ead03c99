"""Grid files: one question, and the cells that answer it.

::

    question: How many attention scales does MSVIT need?
    base:                      # what all configurations share
      model: {name: msvit, dim: 48}
      data: {name: digits}
      training: {epochs: 6}
    axes:                      # every combination of these values, over the base
      model.scales: [[1], [1, 3]]
    include:                   # further configurations over the base, not crossed with the axes
      - model: {name: spikformer}
        label: Spikformer (2023)   # optional; otherwise derived from what is set
    seeds: 3                   # 0, 1, 2; or a list of integers

Without ``axes`` the base is itself a configuration, unless it leaves the model's name to what
it includes. A configuration's own options replace the base's one by one. Where it names another
model (or data set) than the base, the base's options that the other one also has are inherited,
and those that it does not have are left out; what a configuration sets itself is never left
out, but checked.

Two configurations that resolve to the same cell are run once. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from msvit.cells import SECTIONS, Cell, option_names, resolve_cell, section_of
from msvit.options import ConfigError
from msvit.recipes import unknown_option
from msvit.yaml_files import parse_yaml, read_yaml
from studies.configurations import (
    MAX_CELLS,
    base_of,
    checked_keys,
    find_file,
    list_files,
    merged,
    question_of,
    seeds_of,
    shown_path,
    split_key,
)
from studies.study import Study, StudyCell, show_value

_SET = "--set"
_KEYS = ("question", "base", "axes", "include", "seeds")
_INCLUDE_KEYS = ("label", *SECTIONS)


@dataclass
class _Configuration:
    """One configuration while it is put together: raw options and where they come from."""

    raw: dict[str, dict[str, Any]]
    where: str
    named: list[str] = field(default_factory=list)  # dotted keys that its label shows
    label: str | None = None


def list_grids() -> list[str]:
    """Names of the grids that come with the harness."""
    return list_files("grid")


def load_study(grid: str, overrides: Sequence[str] = (), seeds: int | None = None) -> Study:
    """Expand ``grid``, the name of a grid of the harness or the path of a YAML file.

    ``overrides`` are ``section.key=value`` texts, values in YAML. An override holds for every
    configuration, after axes and includes; a model that does not have the option is left
    alone as long as another one has it. ``seeds`` replaces the file's seeds by 0 … seeds - 1.

    Raises:
        ConfigError: for whatever could not be run, naming the file, the key and the nearest
            valid choice.
    """
    path = find_file("grid", grid)
    where = path.name
    values = checked_keys(read_yaml(path), _KEYS, where)
    question = question_of(values, where)
    base = base_of(values.get("base"), where)
    axes = _axes(values.get("axes"), where)
    configurations = _included(base, values, where)
    if axes or not configurations or "name" in base["model"]:
        configurations = [*_crossed(base, axes, where), *configurations]
    seed_list = seeds_of(values.get("seeds", 1) if seeds is None else seeds, where)
    cells = [_resolved(configuration, base, where) for configuration in configurations]
    if overrides:  # the file is right as it is: what is wrong from here on is in them
        _check_once(overrides)
        for override in overrides:
            _override(configurations, override)
        with _blamed_on(overrides):
            cells = [resolve_cell(configuration.raw, "") for configuration in configurations]
    groups, notes = _groups(configurations, cells)
    if len(groups) * len(seed_list) > MAX_CELLS:
        raise ConfigError(where, "", f"more than {MAX_CELLS} cells")
    return Study(
        name=_name(path.stem, overrides),
        question=question,
        grid_file=shown_path(path),
        axes=tuple(axes),
        cells=tuple(
            StudyCell(Cell(cell.model, cell.data, cell.training, seed), group)
            for group, cell in groups.items()
            for seed in seed_list
        ),
        overrides=tuple(overrides),
        notes=tuple(notes),
    )


_LONGEST_NAME = 100  # of a folder; file systems take 255 bytes


def _name(grid: str, overrides: Sequence[str]) -> str:
    """Of the study, and so of its folder: ``scales``, ``scales+training.epochs=3``.

    What is changed on the command line is another study, beside the grid's own.
    """
    parts = (re.sub(r"[^\w.,=-]", "", text) for text in sorted(overrides))
    name = "+".join((grid, *parts))
    if len(name) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: _LONGEST_NAME - 9]}-{digest}"


def _check_once(overrides: Sequence[str]) -> None:
    keys = [text.partition("=")[0].strip() for text in overrides]
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigError(f"{_SET} {key}", "", "given twice")


def _axes(values: Any, where: str) -> dict[str, list[Any]]:
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        message = f"a mapping of keys to lists is needed (got {values!r})"
        raise ConfigError(where, "axes", message, ": ")
    for key, choices in values.items():
        place = f"{where}: axes"
        if key == "seed":
            raise ConfigError(place, key, "seeds are given by the key 'seeds'")
        split_key(str(key), f"{place}.{key}")
        if not isinstance(choices, list) or not choices:
            raise ConfigError(place, str(key), f"a list of values is needed (got {choices!r})")
    return dict(values)


def _crossed(
    base: dict[str, dict[str, Any]], axes: dict[str, list[Any]], where: str
) -> list[_Configuration]:
    """The product of the axes over the base; the first axis varies slowest."""
    configurations = []
    place = f"{where}: axes" if axes else f"{where}: base"
    for values in itertools.product(*axes.values()):
        own: dict[str, dict[str, Any]] = {}
        for key, value in zip(axes, values, strict=True):
            section, option = split_key(key, place)
            own.setdefault(section, {})[option] = value
        configurations.append(_Configuration(merged(base, own, place), place, list(axes)))
        if len(configurations) > MAX_CELLS:
            raise ConfigError(where, "axes", f"more than {MAX_CELLS} combinations", ": ")
    return configurations


def _included(
    base: dict[str, dict[str, Any]], values: Mapping[str, Any], where: str
) -> list[_Configuration]:
    entries = values.get("include") or []
    if not isinstance(entries, list):
        raise ConfigError(where, "include", f"a list is needed (got {entries!r})", ": ")
    configurations = []
    for index, entry in enumerate(entries):
        place = f"{where}: include[{index}]"
        entry = checked_keys(entry, _INCLUDE_KEYS, place)
        label = entry.pop("label", None)
        if label is not None and (not isinstance(label, str) or not label.strip()):
            raise ConfigError(place, "label", f"a text is needed (got {label!r})")
        own = {section: section_of(entry, section, place) for section in SECTIONS}
        named = [f"{section}.{option}" for section in SECTIONS for option in own[section]]
        configurations.append(_Configuration(merged(base, own, place), place, named, label))
    return configurations


def _override(configurations: list[_Configuration], text: str) -> None:
    """Set one ``section.option=value`` in every configuration that has the option."""
    place = f"{_SET} {text}"
    key, equals, value_text = text.partition("=")
    if not equals:
        raise ConfigError(place, "", "write it as section.option=value")
    key = key.strip()
    names = {id(c): _option_keys(c) for c in configurations}
    if not any(key in keys for keys in names.values()):
        valid = set().union(*names.values())
        if key == "seed":
            raise ConfigError(place, "", "seeds are set by --seeds")
        # A bare option is most likely meant as the dotted key that ends in it.
        dotted = sorted(k for k in valid if k.partition(".")[2] == key)
        if dotted:
            message = f"unknown option {key!r}; did you mean {dotted[0]!r}?"
            raise ConfigError(place, "", message)
        raise ConfigError(place, "", unknown_option(key, valid, f"unknown option {key!r}"))
    value = parse_yaml(value_text, place)
    section, option = split_key(key, place)
    for configuration in configurations:
        if key in names[id(configuration)]:
            with _blamed_on([text]):
                own = {section: {option: value}}
                configuration.raw = merged(configuration.raw, own, "")


def _option_keys(configuration: _Configuration) -> set[str]:
    keys: set[str] = set()
    for section in SECTIONS:
        name = configuration.raw[section].get("name")
        if section != "training" and not isinstance(name, str):
            continue  # reported when the cell is resolved
        names = option_names(section, name, f"{configuration.where}.{section}")
        keys.update(f"{section}.{option}" for option in names)
    return keys


def _resolved(configuration: _Configuration, base: dict[str, dict[str, Any]], where: str) -> Cell:
    try:
        return resolve_cell(configuration.raw, configuration.where)
    except ConfigError:
        if "name" in base["model"]:
            resolve_cell(base, f"{where}: base")  # what is wrong with the base is said of it
        raise


@contextlib.contextmanager
def _blamed_on(overrides: Sequence[str]) -> Iterator[None]:
    """Have errors that name no place of their own name the overrides, as they were given."""
    try:
        yield
    except ConfigError as error:
        given = " ".join(f"{_SET} {text}" for text in overrides)
        raise error.within(given, ": ") from None


def _groups(
    configurations: Sequence[_Configuration], cells: Sequence[Cell]
) -> tuple[dict[str, Cell], list[str]]:
    """Label → cell, each cell once, and notes about those that were asked for twice."""
    groups: dict[str, Cell] = {}
    labels_by_id: dict[str, str] = {}
    notes = []
    for configuration, cell in zip(configurations, cells, strict=True):
        label = configuration.label or _label(configuration, cell)
        if cell.id in labels_by_id:
            notes.append(f"{configuration.where}: same as {labels_by_id[cell.id]!r}, run once")
            continue
        if label in groups:
            message = (
                f"a second configuration called {label!r}; give one of them a label of its own"
            )
            raise ConfigError(configuration.where, "", message)
        groups[label] = cell
        labels_by_id[cell.id] = label
    return groups, notes


def _label(configuration: _Configuration, cell: Cell) -> str:
    """What tells this configuration from others: ``msvit scales=1,3 data=digits``."""
    parts = [cell.model["name"]]
    last_parts = [key.partition(".")[2] for key in configuration.named]
    for key in configuration.named:
        section, _, option = key.partition(".")
        if key == "model.name":
            continue
        said = {**configuration.raw[section], **getattr(cell, section)}
        if option in said:  # an override may have taken the model that had it
            short = option if last_parts.count(option) == 1 else key
            parts.append(f"{section if option == 'name' else short}={show_value(said[option])}")
    return " ".join(parts)
