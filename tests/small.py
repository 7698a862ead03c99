"""Small versions of every registry entry, for tests that run all of them."""

from __future__ import annotations

import pytest
import torch

from msvit import create_model, list_models
from msvit.data import DATASETS
from msvit.layers.norm import BatchNorm
from msvit.layers.units import ConvNorm
from msvit.models import model_options, zoo

#: Options per architecture that shrink any of its sizes but keep their structure.
SMALL = {
    "msvit": {"dim": 32, "heads": 4},
    "qkformer": {"dim": 32, "heads": 4},
    "spikformer": {"dim": 32, "heads": 4, "depths": (2,)},
    "spikingformer": {"dim": 32, "heads": 4, "depths": (2,)},
    "sdt": {"dim": 32, "depths": (2,)},
    "metaspikeformer": {"dim": 32, "heads": 4},
    "spikingresformer": {"dim": 32, "first_dim": 16, "heads": 4, "group_size": 8},
    "maxformer": {"dim": 32, "heads": 4},
    "vit": {"dim": 32, "heads": 4, "depths": (2,), "patch_size": 8, "timesteps": 1},
}


#: Every registry entry, for parametrize; `make quick` takes one of each architecture.
ENTRIES = [
    pytest.param(name, marks=() if name == zoo()[name]["architecture"] else pytest.mark.slow)
    for name in list_models()
]


def small_model(name: str, timesteps: int = 4, **options) -> torch.nn.Module:
    """Registry entry ``name`` at a width of 16 to 32 and on the smallest images it takes."""
    published = model_options(name, {})
    shrunk = {"timesteps": timesteps} | SMALL[zoo()[name]["architecture"]]
    if hasattr(published, "stage_dims") and len(published.depths) > 1:
        shrunk["depths"] = (1,) * (len(published.depths) - 1) + (2,)
    shrunk["image_size"] = 32
    torch.manual_seed(0)
    model = create_model(name, **(shrunk | options))
    data = DATASETS.get(name.rpartition("_")[2])  # registry names end in those of data sets
    model.of_events = data is not None and data.events
    return model


def small_input(model: torch.nn.Module, batch: int, dtype=torch.float64) -> torch.Tensor:
    """Images ``[B, C, H, W]``, or events ``[T, B, C, H, W]`` where the model's data are events."""
    options = model.options
    shape = (batch, options.in_channels, options.image_size, options.image_size)
    if model.of_events:
        shape = (options.timesteps, *shape)
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=dtype)


def fire(model: torch.nn.Module) -> None:
    """Make the neurons of a fresh model fire in evaluation mode, where it would be silent.

    The norms take the statistics of one batch, and biases that reach the threshold; where
    potential adds up over blocks, biases around zero, so that late neurons do not fire always.
    """
    generator = torch.Generator().manual_seed(5)
    norms = [m for m in model.modules() if isinstance(m, BatchNorm)]
    adding = {m.norm for m in model.modules() if isinstance(m, ConvNorm)}
    for norm in norms:
        norm.momentum = 1.0
        low, high = (-0.5, 0.5) if norm in adding else (0.2, 1.2)
        torch.nn.init.uniform_(norm.bias, low, high, generator=generator)
    with torch.no_grad():
        model.train()(small_input(model, 8, next(model.parameters()).dtype))
    for norm in norms:
        norm.momentum = 0.1
    model.eval()
