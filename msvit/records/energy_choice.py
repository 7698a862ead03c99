"""Which energy models a command shows, and by which constants: ``--energy``, for all of them."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from msvit.options import unknown
from msvit.records.energy import DEFAULT_ENERGY_MODEL, ENERGY_MODELS
from msvit.records.energy_constants import use_constants
from msvit.records.measures import energy_measure

ALL = "all"


@dataclass(frozen=True)
class EnergyChoice:
    """Names of energy models, and what is another constant than those that are shipped."""

    models: tuple[str, ...] = (DEFAULT_ENERGY_MODEL,)
    constants: tuple[str, ...] = ()

    @property
    def measures(self) -> tuple[str, ...]:
        """Their names among the measures of a record."""
        return tuple(map(energy_measure, self.models))

    def note(self) -> str:
        """The sentence under a table with these models in it."""
        names = ", ".join(self.models)
        which = f"the model {names}" if len(self.models) == 1 else f"the models {names}"
        told = f"Energy: computed from operation counts by {which}, not measured on hardware."
        return " ".join(filter(None, (told, self.own_constants())))

    def own_constants(self) -> str:
        """The sentence that names constants which are not those that are shipped, or nothing."""
        if not self.constants:
            return ""
        return f"Constants of our own choice: {', '.join(self.constants)}."


USUAL = EnergyChoice()
"""The default model by its own constants."""


def add_energy(parser: argparse.ArgumentParser, constants: bool = True) -> None:
    """The options, which :func:`energy_choice` reads; searches have no ``constants``.

    What a trial was told, and so which trials were tried after it, stands on those that are
    shipped.
    """
    parser.add_argument(
        "--energy",
        type=_models,
        default=(DEFAULT_ENERGY_MODEL,),
        metavar="NAME|all",
        help=f"energy models to show, several with commas (default: {DEFAULT_ENERGY_MODEL}): "
        f"{', '.join(ENERGY_MODELS)}",
    )
    if constants:
        parser.add_argument(
            "--energy-constants",
            type=Path,
            metavar="FILE.yaml",
            help="constants in place of those of msvit/records/energy_constants.yaml",
        )


def energy_choice(options: argparse.Namespace) -> EnergyChoice:
    """What was chosen; its constants are in force from here on.

    Raises:
        ConfigError: for a file of constants that cannot be used.
    """
    changes = use_constants(getattr(options, "energy_constants", None))
    return EnergyChoice(options.energy, tuple(changes))


def _models(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    valid = (*ENERGY_MODELS, ALL)
    for name in names:
        if name not in valid:
            raise argparse.ArgumentTypeError(unknown(name, valid, f"no energy model {name!r}"))
    return tuple(ENERGY_MODELS) if ALL in names else names
