"""Training of one cell: loop, mixed precision, schedule, exact resume, measurement."""

from msvit.training.cell import train_cell
from msvit.training.health import TrainingDiverged

__all__ = ["TrainingDiverged", "train_cell"]
