"""Options that reject what they do not know.

Every configuration of the harness (model, data, training, grid) is an :class:`Options`
subclass. A wrong key or value ends in one :class:`ConfigError` line that names the place,
the key and the nearest valid choice. Nothing here imports torch, so that configurations
are checked before anything expensive starts.

Errors are kept in parts until they are shown: whoever reads a file or the command line adds the
place with :meth:`ConfigError.within`, and no text is taken apart again.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a configuration; as text, one line.

    ``where`` is the place as its reader calls it (``"scales.yaml: base"``, ``"--address here"``,
    empty where there is only one), ``key`` the dotted option below it (empty: the place itself),
    ``message`` what is wrong and what would be right. ``joint`` stands between where and key:
    a dot, or ``": "`` behind the name of a file or of an option of the command line.
    """

    where: str
    key: str
    message: str
    joint: str = "."

    @property
    def place(self) -> str:
        """``where`` and ``key`` in one, as the text shows them."""
        return below(self.where, self.key, self.joint)

    def __str__(self) -> str:
        return f"{self.place}: {self.message}" if self.place else self.message


class ConfigError(ValueError):
    """A configuration that cannot be used: one :class:`Problem` or several, a line each."""

    def __init__(self, where: str, key: str, message: str, joint: str = ".") -> None:
        super().__init__(where, key, message, joint)  # what a copy of it is made of, by pickle
        self.problems: tuple[Problem, ...] = (Problem(where, key, message, joint),)

    @classmethod
    def of(cls, problems: Sequence[Problem]) -> Self:
        """All ``problems``, of which there is at least one, in one error."""
        first = problems[0]
        error = cls(first.where, first.key, first.message, first.joint)
        error.problems = tuple(problems)
        return error

    def within(self, where: str, joint: str = ".") -> Self:
        """The same seen from outside: what was the place becomes part of the key in ``where``."""
        return self.of([Problem(where, p.place, p.message, joint) for p in self.problems])

    @property
    def where(self) -> str:
        """Place of the first problem."""
        return self.problems[0].where

    @property
    def key(self) -> str:
        """Option of the first problem."""
        return self.problems[0].key

    @property
    def message(self) -> str:
        """What is wrong with it, and what would be right."""
        return self.problems[0].message

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


class DataError(RuntimeError):
    """Images that are missing or broken; the message names the files and what would be right."""


def later(default: Any, **limits: Any) -> Any:
    """A field that versions after the first have added, with pydantic's ``limits``.

    It is written down only where it is not at its ``default``: configurations of before, and so
    the ids of their cells, stay what they were.
    """
    return Field(default, json_schema_extra=_LATER, **limits)


_LATER: dict[str, Any] = {"later": True}


