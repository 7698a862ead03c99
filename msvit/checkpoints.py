"""Official checkpoints: reading their containers, converting their tensors, saying what was done.

Each model file holds the map from its own units to the official names; here is the
arithmetic. Several official layers may form one of ours (q, k and v are one product).
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from msvit.options import unknown

NORM_TENSORS = ("weight", "bias", "running_mean", "running_var")


class CheckpointError(ValueError):
    """A checkpoint that does not fit; the message lists what is missing or unexpected."""


@dataclass
class OfficialMap:
    """Where the official implementation keeps a model's tensors.

    ``units`` maps the path of a conv-norm unit to the official ``(convolution, norm)``
    prefixes that it joins along its output channels; ``layers`` maps the path of a layer
    that stands alone to the prefixes that it joins; ``tensors`` maps single tensors;
    ``ignored`` are patterns of official tensors without any use; ``neurons`` maps the path of
    a neuron to the official names of the neurons that it joins, in the order of its parts.
    """

    units: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    layers: dict[str, list[str]] = field(default_factory=dict)
    tensors: dict[str, str] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    neurons: dict[str, list[str]] = field(default_factory=dict)

    def add(self, prefix: str, other: OfficialMap) -> None:
        """Take over ``other``, its own paths standing below ``prefix``."""
        self.units |= {f"{prefix}.{k}": v for k, v in other.units.items()}
        self.layers |= {f"{prefix}.{k}": v for k, v in other.layers.items()}
        self.tensors |= {f"{prefix}.{k}": v for k, v in other.tensors.items()}
        self.neurons |= {f"{prefix}.{k}": v for k, v in other.neurons.items()}
        self.ignored += other.ignored

    def sources(self, target: str) -> list[str] | None:
        """Official names of the tensors that ours, ``target``, joins; None where it has none."""
        if target in self.tensors:
            return [self.tensors[target]]
        path, _, tensor = target.rpartition(".")
        if path in self.layers:
            return [f"{layer}.{tensor}" for layer in self.layers[path]]
        unit, _, layer = path.rpartition(".")
        if unit in self.units:
            index = 0 if layer == "conv" else 1
            return [f"{pair[index]}.{tensor}" for pair in self.units[unit]]
        return None


@dataclass
class LoadReport:
    """What :func:`load_official` did: counts and names of official tensors, and remarks."""

    loaded: int = 0
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.loaded} tensors loaded"]
        for title in ("missing", "unexpected", "ignored"):
            names = getattr(self, title)
            if names:
                shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
                lines.append(f"{len(names)} {title}: {shown}")
        return "\n".join(lines + self.remarks)


def read_state_dict(source: str | Path | Mapping) -> dict[str, Tensor]:
    """The tensors of a checkpoint, out of the wrappers found in published files.

    Looks through ``model``, ``state_dict`` and ``module.`` prefixes. Files are read with
    ``weights_only=True``, so that a hostile one cannot run code.

    Raises:
        CheckpointError: if the file cannot be read or holds no tensors.
    """
    if isinstance(source, str | Path):
        path = Path(source)
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file")
        try:
            source = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # truncated, foreign or hostile: pickle raises anything
            reason = str(error).strip().splitlines()
            raise CheckpointError(
                f"{path}: not a checkpoint of plain tensors ({reason[0] if reason else error!r})"
            ) from None
    for wrapper in ("state_dict", "model"):
        if isinstance(source, Mapping) and isinstance(source.get(wrapper), Mapping):
            source = source[wrapper]
    if not isinstance(source, Mapping):
        raise CheckpointError("the checkpoint holds no mapping of names to tensors")
    state = {k.removeprefix("module."): v for k, v in source.items() if isinstance(v, Tensor)}
    if not state:
        raise CheckpointError("the checkpoint holds no tensors")
    return state


def load_official(
    model: nn.Module, source: str | Path | Mapping, strict: bool = True
) -> LoadReport:
    """Load official weights, a path or a state dict, into a model of the zoo.

    Args:
        strict: refuse a checkpoint that lacks tensors or has unexpected ones. Shapes must
            fit in any case.

    Returns:
        What was loaded, missing, unexpected and ignored, with remarks.

    Raises:
        CheckpointError: if the checkpoint cannot be read or does not fit.
    """
    official = read_state_dict(source)
    names: OfficialMap = model.official_map()  # type: ignore[operator]
    report = LoadReport()
    used: set[str] = set()
    converted: dict[str, Tensor] = {}
    for target, expected in model.state_dict().items():
        keys = names.sources(target)
        if keys is None:  # such as the time constant of a PLIF, where the official has a LIF
            report.missing.append(f"a counterpart of {target}")
            continue
        absent = [k for k in keys if k not in official]
        used.update(keys)
        if absent:
            # A count of batches steers nothing here, and older checkpoints lack it.
            if not target.endswith("num_batches_tracked"):
                report.missing += absent
            continue
        converted[target] = _join(target, expected, keys, official)
        report.loaded += len(keys)
    rest = [k for k in official if k not in used]
    for key in rest:
        known = any(fnmatch.fnmatch(key, pattern) for pattern in names.ignored)
        (report.ignored if known else report.unexpected).append(key)
    if strict and (report.missing or report.unexpected):
        hint = ""
        if report.missing and report.unexpected:
            hint = "\n" + unknown(report.unexpected[0], report.missing[:1], "first of each:")
        raise CheckpointError(
            f"the checkpoint does not fit {type(model).__name__}:\n{report}{hint}"
        )
    model.load_state_dict(converted, strict=False)
    if getattr(model.options, "batch_coupled", None) is False:
        report.remarks.append(
            "trained with batch coupling (membrane potential passes between the images of a "
            "batch), loaded without: accuracy may differ from the published one; "
            "batch_coupled=True reproduces the released code"
        )
    return report


def _join(target: str, expected: Tensor, keys: list[str], official: Mapping[str, Tensor]) -> Tensor:
    if target.endswith("num_batches_tracked"):
        return official[keys[0]]
    found = torch.cat([official[k] for k in keys]) if len(keys) > 1 else official[keys[0]]
    if found.numel() == expected.numel() and found.shape[:1] == expected.shape[:1]:
        return found.reshape(expected.shape)  # Linear, Conv1d and Conv2d hold the same numbers
    raise CheckpointError(
        f"{' + '.join(keys)}: shape {tuple(found.shape)} does not fit {target} "
        f"{tuple(expected.shape)}; was the model built with the checkpoint's sizes?"
    )
