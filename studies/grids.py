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
    resources: {gpus: 8}       # optional, of each cell (studies/resources.py); also in an include

Without ``axes`` the base is itself a configuration, unless it leaves the model's name to what
it includes. A configuration's own options replace the base's one by one. Where it names another
model (or data set) than the base, the base's options that the other one also has are inherited,
and those that it does not have are left out; so it is with a neuron (a PSN has no ``tau``), and
with whatever else a choice leaves without effect (``fusion`` beside a single scale). A combination
of the axes is left without those of them that it does not have. What else a configuration sets
itself is never left out, but checked: an option that does nothing is refused.

Two configurations that resolve to the same cell are run once. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from msvit.cells import (
    SECTIONS,
    Cell,
    left_out_of_recipe,
    option_names,
    resolve_cell,
    section_of,
)
from msvit.models import zoo
from msvit.options import ConfigError
from msvit.recipes import read_recipe, unknown_option
from msvit.yaml_files import parse_yaml, read_yaml
from studies.configurations import (
    LONGEST_NAME,
    MAX_CELLS,
    base_of,
    check_text,
    checked_keys,
    find_file,
    list_files,
    merged,
    nested,
    question_of,
    seeds_from,
    seeds_of,
    shown_path,
    split_key,
    varied,
)
from studies.resources import SECTION as RESOURCES
from studies.resources import Resources, check_batch
from studies.study import Study, StudyCell, show_value

_SET = "--set"
_KEYS = ("question", "base", "axes", "include", "seeds", RESOURCES)
_INCLUDE_KEYS = ("label", *SECTIONS, RESOURCES)


@dataclass
class _Configuration:
    """One configuration while it is put together: raw options and where they come from."""

    raw: dict[str, dict[str, Any]]
    where: str
    named: list[str] = field(default_factory=list)  # dotted keys that its label shows
    label: str | None = None
    resources: dict[str, Any] = field(default_factory=dict)


def list_grids() -> list[str]:
    """Names of the grids that come with the harness."""
    return list_files("grid")


