"""What a reader has asked to see of a study: one value for all tables, figures and pages."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from msvit.records.energy_choice import USUAL as DEFAULT_ENERGY

if TYPE_CHECKING:
    from analysis.collect import StudyResults
from msvit.records.energy_choice import EnergyChoice


@dataclass(frozen=True)
class View:
    """``baseline`` is the configuration that all others are compared with, if one was named;
    ``energy`` says which energy models are shown."""

    baseline: str | None = None
    energy: EnergyChoice = field(default_factory=EnergyChoice)


USUAL = View()
"""Nothing was asked for: no baseline, energy by the default model."""


def telling(study: StudyResults, energy: EnergyChoice) -> EnergyChoice:
    """The models that were asked for and can tell of any cell.

    A model that needs what earlier versions did not count has nothing to say of their records, and
    some are for certain networks only. Where none is left, the default model stands for them.
    """
    named = zip(energy.models, energy.measures, strict=True)
    models = tuple(model for model, measure in named if study.cells[measure].notna().any())
    return replace(energy, models=models or DEFAULT_ENERGY.models)
