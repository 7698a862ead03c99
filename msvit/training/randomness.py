"""Every generator that a training draws from: seeded for an epoch, kept and put back in the middle.

Three draw: torch's own (dropped paths, noise), on the device too; the global ones of ``random`` and
``numpy``, which timm uses; and one of ours on the CPU, for the order of images and what is done to
them.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int, epoch: int) -> torch.Generator:
    """Seed all generators in use for one epoch (0: initialisation); returns ours, fresh."""
    words = np.random.SeedSequence([seed, epoch]).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(words[1])  # noqa: NPY002 -- timm draws from the global generator
    torch.manual_seed(int(words[2]))
    return torch.Generator().manual_seed(int(words[3]))


def random_state(generator: torch.Generator, device: torch.device) -> dict[str, Any]:
    """Where all generators stand, in plain types and tensors on the CPU."""
    version, words, gauss = random.getstate()
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002
    numbers = numpy["state"].pop("key")
    return {
        "random": [version, list(words), gauss],
        "numpy": {**numpy, "numbers": torch.from_numpy(numbers.astype(np.int64))},
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "generator": generator.get_state(),
    }


def restore_random_state(
    state: Mapping[str, Any], generator: torch.Generator, device: torch.device
) -> None:
    """Put all generators where :func:`random_state` found them.

    On another kind of device than then, what is drawn there begins as in a fresh epoch.
    """
    version, words, gauss = state["random"]
    random.setstate((version, tuple(words), gauss))
    numpy = {key: value for key, value in state["numpy"].items() if key != "numbers"}
    numbers = state["numpy"]["numbers"].numpy().astype(np.uint32)
    numpy["state"] = {**numpy["state"], "key": numbers}
    np.random.set_state(numpy)  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["device"] is not None:
        torch.cuda.set_rng_state(state["device"], device)
    generator.set_state(state["generator"])
