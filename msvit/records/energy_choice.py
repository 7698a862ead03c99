"""Which energy models a command shows, and by which constants: ``--energy``, for all of them."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from msvit.options import unknown
from msvit.records.energy import DEFAULT_ENERGY_MODEL, ENERGY_MODELS
from msvit.records.energy_constants import use_constants

ALL = "all"


@dataclass(frozen=True)
class EnergyChoice:
    """Names of energy models, and what is another constant than those that are shipped."""

    models: tuple[str, ...] = (DEFAULT_ENERGY_MODEL,)
    constants: tuple[str, ...] = ()

    @property
    def measures(self) -> tuple[str, ...]:
        """Their names among the measures of a record."""
        return tuple(
            "energy_mj" if model == DEFAULT_ENERGY_MODEL else f"energy_mj:{model}"
            for model in self.models
        )

    def note(self) -> str:
        """The sentence under a table with these models in it."""
        names = ", ".join(self.models)
        which = f"the model {names}" if len(self.models) == 1 else f"the models {names}"
        told = f"Energy: computed from operation counts by {which}, not measured on hardware."
        if self.constants:
            told += f" Constants of our own choice: {', '.join(self.constants)}."
        return told


USUAL = EnergyChoice()
"""The default model by its own constants."""


def add_energy(parser: argparse.ArgumentParser) -> None:
    """The options, which :func:`energy_choice` reads."""
    parser.add_argument(
        "--energy",
        type=_models,
        default=(DEFAULT_ENERGY_MODEL,),
        metavar="NAME|all",
        help=f"energy models to show, several with commas (default: {DEFAULT_ENERGY_MODEL}): "
        f"{', '.join(ENERGY_MODELS)}",
    )
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
    changes = use_constants(options.energy_constants)
    return EnergyChoice(options.energy, tuple(changes))


def _models(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    if names == (ALL,):
        return tuple(ENERGY_MODELS)
    for name in names:
        if name not in ENERGY_MODELS:
            valid = (*ENERGY_MODELS, ALL)
            raise argparse.ArgumentTypeError(unknown(name, valid, f"no energy model {name!r}"))
    return names
