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

Without ``axes`` the base is itself a configuration. A configuration's own options replace
the base's one by one. Where it names another model (or data set) than the base, the base's
options that the other one also has are inherited, and those that it does not have are left
out; what a configuration sets itself is never left out, but checked.

Two configurations that resolve to the same cell are run once. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msvit.cells import MAX_SEED, SECTIONS, Cell, option_names, resolve_cell, section_of
from msvit.options import ConfigError, unknown
from msvit.yaml_files import parse_yaml, read_yaml
from studies.study import Study, StudyCell, show_value

GRIDS = Path(__file__).resolve().parent / "grids"
MAX_CELLS = 100_000  # beyond this a grid is a typing error

_SET = "--set"
_KEYS = ("question", "base", "axes", "include", "seeds")
_INCLUDE_KEYS = ("label", *SECTIONS)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass
class _Configuration:
    """One configuration while it is put together: raw options and where they come from."""

    raw: dict[str, dict[str, Any]]
    where: str
    named: list[str] = field(default_factory=list)  # dotted keys that its label shows
    label: str | None = None


def list_grids() -> list[str]:
    """Names of the grids that come with the harness."""
    return sorted(path.stem for path in GRIDS.glob("*.yaml"))


def load_study(grid: str, overrides: Sequence[str] = (), seeds: int | None = None) -> Study:
    """Expand ``grid``, the name of a grid of the harness or the path of a YAML file.

    ``overrides`` are ``section.key=value`` texts, values in YAML. An override holds for every
    configuration, after axes and includes; a model that does not have the option is left
    alone as long as another one has it. ``seeds`` replaces the file's seeds by 0 … seeds - 1.

    Raises:
        ConfigError: for whatever could not be run, naming the file, the key and the nearest
            valid choice.
    """
    path = _find(grid)
    where = path.name
    values = _checked_keys(read_yaml(path), _KEYS, where)
    question = values.get("question")
    if not isinstance(question, str) or not question.strip():
        raise ConfigError(f"{where}: question: a sentence is needed (got {question!r})")
    base = _base(values.get("base"), where)
    axes = _axes(values.get("axes"), where)
    configurations = [*_crossed(base, axes, where), *_included(base, values, where)]
    seed_list = _seeds(values.get("seeds", 1) if seeds is None else seeds, where)
    cells = [_resolved(configuration, base, where) for configuration in configurations]
    if overrides:  # the file is right as it is: what is wrong from here on is in them
        for override in overrides:
            _override(configurations, override)
        with _blamed_on(overrides):
            cells = [resolve_cell(configuration.raw, _SET) for configuration in configurations]
    groups, notes = _groups(configurations, cells)
    if len(groups) * len(seed_list) > MAX_CELLS:
        raise ConfigError(f"{where}: more than {MAX_CELLS} cells")
    return Study(
        name=path.stem,
        question=" ".join(question.split()),
        grid_file=_shown(path),
        axes=tuple(axes),
        cells=tuple(
            StudyCell(Cell(cell.model, cell.data, cell.training, seed), group)
            for group, cell in groups.items()
            for seed in seed_list
        ),
        overrides=tuple(overrides),
        notes=tuple(notes),
    )


def _find(grid: str) -> Path:
    """The file of ``grid``; whatever looks like a path is one."""
    if grid.endswith((".yaml", ".yml")) or os.sep in grid:
        path = Path(grid)
        if not path.is_file():
            raise ConfigError(f"{grid}: no such grid file")
    else:
        if grid not in list_grids():
            raise ConfigError(unknown(grid, list_grids(), f"--grid: unknown grid {grid!r}"))
        path = GRIDS / f"{grid}.yaml"
    if not _NAME.fullmatch(path.stem):
        raise ConfigError(
            f"{grid}: the file's name names the study: letters, digits, '.', '_', '-' only"
        )
    return path


def _shown(path: Path) -> str:
    """Built-in grids by their place in the repository, others as they were given."""
    return f"studies/grids/{path.name}" if path.parent == GRIDS else str(path)


def _checked_keys(values: Any, valid: Iterable[str], where: str) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: a mapping is needed (got {values!r})")
    for key in values:
        if key not in valid:
            raise ConfigError(unknown(key, valid, f"{where}: {key}: unknown key"))
    return dict(values)


def _base(values: Any, where: str) -> dict[str, dict[str, Any]]:
    place = f"{where}: base"
    values = _checked_keys({} if values is None else values, SECTIONS, place)
    base = {section: section_of(values, section, place) for section in SECTIONS}
    for section, options in base.items():
        # The options of a base that no configuration uses as it is are checked here.
        if section == "training" or isinstance(options.get("name"), str):
            known = option_names(section, options.get("name"), f"{place}.{section}")
            for key in options:
                if key not in known:
                    message = f"{place}.{section}.{key}: unknown option"
                    raise ConfigError(unknown(key, known, message))
    return base


def _axes(values: Any, where: str) -> dict[str, list[Any]]:
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: axes: a mapping of keys to lists is needed (got {values!r})")
    for key, choices in values.items():
        place = f"{where}: axes.{key}"
        if key == "seed":
            raise ConfigError(f"{place}: seeds are given by the key 'seeds'")
        _split(str(key), place)
        if not isinstance(choices, list) or not choices:
            raise ConfigError(f"{place}: a list of values is needed (got {choices!r})")
    return dict(values)


