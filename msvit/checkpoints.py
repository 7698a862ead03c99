"""Official checkpoints: converting their tensors, saying what was done.

Each model file holds the map from its own units to the official names; here is the
arithmetic. Several official layers may form one of ours (q, k and v are one product).
"""

from __future__ import annotations

import fnmatch
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from msvit.options import unknown
from msvit.state_dicts import (
    CheckpointError,
    StateDict,
    find_state_dicts,
    read_checkpoint,
    tensor_names,
)

__all__ = ["CheckpointError", "LoadReport", "OfficialMap", "load_official"]

_log = logging.getLogger("msvit")
# Counters: thop's, in every module it has seen; and of the copies that torch has averaged.
_COUNTERS = ("*total_ops", "*total_params", "n_averaged")


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

    taken: str = ""
    """The file, and the place in it that the tensors are from."""
    left: list[str] = field(default_factory=list)
    """What else the file holds, by place and name."""
    loaded: int = 0
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def summary(self) -> str:
        """One line: what was taken, and what was left."""
        line = f"{self.loaded} tensors loaded from {self.taken}"
        beside = [*self.left, *self.ignored]
        return f"{line}; left there: {_shown(beside)}" if beside else line

    @property
    def problems(self) -> list[str]:
        """A line per kind of tensor that does not fit."""
        kinds = {kind: getattr(self, kind) for kind in ("missing", "unexpected", "mismatched")}
        return [f"{len(names)} {kind}: {_shown(names)}" for kind, names in kinds.items() if names]

    def __str__(self) -> str:
        return "\n".join([self.summary, *self.problems, *self.remarks])


def load_official(
    model: nn.Module, source: str | os.PathLike | Mapping, strict: bool = True, head: bool = True
) -> LoadReport:
    """Load official weights, or those of a cell, into a model of the zoo.

    Args:
        source: a file of torch or safetensors, or what it holds: a state dict under official
            names or ours, at any place, whatever stands beside it. Of two that fit, an averaged
            one (EMA) is taken, or the best by validation: those have the published scores.
        strict: refuse a checkpoint that lacks tensors or has unexpected ones. Shapes must
            fit in any case.
        head: False leaves the classifier as it is, for another number of classes.

    Returns:
        What was loaded, missing, unexpected and left, with remarks.

    Raises:
        CheckpointError: if the checkpoint cannot be read or does not fit; naming the file and the
            first tensors that are missing, unexpected, or of another shape or kind.
    """
    content, name = source, "the given mapping"
    if isinstance(source, str | os.PathLike):
        content, name = read_checkpoint(Path(source)), str(source)
    elif not isinstance(source, Mapping):
        kind = type(source).__name__
        raise CheckpointError(f"a path or a mapping of names to tensors is needed, not {kind}")
    found = _best_fit(model, content, name, head)
    report = found.report
    if report.mismatched or (strict and report.problems):
        lines = [f"{report.taken} does not fit {type(model).__name__}:", *report.problems]
        if report.missing and report.unexpected:
            lines.append(unknown(report.unexpected[0], report.missing[:1], "first of each:"))
        elif found.mismatched and found.mismatched <= _classifier(model):
            lines.append("head=False loads all but the classifier")
        elif found.mismatched:
            lines.append("was the model built with the checkpoint's sizes?")
        raise CheckpointError("\n".join(lines))
    for target, own in model.state_dict().items():
        if target in found.tensors and (flaw := _flaw(target, found.tensors[target], own.dtype)):
            raise CheckpointError(f"{name}: {target} would get {flaw}")
    model.load_state_dict(found.tensors, strict=False)
    _log.info("%s", report.summary)
    return report


@dataclass
class _Conversion:
    """A state dict of a checkpoint, made to fit a model."""

    tensors: dict[str, Tensor]
    """What fits, under our names."""
    mismatched: set[str]
    """Our names for which it has another shape."""
    report: LoadReport
    fit: tuple[int, int]
    """How many names it has that were looked for, and how many tensors fit."""
    preferred: bool


def _best_fit(model: nn.Module, content: Any, name: str, head: bool) -> _Conversion:
    targets = model.state_dict()
    fits = []
    official: OfficialMap = model.official_map()  # type: ignore[operator]
    own = OfficialMap(tensors={target: target for target in targets})
    for names in (official, own):
        known = {key for target in targets for key in names.sources(target) or ()}
        for found in find_state_dicts(content, known):
            fits.append(_convert(model, names, known, found, name, head))
    if not fits:
        if there := tensor_names(content):
            held = f"none of {type(model).__name__}: {_shown(there)}"
        elif arrays := tensor_names(content, np.ndarray):
            held = f"only numpy arrays: {_shown(arrays)}; torch.from_numpy makes tensors of them"
        else:
            held = "none at all"
        raise CheckpointError(f"{name}: tensors were looked for, and there are {held}")
    best = max(fits, key=lambda fit: (fit.fit, fit.preferred))
    equals = [fit.report.taken for fit in fits if fit.fit == best.fit and fit is not best]
    if equals:
        best.report.remarks.append(
            f"as good a fit: {', '.join(equals)}; for that, pass the mapping instead of the file"
        )
    return best


