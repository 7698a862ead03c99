"""A results folder with known numbers, written through :mod:`msvit.records.store` as studies do."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from analysis.collect import StudyResults, collect
from msvit.cells import Cell
from msvit.records.energy_constants import SHIPPED
from msvit.records.store import write_failure, write_record, write_study

SCALES = ([1], [1, 3], [1, 3, 5], [1, 3, 5, 7])
LAYERS = [
    f"{place}.{unit}.neuron"
    for place, units in (
        ("stem", ("units.0", "units.1", "shortcut")),
        *(
            (f"stages.{s}.0", ("attention.qk", "attention.mask", "mlp.fc1", "mlp.fc2"))
            for s in (0, 1)
        ),
        *(
            (f"stages.2.{b}", ("attention.qkv", "attention.product", "mlp.fc1", "mlp.fc2"))
            for b in (0, 1)
        ),
    )
    for unit in units
]


def make_cell(
    model: dict, seed: int, data: str = "digits", timesteps: int = 4, **training: float
) -> Cell:
    size = {"digits": 16, "cifar10": 32, "imagenet": 224}[data]
    return Cell(
        model={"dim": 48, "timesteps": timesteps, "image_size": size, "num_classes": 10, **model},
        data={"name": data, "image_size": size},
        training={"epochs": 2, "lr": 2e-3, "batch_size": 16, **training},
        seed=seed,
    )


def make_record(cell: Cell, accuracy: float, energy_mj: float, **changes) -> dict:
    noise = np.random.default_rng(int(cell.id, 16))
    layers = LAYERS[: changes.pop("layers", len(LAYERS))]
    rates = {
        layer: (0.05 + 0.4 * noise.random()) * np.linspace(0.6, 1, cell.model["timesteps"])
        for layer in layers
    }
    return {
        "schema": 1,
        "id": cell.id,
        "cell": cell.as_dict(),
        "parameters": 112_000,
        "history": [
            {
                "epoch": epoch,
                "lr": 1e-3,
                "train_loss": 1 / epoch,
                "train_accuracy": None,
                "val_loss": 0.1,
                "val_accuracy": 0.92 - 0.01 * abs(epoch - 2),
                "seconds": 2.0,
            }
            for epoch in (1, 2, 3)  # the best is not the last
        ],
        "selected_epoch": 2,
        "test": {"images": 360, "loss": 0.1, "accuracy": accuracy},
        "firing": [
            {"layer": layer, "timestep": t, "rate": float(rate), "neurons": 4096}
            for layer, steps in rates.items()
            for t, rate in enumerate(steps)
        ],
        "firing_rate": float(np.mean(list(rates.values()))),
        "operations": [
            {
                "layer": layer,
                "kind": "conv",
                "input": "spikes",
                "dense_macs": 1e5,
                "input_rate": 0.2,
                "macs": 0.0,
                "acs": energy_mj * 1e9 / SHIPPED["sop_spikformer"]["ac"] / len(layers),
            }
            for layer in layers
        ],
        "training_seconds": 12.5,
        "images_per_second": 230.0,
        "peak_memory_gb": 0.4,
        "precision": "float32",
        "kernels": "torch",
        "environment": {"python": "3.11"},
        **changes,
    }


class Results:
    """A results folder under construction; ``study()`` collects it."""

    def __init__(
        self, folder: Path, name: str = "scales", axes: tuple[str, ...] = ("model.scales",)
    ):
        self.folder, self.name, self.axes = folder, name, axes
        self.entries: list[dict] = []

    def add(self, group: str, cell: Cell, outcome: dict | str | None) -> Cell:
        """``outcome`` is a record, the message of a failure, or None for a missing cell."""
        label = f"{group} seed {cell.seed}"
        self.entries.append({"id": cell.id, "group": group, "label": label, "seed": cell.seed})
        if isinstance(outcome, dict):
            write_record(self.folder, outcome)
        elif outcome is not None:
            failure = {"error": "TrainingDiverged", "message": outcome, "traceback": "Traceback"}
            failure |= {"schema": 1, "id": cell.id, "cell": cell.as_dict()}
            failure |= {"attempts": 1, "failed_at": "2026-01-01"}
            write_failure(self.folder, failure)
            (self.folder / "cells" / cell.id / "log.txt").write_text("loss nan\n")
        manifest = {"schema": 1, "name": self.name, "question": "How many scales?"}
        manifest |= {"grid_file": "studies/grids/x.yaml", "axes": list(self.axes)}
        write_study(self.folder, manifest | {"cells": self.entries})
        return cell

    def add_seeds(
        self, group: str, model: dict, accuracies: list[float], energies: list[float], **cell
    ):
        for seed, (accuracy, energy) in enumerate(zip(accuracies, energies, strict=True)):
            one = make_cell(model, seed, **cell)
            self.add(group, one, make_record(one, accuracy, energy))

    def study(self) -> StudyResults:
        return collect(self.folder, self.name)


def fill_scales(results: Results) -> Results:
    """The study of the issue: MSVIT with 1 to 4 scales, Spikformer and QKFormer, 3 seeds."""
    for count, scales in enumerate(SCALES):
        results.add_seeds(
            f"msvit scales={','.join(map(str, scales))}",
            {"name": "msvit", "scales": scales},
            [0.975 + 0.003 * count, 0.98 + 0.002 * count, 0.983],
            [(5.1 + 0.9 * count) * 1e-3, (5.3 + 0.9 * count) * 1e-3, (5.0 + 0.8 * count) * 1e-3],
        )
    results.add_seeds(
        "spikformer", {"name": "spikformer"}, [0.96, 0.962, 0.961], [0.01, 0.0104, 0.0101]
    )
    results.add_seeds(
        "qkformer", {"name": "qkformer"}, [0.981, 0.978, 0.983], [0.0046, 0.0045, 0.0047]
    )
    return results
