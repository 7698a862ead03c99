"""Names of layers as people read them in tables and on axes."""

from __future__ import annotations

_ANONYMOUS = {"spikes", "neuron", "conv", "linear", "synapse"}


def layer_name(path: str, part: str = "") -> str:
    """A module's path without what every unit has inside.

    ``stages.0.0.mlp.fc1.neuron.spikes`` → ``stages.0.0.mlp.fc1``. A named ``part`` of a
    unit stands in the unit's place: ``attention.qkv.neuron.spikes``, q → ``attention.q``.
    """
    names = path.split(".")
    while len(names) > 1 and names[-1] in _ANONYMOUS:
        names.pop()
    if part:
        names[-1:] = [part]
    return ".".join(names)