def _split(key: str, where: str) -> tuple[str, str]:
    """``model.scales`` → section and option."""
    section, dot, option = key.partition(".")
    if section not in SECTIONS:
        raise ConfigError(unknown(section, SECTIONS, f"{where}: unknown section {section!r}"))
    if not dot or not option:
        raise ConfigError(f"{where}: write it as {section}.OPTION")
    return section, option


def _crossed(
    base: dict[str, dict[str, Any]], axes: dict[str, list[Any]], where: str
) -> list[_Configuration]:
    """The product of the axes over the base; the first axis varies slowest."""
    configurations = []
    place = f"{where}: axes" if axes else f"{where}: base"
    for values in itertools.product(*axes.values()):
        own: dict[str, dict[str, Any]] = {}
        for key, value in zip(axes, values, strict=True):
            section, option = _split(key, place)
            own.setdefault(section, {})[option] = value
        configurations.append(_Configuration(_merged(base, own, place), place, list(axes)))
        if len(configurations) > MAX_CELLS:
            raise ConfigError(f"{where}: axes: more than {MAX_CELLS} combinations")
    return configurations


def _included(
    base: dict[str, dict[str, Any]], values: Mapping[str, Any], where: str
) -> list[_Configuration]:
    entries = values.get("include") or []
    if not isinstance(entries, list):
        raise ConfigError(f"{where}: include: a list is needed (got {entries!r})")
    configurations = []
    for index, entry in enumerate(entries):
        place = f"{where}: include[{index}]"
        entry = _checked_keys(entry, _INCLUDE_KEYS, place)
        label = entry.pop("label", None)
        if label is not None and (not isinstance(label, str) or not label.strip()):
            raise ConfigError(f"{place}.label: a text is needed (got {label!r})")
        own = {section: section_of(entry, section, place) for section in SECTIONS}
        named = [f"{section}.{option}" for section in SECTIONS for option in own[section]]
        configurations.append(_Configuration(_merged(base, own, place), place, named, label))
    return configurations


def _merged(
    base: Mapping[str, Mapping[str, Any]], own: Mapping[str, Mapping[str, Any]], where: str
) -> dict[str, dict[str, Any]]:
    """``own`` over ``base``; another model or data set inherits the options that it also has."""
    merged = {}
    for section in SECTIONS:
        inherited = dict(base[section])
        options = own.get(section, {})
        name = options.get("name", inherited.get("name"))
        if section != "training" and "name" in inherited and name != inherited["name"]:
            known = option_names(section, name, f"{where}.{section}")
            inherited = {key: value for key, value in inherited.items() if key in known}
        merged[section] = {**inherited, **options}
    return merged


def _override(configurations: list[_Configuration], text: str) -> None:
    """Set one ``section.option=value`` in every configuration that has the option."""
    place = f"{_SET} {text}"
    key, equals, value_text = text.partition("=")
    if not equals:
        raise ConfigError(f"{place}: write it as section.option=value")
    key = key.strip()
    names = {id(c): _option_keys(c) for c in configurations}
    if not any(key in keys for keys in names.values()):
        valid = set().union(*names.values())
        if key == "seed":
            raise ConfigError(f"{place}: seeds are set by --seeds")
        # A bare option is most likely meant as the dotted key that ends in it.
        dotted = sorted(k for k in valid if k.partition(".")[2] == key)
        if dotted:
            raise ConfigError(f"{place}: unknown option {key!r}; did you mean {dotted[0]!r}?")
        raise ConfigError(unknown(key, valid, f"{place}: unknown option {key!r}"))
    value = parse_yaml(value_text, place)
    section, option = _split(key, place)
    for configuration in configurations:
        if key in names[id(configuration)]:
            with _blamed_on([text]):
                own = {section: {option: value}}
                configuration.raw = _merged(configuration.raw, own, _SET)


def _option_keys(configuration: _Configuration) -> set[str]:
    keys = set()
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
        resolve_cell(base, f"{where}: base")  # what is wrong with the base is said of the base
        raise


@contextlib.contextmanager
def _blamed_on(overrides: Sequence[str]) -> Iterator[None]:
    """Have errors of the place :data:`_SET` show the overrides as they were given."""
    try:
        yield
    except ConfigError as error:
        given = " ".join(f"{_SET} {text}" for text in overrides)
        lines = [f"{given}: {line.removeprefix(f'{_SET}.')}" for line in str(error).splitlines()]
        raise ConfigError("\n".join(lines)) from None


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
            raise ConfigError(
                f"{configuration.where}: a second configuration called {label!r}; "
                "give one of them a label of its own"
            )
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
        value = getattr(cell, section).get(option, configuration.raw[section].get(option))
        if value is not None:
            short = option if last_parts.count(option) == 1 else key
            parts.append(f"{section if option == 'name' else short}={show_value(value)}")
    return " ".join(parts)


def _seeds(values: Any, where: str) -> list[int]:
    place = f"{where}: seeds"
    if isinstance(values, int) and not isinstance(values, bool):
        if values < 1:
            raise ConfigError(f"{place}: at least one is needed (got {values})")
        if values > MAX_CELLS:
            raise ConfigError(f"{place}: more than {MAX_CELLS}; to name one seed write [{values}]")
        return list(range(values))
    if not isinstance(values, list) or not values:
        raise ConfigError(f"{place}: a number or a list of integers is needed (got {values!r})")
    for seed in values:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
            raise ConfigError(f"{place}: integers from 0 to {MAX_SEED} are needed (got {seed!r})")
        if values.count(seed) > 1:
            raise ConfigError(f"{place}: {seed} appears twice")
    return list(values)