def load_study(grid: str, overrides: Sequence[str] = (), seeds: int | None = None) -> Study:
    """Expand ``grid``, the name of a grid of the harness or the path of a YAML file.

    ``overrides`` are ``section.key=value`` texts, values in YAML. An override holds for every
    configuration, after axes and includes; a model that does not have the option is left
    alone as long as another one has it. Those of ``resources`` make no other study: it has the
    same cells. ``seeds`` is how many there are to be, counted from the smallest of the file: a
    grid whose seeds are those that a search left alone keeps off the others.

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
    own_resources = section_of(values, RESOURCES, where)
    configurations = _included(base, values, where)
    if axes or not configurations or "name" in base["model"]:
        configurations = [*_crossed(base, axes, where), *configurations]
    seed_list = seeds_of(values.get("seeds", 1), where)
    if seeds is not None:
        seed_list = seeds_from(min(seed_list), seeds)
    cells = [_resolved(configuration, base, where) for configuration in configurations]
    given = _resources(configurations, own_resources, where)
    on_resources = [text for text in overrides if text.strip().startswith(RESOURCES)]
    overrides = [text for text in overrides if text not in on_resources]
    if on_resources:
        _check_once(on_resources)
        given = _override_resources(given, on_resources)
    if overrides:  # the file is right as it is: what is wrong from here on is in them
        _check_once(overrides)
        _override(configurations, overrides)
        with _blamed_on(overrides):
            cells = [resolve_cell(configuration.raw, "") for configuration in configurations]
    for configuration, cell, resources in zip(configurations, cells, given, strict=True):
        with _blamed_on(on_resources) if on_resources else contextlib.nullcontext():
            check_batch(cell, resources, "" if on_resources else configuration.where)
    groups, notes = _groups(configurations, cells)
    resources_of = {cell.id: own for cell, own in reversed(list(zip(cells, given, strict=True)))}
    if len(groups) * len(seed_list) > MAX_CELLS:
        raise ConfigError(where, "", f"more than {MAX_CELLS} cells")
    return Study(
        name=_name(path.stem, overrides),
        question=question,
        grid_file=shown_path(path),
        axes=tuple(axes),
        cells=tuple(
            StudyCell(
                Cell(cell.model, cell.data, cell.training, seed), group, resources_of[cell.id]
            )
            for group, cell in groups.items()
            for seed in seed_list
        ),
        overrides=tuple(overrides),
        notes=(*notes, *_notes_on_recipes(configurations, cells)),
    )


def _notes_on_recipes(
    configurations: Sequence[_Configuration], cells: Sequence[Cell]
) -> Iterator[str]:
    """Where a recipe is used otherwise than it was made for, and what is then left out of it."""
    said = set()
    for configuration, cell in zip(configurations, cells, strict=True):
        recipe = configuration.raw["training"].get("recipe")
        if recipe is None:
            continue
        model = cell.model["name"]
        made = read_recipe(recipe)
        note = made.note(model, zoo()[model]["architecture"], cell.data["name"])
        start = cell.training.get("start_from")
        further = made.further_notes(cell.model.get("timesteps", 1), start)
        left_out = left_out_of_recipe(configuration.raw)
        parts = (
            f"recipe {recipe}: {option} is left out: {why}" for option, why in left_out.items()
        )
        for sentence in (note, *further, *parts):
            if sentence is not None and sentence not in said:
                said.add(sentence)
                yield sentence


def _name(grid: str, overrides: Sequence[str]) -> str:
    """Of the study, and so of its folder: ``scales``, ``scales+training.epochs=3``.

    What is changed on the command line is another study, beside the grid's own.
    """
    parts = (re.sub(r"[^\w.,=-]", "", text, flags=re.ASCII) for text in sorted(overrides))
    name = "+".join((grid, *parts))
    if len(name) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: LONGEST_NAME - 9]}-{digest}"


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
    place = f"{where}: axes" if axes else f"{where}: base"
    combinations = [
        dict(zip(axes, values, strict=True))
        for values in itertools.islice(itertools.product(*axes.values()), MAX_CELLS + 1)
    ]
    if len(combinations) > MAX_CELLS:
        raise ConfigError(where, "axes", f"more than {MAX_CELLS} combinations", ": ")
    had = [_keys(varied(base, nested(own, place), place)) for own in combinations]
    somewhere = set().union(*had)
    configurations = []
    for own, here in zip(combinations, had, strict=True):
        # An axis that no combination has is left in, to be refused.
        own = {key: value for key, value in own.items() if key in here or key not in somewhere}
        raw = merged(base, nested(own, place), place)
        configurations.append(_Configuration(raw, place, list(axes)))
    return configurations


def _keys(raw: Mapping[str, Mapping[str, Any]]) -> set[str]:
    return {f"{section}.{option}" for section, options in raw.items() for option in options}


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
        if label is not None:
            check_text(label, f"{place}.label", LONGEST_NAME)
        own = {section: section_of(entry, section, place) for section in SECTIONS}
        named = [f"{section}.{option}" for section in SECTIONS for option in own[section]]
        resources = section_of(entry, RESOURCES, place)
        raw = merged(base, own, place)
        configurations.append(_Configuration(raw, place, named, label, resources))
    return configurations


def _resources(
    configurations: Sequence[_Configuration], shared: Mapping[str, Any], where: str
) -> list[Resources]:
    """Of every configuration: its own over those that all share."""
    Resources.parse(shared, f"{where}: {RESOURCES}")
    return [
        Resources.parse({**shared, **c.resources}, f"{c.where}.{RESOURCES}") for c in configurations
    ]


def _override_resources(given: Sequence[Resources], overrides: Sequence[str]) -> list[Resources]:
    own = {}
    for text in overrides:
        place = f"{_SET} {text}"
        key, equals, value = text.partition("=")
        section, dot, option = key.strip().partition(".")
        if not (equals and dot and section == RESOURCES):
            raise ConfigError(place, "", f"write it as {RESOURCES}.OPTION=VALUE")
        own[option] = parse_yaml(value, place)
    with _blamed_on(overrides):
        return [Resources.parse({**before.model_dump(), **own}, RESOURCES) for before in given]


def _override(configurations: list[_Configuration], overrides: Sequence[str]) -> None:
    """Set what ``overrides`` say in every configuration that has the option, all of it at once.

    What only one of them gives a meaning (``model.tau`` beside ``model.neuron``) has it in any
    order.
    """
    own = {}
    for text in overrides:
        place = f"{_SET} {text}"
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(place, "", "write it as section.option=value")
        own[key.strip()] = (parse_yaml(value, place), place)
    names = {key: value for key, (value, _) in own.items() if key.endswith(".name")}
    with _blamed_on(overrides):
        renamed = [merged(c.raw, nested(names, ""), "") for c in configurations]
    known = [_option_keys(raw, c.where) for raw, c in zip(renamed, configurations, strict=True)]
    for key, (_, place) in own.items():
        if not any(key in keys for keys in known):
            _refuse(key, set().union(*known), place)
    values = {key: value for key, (value, _) in own.items()}
    with _blamed_on(overrides):
        had: list[set[str]] = []
        for keys, c in zip(known, configurations, strict=True):
            known_here = {key: value for key, value in values.items() if key in keys}
            had.append(_keys(varied(c.raw, nested(known_here, ""), "")))
        somewhere = set().union(*had)
        for keys, own_keys, c in zip(known, had, configurations, strict=True):
            taken = {k: v for k, v in values.items() if k in own_keys or k in keys - somewhere}
            c.raw = merged(c.raw, nested(taken, ""), "")


def _refuse(key: str, valid: set[str], place: str) -> NoReturn:
    """An option that no configuration has."""
    if key == "seed":
        raise ConfigError(place, "", "seeds are set by --seeds")
    if key in SECTIONS:
        naming = f"{key}.recipe" if key == "training" else f"{key}.name"
        message = f"{key!r} is a section of options; did you mean {naming!r}?"
        raise ConfigError(place, "", message)
    # A bare option is most likely meant as the dotted key that ends in it.
    dotted = sorted(k for k in valid if k.partition(".")[2] == key)
    if dotted:
        message = f"unknown option {key!r}; did you mean {dotted[0]!r}?"
        raise ConfigError(place, "", message)
    raise ConfigError(place, "", unknown_option(key, valid, f"unknown option {key!r}"))


def _option_keys(raw: Mapping[str, Mapping[str, Any]], where: str) -> set[str]:
    keys: set[str] = set()
    for section in SECTIONS:
        name = raw[section].get("name")
        if section != "training" and not isinstance(name, str):
            keys.add(f"{section}.name")  # of which more is said when the cell is resolved
            continue
        names = option_names(section, name, f"{where}.{section}")
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
