"""Rows of a network that was shown no real images: known shapes, assumed rates."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor, nn

from msvit.layers.norm import BatchNorm
from msvit.metrics import measure
from msvit.metrics.membranes import usual_update
from msvit.models.base import Model
from msvit.neuron_kinds import ActivationName
from msvit.records.schema import Operations


def some_input(model: Model, events: bool = False) -> Tensor:
    """One image ``[1, C, H, W]`` of noise, or events ``[T, 1, C, H, W]`` of spikes."""
    options = model.options
    shape: tuple[int, ...] = (1, options.in_channels, options.image_size, options.image_size)
    generator = torch.Generator().manual_seed(0)
    if events:
        return (torch.rand((options.timesteps, *shape), generator=generator) < 0.1).float()
    return torch.randn(shape, generator=generator)


def assumed_operations(model: Model, rate: float, events: bool = False) -> list[Operations]:
    """The rows of ``model`` if ``rate`` of all inputs that are no analog values were spikes.

    One forward pass of noise, through norms that make neurons fire, tells shapes, and which inputs
    are analog: images are, and ``events`` are not. Whole numbers behind a shortcut are spikes here.
    """
    lively = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    for module in lively.modules():
        if isinstance(module, BatchNorm):
            nn.init.uniform_(module.bias, 0.0, 2.5, generator=generator)
    return assume(measure(lively, [some_input(model, events)]).operations, rate)


def assume(operations: Sequence[Operations], rate: float) -> list[Operations]:
    """``operations`` with ``rate`` in place of what was counted."""
    return [_at(row, rate) for row in operations]


def _at(row: Operations, rate: float) -> Operations:
    if row["kind"] == "neuron":
        return _neuron_at(row, rate)
    if row["input"] in ("analog", "levels"):
        return row
    synops = rate * row["synapses"]
    changed: Operations = {
        **row,
        "input": "spikes",
        "input_rate": rate,
        "input_peak": 1.0,
        "acs": rate * row["dense_macs"],
        "synops": synops,
        "active_synops": synops,
        "active_inputs": rate * row["inputs"],
    }
    if "averaged" in row:  # a mean is zero where all of it is
        changed["mean_macs"] = (1 - (1 - rate) ** row["averaged"]) * row["dense_macs"]
    if "other_input" in row and row["other_input"] != "analog":
        changed |= {
            "other_input": "spikes",
            "other_rate": rate,
            "other_synops": synops,
            "other_active_inputs": rate * row["other_inputs"],
        }
    if "joint_synops" in row:
        both = rate if row["other_input"] == "analog" else rate**2
        changed["joint_synops"] = both * row["synapses"]
    if row["kind"] == "mask":  # votes for it, or its columns, are summed up: an addition a spike
        summed = rate * row["votes"] if row["votes"] else rate**2 * row["outputs"]
        changed["additions"] = summed if row["additions"] else 0.0
    return changed


def _neuron_at(row: Operations, rate: float) -> Operations:
    """What spikes take beside updates is in proportion to them."""
    active = rate * row["outputs"]
    changed: Operations = {**row, "active_outputs": active}
    if row["neuron"] in get_args(ActivationName):
        return changed
    changed["spikes"] = active
    changed["output_peak"] = 1.0
    seen = row["active_outputs"]
    each = usual_update(row["neuron"], row["steps"])
    more = active / seen if seen else 0.0
    changed["additions"] = _scaled(row["additions"], row["updates"] * each.additions, more)
    changed["multiplies"] = _scaled(row["multiplies"], row["updates"] * each.multiplies, more)
    return changed


def _scaled(counted: float, of_updates: float, more: float) -> float:
    return of_updates + more * (counted - of_updates)
