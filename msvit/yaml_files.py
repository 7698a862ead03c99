"""YAML as people write it.

Plain PyYAML takes ``1e-3`` for a string and lets a repeated key silently overwrite the
first one. Both turn into experiments that are not what their author wrote, so grids,
recipes and command-line values are read through this loader.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from msvit.options import ConfigError

_MAX_BYTES = 1_000_000
_MAX_VALUES = 200_000


class _Loader(yaml.SafeLoader):
    """Safe loader with YAML 1.2 numbers and without repeated keys."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"key {key.value!r} appears twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def parse_yaml(text: str, where: str) -> Any:
    """The plain value in ``text``; ``where`` (a file name, an option) opens error messages.

    Raises:
        ConfigError: where ``text`` is no YAML or repeats a key, with its line.
    """
    try:
        value = yaml.load(text, Loader=_Loader)
        _check_finite(value, where)
        return value
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1} " if mark and "\n" in text.strip() else ""
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(where, "", f"{line}not valid YAML: {problem}") from None
    except RecursionError:
        raise ConfigError(where, "", "brackets or blocks nested too deeply") from None


def _check_finite(value: Any, where: str) -> None:
    """Refuse anchors that hold themselves, or repeat each other until no memory is left."""
    rest, seen = [value], 0
    while rest:
        value = rest.pop()
        if isinstance(value, list | dict):
            rest += value if isinstance(value, list) else value.values()
        seen += 1
        if seen + len(rest) > _MAX_VALUES:
            raise ConfigError(where, "", f"more than {_MAX_VALUES} values, anchors written out")


def read_yaml(path: Path) -> Any:
    """The plain value in the file at ``path``.

    Raises:
        ConfigError: where the file cannot be read or is no YAML.
    """
    try:
        if (size := path.stat().st_size) > _MAX_BYTES:
            raise ConfigError(str(path), "", f"{size / 1e6:.1f} MB, more than a configuration has")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(str(path), "", f"cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigError(str(path), "", "not UTF-8 text; save it as UTF-8") from None
    return parse_yaml(text, str(path))
