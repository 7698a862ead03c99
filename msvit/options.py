"""Options that reject what they do not know.

Every configuration of the harness (model, data, training, grid) is an :class:`Options`
subclass. A wrong key or value ends in one :class:`ConfigError` line that names the place,
the key and the nearest valid choice. Nothing here imports torch, so that configurations
are checked before anything expensive starts.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError


class ConfigError(ValueError):
    """A configuration that cannot be used; the message says where, what and what would be right."""


class Options(BaseModel):
    """Base of all option sets: frozen, strict (``"3"`` is no number), unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str) -> Self:
        """Validate ``values`` as they come from YAML, JSON or keywords.

        ``where`` opens every error message, such as ``"scales.yaml: base.model"``.

        Raises:
            ConfigError: for an unknown key, a wrong type or an impossible value.
        """
        try:
            # Through JSON, strict validation still takes lists for tuples.
            return cls.model_validate_json(json.dumps(dict(values)), strict=True)
        except ValidationError as error:
            lines = [cls._explain(e, where) for e in error.errors()]
            raise ConfigError("\n".join(lines)) from None
        except TypeError as error:
            raise ConfigError(f"{where}: not a plain value ({error})") from None

    @classmethod
    def _explain(cls, error: Mapping[str, Any], where: str) -> str:
        path = ".".join(str(part) for part in error["loc"])
        key = f"{where}.{path}" if path else where
        if error["type"] == "extra_forbidden":
            return unknown(error["loc"][-1], cls._fields_at(error["loc"]), f"{key}: unknown option")
        message = error["msg"].removeprefix("Value error, ")
        if error["type"] == "literal_error" and isinstance(error["input"], str):
            valid = cls._choices_at(error["loc"])
            return unknown(error["input"], valid, f"{key}: unknown value {error['input']!r}")
        shown = "" if error["type"] == "value_error" else f" (got {error['input']!r})"
        return f"{key}: {message[0].lower()}{message[1:]}{shown}"

    @classmethod
    def _fields_at(cls, loc: tuple[Any, ...]) -> list[str]:
        """Option names valid at the place of an unknown key, nested option sets included."""
        options: Any = cls
        for part in loc[:-1]:
            field = options.model_fields.get(part)
            inner = [t for t in (field.annotation, *get_args(field.annotation)) if _is_options(t)]
            if not inner:
                return []
            options = inner[0]
        return list(options.model_fields)

    @classmethod
    def _choices_at(cls, loc: tuple[Any, ...]) -> list[str]:
        options: Any = cls
        for part in loc[:-1]:
            field = options.model_fields.get(part) if _is_options(options) else None
            options = field.annotation if field else None
        field = options.model_fields.get(loc[-1]) if _is_options(options) else None
        if field is None:
            return []
        # Of Literal["a", "b"], and of the same where None is valid as well.
        kinds = (field.annotation, *get_args(field.annotation))
        choices = [choice for kind in kinds for choice in get_args(kind)]
        null = ["null"] if type(None) in choices else []
        return [choice for choice in choices if isinstance(choice, str)] + null


def _is_options(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Options)


def unknown(name: Any, valid: Iterable[str], message: str) -> str:
    """``message`` plus the nearest of the ``valid`` names, where one is near, and all of them."""
    valid = sorted(valid)
    near = difflib.get_close_matches(str(name), valid, n=1, cutoff=0.5)
    if near:
        return f"{message}; did you mean {near[0]!r}? (valid: {', '.join(valid)})"
    return f"{message}; valid: {', '.join(valid)}" if valid else message
