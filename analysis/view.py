"""What a reader has asked to see of a study: one value for all tables, figures and pages."""

from __future__ import annotations

from dataclasses import dataclass, field

from msvit.records.energy_choice import EnergyChoice


@dataclass(frozen=True)
class View:
    """``baseline`` is the configuration that all others are compared with, if one was named;
    ``energy`` says which energy models are shown."""

    baseline: str | None = None
    energy: EnergyChoice = field(default_factory=EnergyChoice)


USUAL = View()
"""Nothing was asked for: no baseline, energy by the default model."""
