"""What grid files and search spaces have in common: where they are, a base, options over it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from msvit.cells import MAX_SEED, SECTIONS, option_names, section_of, without_effect
from msvit.models.options import OPTIONS
from msvit.options import ConfigError, below, unknown
from msvit.recipes import unknown_option

_FOLDER = Path(__file__).resolve().parent
MAX_CELLS = 100_000  # beyond this a study is a typing error
LONGEST_NAME = 100  # of a folder, where file systems take 255 bytes; and of a row of a table
_LONGEST_QUESTION = 500
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

Raw = dict[str, dict[str, Any]]
"""A configuration as written: section → options, not checked and without defaults."""


def list_files(kind: str) -> list[str]:
    """Names of the files of a ``kind`` ("grid" or "space") that come with the harness."""
    return sorted(path.stem for path in (_FOLDER / f"{kind}s").glob("*.yaml"))


def find_file(kind: str, given: str) -> Path:
    """The file of a built-in name, or of a path; whatever looks like a path is one."""
    if given.endswith((".yaml", ".yml")) or os.sep in given:
        path = Path(given)
        if not there(path, Path.is_file):
            raise ConfigError(given, "", f"no such {kind} file")
    else:
        names = list_files(kind)
        if given not in names:
            raise ConfigError(f"--{kind}", "", unknown(given, names, f"unknown {kind} {given!r}"))
        path = _FOLDER / f"{kind}s" / f"{given}.yaml"
    check_name(path.stem, f"{given}: the file's name names the study")
    return path


def there(path: Path, kind: Callable[[Path], bool]) -> bool:
    """Whether there is something of that ``kind`` (``Path.is_file``); no if no path can be so."""
    try:
        return kind(path)
    except OSError:  # a name that is too long, a folder without rights
        return False


def check_data_dir(path: Path | None) -> None:
    """What was given as ``--data-dir`` is a folder."""
    if path is not None and not there(path, Path.is_dir):
        raise ConfigError(f"--data-dir {path}", "", "no such folder")


def check_name(name: str, where: str) -> None:
    """Names become folders."""
    if not _NAME.fullmatch(name):
        raise ConfigError(where, "", "letters, digits, '.', '_', '-' only")
    if len(name) > LONGEST_NAME:
        raise ConfigError(where, "", f"more than {LONGEST_NAME} characters")


def check_text(text: str, where: str, longest: int) -> None:
    """What is shown in terminals, tables and figures fits there and moves no cursor."""
    if not text.isprintable():
        raise ConfigError(where, "", f"control characters cannot be shown (got {text[:40]!r})")
    if len(text) > longest:
        raise ConfigError(where, "", f"{len(text)} characters, more than {longest}")


def shown_path(path: Path) -> str:
    """Built-in files by their place in the repository, others by their whole path."""
    if path.parent.parent == _FOLDER:
        return f"studies/{path.parent.name}/{path.name}"
    return str(path.resolve())


def question_of(values: Mapping[str, Any], where: str) -> str:
    question = values.get("question")
    if not isinstance(question, str) or not question.strip():
        raise ConfigError(where, "question", f"a sentence is needed (got {question!r})", ": ")
    question = " ".join(question.split())
    check_text(question, f"{where}: question", _LONGEST_QUESTION)
    return question


def checked_keys(values: Any, valid: Iterable[str], where: str) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise ConfigError(where, "", f"a mapping is needed (got {values!r})")
    for key in values:
        if key not in valid:
            raise ConfigError(where, str(key), unknown(key, valid, "unknown key"), ": ")
    return dict(values)


def base_of(values: Any, where: str) -> Raw:
    place = f"{where}: base"
    values = checked_keys({} if values is None else values, SECTIONS, place)
    base = {section: section_of(values, section, place) for section in SECTIONS}
    for section, options in base.items():
        # The options of a base that no configuration uses as it is are checked here.
        if section == "training" or isinstance(options.get("name"), str):
            known = option_names(section, options.get("name"), f"{place}.{section}")
            for key in options:
                if key not in known:
                    message = unknown_option(key, known)
                    raise ConfigError(place, f"{section}.{key}", message)
    return base


def split_key(key: str, where: str) -> tuple[str, str]:
    """``model.scales`` → section and option."""
    section, dot, option = key.partition(".")
    if section not in SECTIONS:
        raise ConfigError(where, "", unknown(section, SECTIONS, f"unknown section {section!r}"))
    if not dot or not option:
        raise ConfigError(where, "", f"write it as {section}.OPTION")
    return section, option


def nested(values: Mapping[str, Any], where: str) -> Raw:
    """``{"model.scales": [1]}`` as a configuration."""
    result: Raw = {}
    for key, value in values.items():
        section, option = split_key(key, where)
        result.setdefault(section, {})[option] = value
    return result


def merged(
    base: Mapping[str, Mapping[str, Any]], own: Mapping[str, Mapping[str, Any]], where: str
) -> Raw:
    """``own`` over ``base``; inherited is what has its meaning beside ``own`` as well.

    Another model or data set inherits the options that it also has, another neuron those that it
    reads, and so on. What had no effect in the base itself stays, to be refused.
    """
    result = {}
    for section in SECTIONS:
        inherited = dict(base[section])
        options = own.get(section, {})
        name = options.get("name", inherited.get("name"))
        other = isinstance(name, str) and name != inherited.get("name", name)
        if section != "training" and other:
            known = option_names(section, name, below(where, section))
            inherited = {key: value for key, value in inherited.items() if key in known}
        in_vain = without_effect(section, {**inherited, **options})
        before = _without_effect_in(section, base[section]) if in_vain else set()
        result[section] = {
            key: value
            for key, value in {**inherited, **options}.items()
            if key in options or key in before or key not in in_vain
        }
    return result


def _without_effect_in(section: str, base: Mapping[str, Any]) -> set[str]:
    """Options of a ``base`` that do nothing in it, whichever model it is for if it names none."""
    if section != "model" or "name" in base:
        return set(without_effect(section, base))
    found = [
        set(without_effect(section, {"name": model, **base}))
        for model in OPTIONS
        if base.keys() <= set(option_names(section, model, ""))
    ]
    return set.intersection(*found) if found else set()


def varied(
    base: Mapping[str, Mapping[str, Any]], own: Mapping[str, Mapping[str, Any]], where: str
) -> Raw:
    """``own``, chosen from a product of options, without those that its combination does not have.

    ``[lif, psn]`` times three values of ``tau`` are four configurations: a PSN has no tau.
    """
    whole = merged(base, own, where)
    result = {}
    for section, options in own.items():
        in_vain = without_effect(section, whole[section])
        name = whole[section].get("name")
        named = section == "training" or isinstance(name, str)  # else told when it is resolved
        known = option_names(section, name, below(where, section)) if named else options
        result[section] = {k: v for k, v in options.items() if k in known and k not in in_vain}
    return result


def seeds_of(values: Any, where: str) -> list[int]:
    """Seeds from a number of them or a list."""

    def wrong(message: str) -> ConfigError:
        return ConfigError(where, "seeds", message, ": ")

    if isinstance(values, int) and not isinstance(values, bool):
        if values < 1:
            raise wrong(f"at least one is needed (got {values})")
        if values > MAX_CELLS:
            raise wrong(f"more than {MAX_CELLS}; to name one seed write [{values}]")
        return list(range(values))
    if not isinstance(values, list) or not values:
        raise wrong(f"a number or a list of integers is needed (got {values!r})")
    for seed in values:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
            raise wrong(f"integers from 0 to {MAX_SEED} are needed (got {seed!r})")
        if values.count(seed) > 1:
            raise wrong(f"{seed} appears twice")
    return list(values)


def seeds_from(first: int, number: int) -> list[int]:
    """What ``--seeds`` asks for: so many, from the ``first`` on."""
    most = min(MAX_CELLS, MAX_SEED + 1 - first)
    if number > most:
        raise ConfigError(f"--seeds {number}", "", f"more than {most}, counted from {first}")
    return list(range(first, first + number))
