"""YAML as people write it: version 1.2, whose words and numbers are what they look like.

``010`` is ten and ``1:30`` a text, where YAML 1.1 reads 8 and 90; ``1e-3`` is a number; ``yes``,
``no``, ``on`` and ``off`` are texts. A repeated key is an error instead of silently overwriting the
first one. Grids, spaces, recipes, the zoo and command-line values are read here, and what is
written here is read as it was.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any, ClassVar

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import SafeRepresenter
from ruamel.yaml.resolver import VersionedResolver

from msvit.options import ConfigError

_MAX_BYTES = 1_000_000
_MAX_VALUES = 200_000

_DIGITS = "[0-9]+(?:_[0-9]+)*"
_SCALARS = {  # the core schema; and 1_000, as in other languages
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": rf"[-+]?{_DIGITS}|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": rf"[-+]?(?:\.[0-9]+|{_DIGITS}(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
    "merge": r"<<",
}


class _Resolver(VersionedResolver):
    """Which plain scalars are no texts; ruamel's own patterns miss ``.5e1`` and take dates."""

    processing_version = (1, 2)  # whatever a file claims to be
    versioned_resolver: ClassVar[dict[Any, Any]] = {
        None: [
            (f"tag:yaml.org,2002:{kind}", re.compile(f"(?:{pattern})$"))
            for kind, pattern in _SCALARS.items()
        ]
    }


class _Constructor(SafeConstructor):
    def check_mapping_key(
        self, node: Any, key_node: Any, mapping: Any, key: Any, value: Any
    ) -> bool:
        if not isinstance(key_node, ScalarNode):
            problem = f"a key is one word, not {key!r}"
        elif key in mapping:
            problem = f"key {key!r} appears twice"
        else:
            return True
        raise MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)


class _Representer(SafeRepresenter):
    def ignore_aliases(self, data: Any) -> bool:
        return True  # what appears twice is written out twice


def _yaml() -> YAML:
    """A fresh one: it keeps state."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Resolver, yaml.Constructor, yaml.Representer = _Resolver, _Constructor, _Representer
    return yaml


def parse_yaml(text: str, where: str) -> Any:
    """The plain value in ``text``; ``where`` (a file name, an option) opens error messages.

    Raises:
        ConfigError: where ``text`` is no YAML or repeats a key, with its line, or holds too much.
    """
    try:
        value = _yaml().load(text)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1} " if mark and "\n" in text.strip() else ""
        problem = getattr(error, "problem", None) or str(error)
        problem = " ".join(problem.split())
        raise ConfigError(where, "", f"{line}not valid YAML: {problem}") from None
    except RecursionError:
        raise ConfigError(where, "", "brackets or blocks nested too deeply") from None
    except (AttributeError, LookupError, TypeError, ValueError) as error:  # such as !!int abc
        raise ConfigError(where, "", f"not valid YAML: {error}") from None
    _check_finite(value, where)
    return value


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


def write_yaml(value: Any) -> str:
    """``value``, of plain types, as YAML: short lists and mappings on one line."""
    yaml: Any = _yaml()
    yaml.default_flow_style, yaml.width = None, 96
    yaml.sort_base_mapping_type_on_output = False
    text = io.StringIO()
    yaml.dump(value, text)
    return text.getvalue()
