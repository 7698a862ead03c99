"""The model zoo: names, their options, and how to make one.

An architecture is a file in this folder with ``build(options)``; a named size is an entry of
``zoo.yaml`` over one architecture. Neither importing this package nor checking options
imports torch; :func:`create_model` does.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msvit.models.options import OPTIONS, ModelOptions
from msvit.options import ConfigError, unknown
from msvit.yaml_files import read_yaml

if TYPE_CHECKING:
    from msvit.models.base import Model


@cache
def zoo() -> dict[str, dict[str, Any]]:
    """Every registry entry: ``architecture``, ``options``, and published facts about it."""
    return read_yaml(Path(__file__).with_name("zoo.yaml"))


def list_models(pattern: str = "*") -> list[str]:
    """Registry names that match a shell pattern such as ``"msvit*"``, sorted."""
    return sorted(fnmatch.filter(zoo(), pattern))


def model_options(name: str, options: Mapping[str, Any], where: str = "model") -> ModelOptions:
    """The options of model ``name``: its own, overridden by ``options``, all defaults filled in.

    Raises:
        ConfigError: for an unknown name or option, a bad value, impossible geometry, or an option
            that is set without effect.
    """
    if name not in zoo():
        raise ConfigError(where, "name", unknown(name, zoo(), f"unknown model {name!r}"))
    entry = zoo()[name]
    usual = entry.get("options", {})
    return OPTIONS[entry["architecture"]].parse(options, f"{where} ({name})", defaults=usual)


def options_without_effect(name: str, options: Mapping[str, Any]) -> dict[str, str]:
    """Options of model ``name`` that do nothing beside ``options`` (unchecked), and why."""
    entry = zoo()[name]
    values = {**entry.get("options", {}), **options}
    return OPTIONS[entry["architecture"]].without_effect(values)


def create_model(name: str, **options: Any) -> Model:
    """Build model ``name``, for instance ``create_model("msvit_cifar10", scales=(1, 3, 5))``.

    The model maps images ``[B, C, H, W]`` or events ``[T, B, C, H, W]`` to logits per time
    step ``[T, B, num_classes]`` and starts from rest in every forward.

    Raises:
        ConfigError: see :func:`model_options`.
    """
    parsed = model_options(name, options)
    architecture = zoo()[name]["architecture"]
    return import_module(f"msvit.models.{architecture}").build(parsed)