def _convert(
    model: nn.Module, names: OfficialMap, known: set[str], found: StateDict, name: str, head: bool
) -> _Conversion:
    official = found.tensors
    report = LoadReport(f"{name} ({found.where})" if found.where else name, list(found.left))
    converted: dict[str, Tensor] = {}
    mismatched: set[str] = set()
    used: set[str] = set()
    classifier = _classifier(model)
    for target, expected in model.state_dict().items():
        keys = names.sources(target)
        if target in classifier and not head:
            used.update(keys or ())
            report.left += [key for key in keys or () if key in official]
            continue
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
        unusable = [f"{key} ({why})" for key in keys if (why := _unusable(official[key], expected))]
        if unusable:
            report.mismatched.append(f"{' + '.join(unusable)} does not fit {target}")
            continue
        tensor = _join(target, expected, [official[key] for key in keys])
        if tensor is None:
            shapes = " + ".join(f"{key} {tuple(official[key].shape)}" for key in keys)
            report.mismatched.append(f"{shapes} does not fit {target} {tuple(expected.shape)}")
            mismatched.add(target)
            continue
        converted[target] = tensor
        report.loaded += len(keys)
    own = [t for t in classifier if t.endswith(".weight")]
    theirs = [key for target in own for key in names.sources(target) or () if key in official]
    heads = {official[key].shape for key in theirs} or {model.state_dict()[t].shape for t in own}
    for key in official:
        if key in used:
            continue
        if any(fnmatch.fnmatch(key, pattern) for pattern in (*names.ignored, *_COUNTERS)):
            report.ignored.append(key)
        elif _is_classifier(key, official, known, heads):
            report.ignored.append(key)
            if key.endswith(".weight"):
                report.remarks.append(
                    f"{key.removesuffix('.weight')}, another classifier, was left: where the "
                    "released code averages both in evaluation, so does the published accuracy"
                )
        else:
            report.unexpected.append(key)
    if getattr(model.options, "batch_coupled", None) is False and known != set(model.state_dict()):
        report.remarks.append(
            "trained with batch coupling (membrane potential passes between the images of a "
            "batch), loaded without: accuracy may differ from the published one; "
            "batch_coupled=True reproduces the released code"
        )
    fit = (found.found, len(converted))
    return _Conversion(converted, mismatched, report, fit, found.preferred)


def _join(target: str, expected: Tensor, parts: list[Tensor]) -> Tensor | None:
    """Several official tensors as the one of ours; None where the shape is another."""
    if target.endswith("num_batches_tracked"):
        return parts[0].reshape(expected.shape) if parts[0].numel() == 1 else None
    if any(part.shape[1:] != parts[0].shape[1:] for part in parts):
        return None
    found = torch.cat(parts) if len(parts) > 1 else parts[0]
    if found.numel() == expected.numel() and found.shape[:1] == expected.shape[:1]:
        return found.reshape(expected.shape)  # Linear, Conv1d and Conv2d hold the same numbers
    return None


def _unusable(tensor: Tensor, expected: Tensor) -> str:
    """Why a tensor, whatever its shape and values, is none that ours can take; or nothing."""
    if tensor.is_meta:
        return "of the meta device, without values"
    if tensor.is_quantized:
        return "quantised"
    if tensor.layout != torch.strided:
        return str(tensor.layout).removeprefix("torch.")
    # A count may be a float, where a whole state dict was converted.
    real = tensor.is_floating_point() or not (expected.is_floating_point() or tensor.is_complex())
    return "" if real else f"of {tensor.dtype}"


def _flaw(target: str, tensor: Tensor, dtype: torch.dtype) -> str:
    """What is wrong with the values that ``target``, of ``dtype``, would get; or nothing."""
    values = tensor.to(dtype if dtype.is_floating_point else torch.float64)
    if not values.isfinite().all():
        return f"values that are not finite in {values.dtype}"
    if target.endswith("running_var") and (values < 0).any():
        return "variances below 0"
    return ""


def _classifier(model: nn.Module) -> set[str]:
    return {target for target in model.state_dict() if "head.linear." in target}


def _is_classifier(
    key: str, official: Mapping[str, Tensor], known: set[str], shapes: set[torch.Size]
) -> bool:
    """Whether a tensor is of one more linear layer like the classifier, such as a distilled one.

    It stands beside the model's modules, and ours computes the same without it.
    """
    layer, _, tensor = key.partition(".")
    weight = official.get(f"{layer}.weight")
    beside = not any(name.partition(".")[0] == layer for name in known)
    return beside and tensor in ("weight", "bias") and weight is not None and weight.shape in shapes


def _shown(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