class Options(BaseModel):
    """Base of all option sets: frozen, strict (``"3"`` is no number), unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _without_minus_zero(cls, value: Any) -> Any:
        """-0.0 is the same as 0.0, and would be another text."""
        return 0.0 if isinstance(value, float) and value == 0 else value

    @model_serializer(mode="wrap")
    def _as_written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what is lacking, or :func:`later` and not set; every meaning in one form."""
        lacking = self.lacking(self.__dict__)
        values = {**write(self), **self._restated()}
        return {k: v for k, v in values.items() if k not in lacking and not self._is_news(k)}

    def _restated(self) -> dict[str, Any]:
        """Options that say what another value says too, with the one that is written down."""
        return {}

    def _is_news(self, option: str) -> bool:
        """Whether it came with a later version and is at its default."""
        field = type(self).model_fields[option]
        return field.json_schema_extra == _LATER and getattr(self, option) == field.get_default()

    @classmethod
    def lacking(cls, values: Mapping[str, Any]) -> dict[str, str]:
        """Options that are not there beside ``values`` (a value of every option), and why.

        They may not be set, and no configuration that is written down has them.
        """
        return {}

    @classmethod
    def idle(cls, values: Mapping[str, Any]) -> dict[str, str]:
        """Options that change nothing beside ``values`` (a value of every option), and why.

        They keep their defaults: with other values, the same run would have a second name.
        """
        return {}

    @classmethod
    def without_effect(cls, values: Mapping[str, Any]) -> dict[str, str]:
        """Options that are :meth:`lacking` or :meth:`idle` beside ``values``, and why.

        ``values`` may be unchecked, and need not name every option.
        """
        whole = {**cls._defaults(), **values}
        try:
            return {**cls.idle(whole), **cls.lacking(whole)}
        except TypeError:  # of a wrong type, which is told where the values are checked
            return {}

    @classmethod
    def _defaults(cls) -> dict[str, Any]:
        return {name: field.get_default() for name, field in cls.model_fields.items()}

    @classmethod
    def parse(
        cls, values: Mapping[str, Any], where: str, defaults: Mapping[str, Any] | None = None
    ) -> Self:
        """Validate ``values`` as they come from YAML, JSON or keywords.

        ``where`` opens every error message, such as ``"scales.yaml: base.model"``; ``defaults``
        replace those of the class.

        Raises:
            ConfigError: for an unknown key, a wrong type or an impossible value, and for an option
                that is set without effect.
        """
        usual = {**cls._defaults(), **(defaults or {})}
        vain = cls.without_effect({**usual, **values})
        lacking = cls.lacking({**usual, **values}) if vain else {}
        inherited = {key: value for key, value in (defaults or {}).items() if key not in lacking}
        parsed = cls._checked({**inherited, **values}, where)
        refused = [
            Problem(where, key, why)
            for key, why in vain.items()
            if key in values and (key in lacking or values[key] != usual[key])
        ]
        if refused:
            raise ConfigError.of(refused)
        return parsed

    @classmethod
    def _checked(cls, values: Mapping[str, Any], where: str) -> Self:
        try:
            # Through JSON, strict validation still takes lists for tuples.
            return cls.model_validate_json(json.dumps(dict(values)), strict=True)
        except ValidationError as error:
            raise ConfigError.of(
                [
                    Problem(where, ".".join(map(str, e["loc"])), cls._explained(e))
                    for e in error.errors()
                ]
            ) from None
        except (TypeError, ValueError) as error:  # such as a list that holds itself
            raise ConfigError(where, "", f"not a plain value ({error})") from None

    @classmethod
    def _explained(cls, error: Mapping[str, Any]) -> str:
        """One of pydantic's errors in our words, without its place."""
        loc, given = error["loc"], error["input"]
        if error["type"] == "extra_forbidden":
            return unknown(loc[-1], cls._fields_at(loc), "unknown option")
        if error["type"] == "literal_error" and isinstance(given, str):
            return unknown(given, cls._choices_at(loc), f"unknown value {given!r}")
        ours = error["type"] == "value_error"  # raised by a validator of this project
        message = str(error["ctx"]["error"]) if ours else f"{error['msg']} (got {given!r})"
        if error["type"] in ("tuple_type", "list_type") and isinstance(given, str | int | float):
            items = re.findall(r"[^][(){},;\s]+", str(given))  # of 1 3, (1, 3) or 1;3 as well
            message += f"; write it as [{','.join(items)}]"
        if error["type"] == "bool_type" and isinstance(given, str):
            message += "; write true or false"
        elif isinstance(given, str) and given.lower() == "none" and cls._may_be_null(loc):
            message += "; write null"  # tables print it as none
        return message[0].lower() + message[1:]

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
    def _kinds_at(cls, loc: tuple[Any, ...]) -> tuple[Any, ...]:
        """The annotation of the option at ``loc``, and what it is a union or choice of."""
        options: Any = cls
        for part in loc[:-1]:
            field = options.model_fields.get(part) if _is_options(options) else None
            options = field.annotation if field else None
        field = options.model_fields.get(loc[-1]) if _is_options(options) else None
        return () if field is None else (field.annotation, *get_args(field.annotation))

    @classmethod
    def _may_be_null(cls, loc: tuple[Any, ...]) -> bool:
        return type(None) in cls._kinds_at(loc)

    @classmethod
    def _choices_at(cls, loc: tuple[Any, ...]) -> list[str]:
        # Of Literal["a", "b"], and of the same where None is valid as well.
        kinds = cls._kinds_at(loc)
        choices = [choice for kind in kinds for choice in get_args(kind)]
        null = ["null"] if type(None) in choices else []
        return [choice for choice in choices if isinstance(choice, str)] + null


def _is_options(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Options)


def below(where: str, key: str, joint: str = ".") -> str:
    """``where`` and a ``key`` in it as one place; either may be empty."""
    return f"{where}{joint}{key}" if where and key else where or key


def _plain(name: Any) -> str:
    """``CIFAR-10`` and ``cifar10`` are near to each other."""
    return str(name).lower().replace("-", "").replace("_", "").replace(" ", "")


def unknown(name: Any, valid: Iterable[str], message: str) -> str:
    """``message`` plus the nearest of the ``valid`` names, where one is near, and all of them."""
    valid = sorted(valid)
    plain = {_plain(choice): choice for choice in reversed(valid)}
    if near := difflib.get_close_matches(_plain(name), plain, n=1, cutoff=0.5):
        return f"{message}; did you mean {plain[near[0]]!r}? (valid: {', '.join(valid)})"
    return f"{message}; valid: {', '.join(valid)}" if valid else message
