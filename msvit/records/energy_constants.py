"""Constants of the energy models: data with sources, which a file of one's own may override.

``energy_constants.yaml`` holds them. :data:`CONSTANTS` are those in force.
"""

from __future__ import annotations

import copy
import reprlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msvit.options import ConfigError, unknown
from msvit.yaml_files import read_yaml

SHIPPED: Mapping[str, dict[str, Any]] = read_yaml(Path(__file__).with_suffix(".yaml"))

CONSTANTS: dict[str, dict[str, Any]] = copy.deepcopy(dict(SHIPPED))
"""By model and name, in picojoule unless the name says otherwise."""

_WORDS = {"integers": ("mac", "ac"), "precision": ("fp32", "fp16", "int8")}
_SIZES = ("weight_bits", "potential_bits", "word_bytes")
_COMPARED = ("quantised_twin.mac", "quantised_twin.ac")
"""One is told in the other, and spikes in both."""


def use_constants(file: Path | None) -> list[str]:
    """Put the constants of ``file`` in force, over those that come with the harness.

    None puts those back alone.

    Returns:
        What is another number than before, such as ``exact_synops.ac = 0.5``.

    Raises:
        ConfigError: for a name that is none and a value that cannot be one.
    """
    given = {} if file is None else read_yaml(file)
    found = copy.deepcopy(dict(SHIPPED))
    changes = _override(found, given, str(file), ())
    CONSTANTS.clear()
    CONSTANTS.update(found)
    return changes


def _override(known: dict[str, Any], given: Any, file: str, path: tuple[str, ...]) -> list[str]:
    place = ".".join(path)
    if not isinstance(given, Mapping):
        raise ConfigError(file, place, f"names and values are needed, not {given!r}")
    changes = []
    for key, value in given.items():
        name = ".".join((*path, str(key)))
        if key not in known:
            what = f"unknown constant {key!r}" if path else f"unknown energy model {key!r}"
            raise ConfigError(file, name, unknown(str(key), known, what))
        if isinstance(known[key], dict):
            changes += _override(known[key], value, file, (*path, str(key)))
            continue
        _check(known[key], value, file, name, str(key))
        if value != known[key]:
            known[key] = value
            changes.append(f"{name} = {value}")
    return changes


def _check(usual: Any, value: Any, file: str, name: str, key: str) -> None:
    if key in _WORDS:
        if value not in _WORDS[key]:
            raise ConfigError(file, name, unknown(str(value), _WORDS[key], f"{value!r} is none"))
    elif isinstance(usual, list):
        same = isinstance(value, list) and len(value) == len(usual) and all(map(_is_amount, value))
        rises = key == "sram_bytes"  # and what an access costs must not fall with it
        if not same or value != sorted(set(value) if rises else value):
            what = "rising numbers" if rises else "numbers that do not fall"
            raise _needed(f"a list of {len(usual)} {what}", value, file, name)
    elif key in _SIZES:
        if not (_is_amount(value) and isinstance(value, int) and value):
            raise _needed("a whole number of at least 1", value, file, name)
    elif not _is_amount(value):
        raise _needed("a number of at least 0 that a float holds", value, file, name)
    elif name in _COMPARED and not value:
        raise _needed("a number above 0", value, file, name)


def _needed(what: str, value: Any, file: str, name: str) -> ConfigError:
    return ConfigError(file, name, f"{what} is needed, not {reprlib.repr(value)}")


def _is_amount(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 <= value <= sys.float_info.max
