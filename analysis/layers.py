"""Layers in the paper's words, and what each one fires and costs.

``stages.0.0.attention.branches.wide.scale3`` is *stage 1, multi-scale attention, branch 3*. The
path stays in the frame, beside the words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import pandas as pd

from analysis.collect import StudyResults
from analysis.layer_energy import layer_energy

_UNITS = {
    "k": "key",
    "q": "query",
    "v": "value",
    "qk": "query + key",
    "qkv": "query + key + value",
    "attn_neuron": "mask",
    "out_neuron": "output",
    "proj": "projection",
    "attend": "attended values",
    "attend.first": "query × key",
    "attend.second": "scores × value",
    "first": "query × key",
    "second": "scores × value",
    "gather": "key × value",
    "point": "branch 1 + key",
}
_PLACES = {
    "patch_embed.proj": "patch embedding",
    "prologue": "stem",
    "encode": "encoding",
    "position": "position",
    "head": "head",
}
_COUNTED = {
    "stem": "stem, convolution",
    "embeddings": "embedding",
    "downsamplings": "downsampling",
    "units": "convolution",
    "blocks": "block",
    "stages": "stage",
}


@dataclass(frozen=True)
class LayerName:
    """A layer in words: where in the network, in which part of it, and which one there."""

    place: str
    part: str
    unit: str

    @property
    def words(self) -> str:
        """All of it, what is the same said once: ``stage 1, MLP 2``."""
        unit = "" if self.part and self.unit.startswith(self.part) else self.part
        return ", ".join(text for text in (self.place, unit, self.unit) if text)

    @property
    def whole(self) -> str:
        """The part of the network that it belongs to: ``stage 1, MLP``."""
        return ", ".join(text for text in (self.place, self.part) if text)


def layer_names(paths: Iterable[str]) -> dict[str, LayerName]:
    """Words for each path of one network, all of whose paths tell what an attention is."""
    paths = list(dict.fromkeys(paths))
    inside = {path: path.removeprefix("encoder.").removesuffix(".neuron") for path in paths}
    blocks = {found[0] for path in inside.values() if (found := _block(path)[0])}
    one_block = {path for path in blocks if f"{path.rpartition('.')[0]}.1" not in blocks}
    return {
        path: _layer_name(short, one_block, list(inside.values())) for path, short in inside.items()
    }


def _block(path: str) -> tuple[list[str], str]:
    """``stages.0.1.mlp.fc1`` as [``stages.0.1``] and ``mlp.fc1``; [] for what is in no block."""
    found = re.match(r"(stages\.\d+\.\d+|blocks\.\d+)\.(.+)", path)
    return ([found[1]], found[2]) if found else ([], path)


def _layer_name(path: str, one_block: set[str], paths: Sequence[str]) -> LayerName:
    block, rest = _block(path)
    if not block:
        return _outside(path)
    numbers = [int(number) + 1 for number in re.findall(r"\d+", block[0])]
    place = f"stage {numbers[0]}" if block[0].startswith("stages") else f"block {numbers[0]}"
    if len(numbers) > 1 and block[0] not in one_block:
        place += f", block {numbers[1]}"
    part, _, unit = rest.partition(".")
    if part == "mlp":
        return LayerName(place, "MLP", f"MLP {unit.removeprefix('fc')}".strip())
    if part in ("attention", "attn"):
        kind = _attention({_block(p)[1] for p in paths if p.startswith(f"{block[0]}.")})
        return LayerName(place, kind, _unit(unit))
    return LayerName(place, _plain(part), _plain(unit))


def _attention(units: set[str]) -> str:
    """What an attention is called, by what it is made of."""
    words = {word for unit in units for word in unit.split(".")}
    branches = {word for word in words if re.fullmatch(r"scale\d+", word)}
    if branches - {"scale1"}:
        return "multi-scale attention"
    if branches:
        return "token attention"
    if "depthwise" in words and "expand" in words:
        return "separable convolution"
    if words & {"q", "qk", "qkv", "transform", "gather"}:
        return "self-attention"
    return "attention"


def _unit(unit: str) -> str:
    unit = unit.removeprefix("branches.").removeprefix("wide.")
    if scale := re.fullmatch(r"scale(\d+)", unit):
        return f"branch {scale[1]}"
    return _UNITS.get(unit, _plain(unit))


def _outside(path: str) -> LayerName:
    """What stands in no block: the stem, embeddings, the head."""
    if path in _PLACES:
        return LayerName(_PLACES[path], "", "")
    family, _, rest = path.partition(".")
    number, _, unit = rest.partition(".")
    if family not in _COUNTED or not number.isdigit():
        return LayerName(_plain(path), "", "")
    unit = re.sub(r"units\.(\d+)", lambda m: f"convolution {int(m[1]) + 1}", unit)
    if family == "stem":
        return LayerName("stem", "", f"convolution {int(number) + 1}")
    return LayerName(f"{_COUNTED[family]} {int(number) + 1}", "", _PLACES.get(unit, _plain(unit)))


def _plain(name: str) -> str:
    return name.replace(".", " ").replace("_", " ")


def layers(study: StudyResults, energies: Sequence[str] = ("energy_mj",)) -> pd.DataFrame:
    """What each layer fires and costs, mean over finished seeds, in network order.

    ``energies`` are the measures of energy that are wanted.

    Returns:
        Columns group; layer (path); place, part, words, whole (see :class:`LayerName`); kind and
        input (of its operations); rate (spikes per neuron and time step; empty without neurons),
        neurons (per image and time step); dense_macs, input_rate, macs, acs (per image, over all
        time steps); each of ``energies`` (mJ per image); share (of the configuration's energy, by
        the first of them).
    """
    firing = dict(iter(study.firing.groupby("group")))
    operations = dict(iter(study.operations.groupby("group")))
    empty = study.firing.iloc[:0], study.operations.iloc[:0]
    frames = [
        _layers_of(group, firing.get(group, empty[0]), operations.get(group, empty[1]), energies)
        for group in study.groups
    ]
    return pd.concat(frames, ignore_index=True)


def parts(study: StudyResults, energies: Sequence[str] = ("energy_mj",)) -> pd.DataFrame:
    """:func:`layers` summed over each part of the network, such as the MLP of stage 1.

    Returns:
        Columns group, whole (the part), rate (over all its neurons), macs, acs, each of
        ``energies``, share.
    """
    each = layers(study, energies)
    each["spikes"] = each["rate"] * each["neurons"]
    each["neurons"] = each["neurons"].where(each["rate"].notna())
    keys = ["group", "whole"]
    summed = ["spikes", "neurons", "macs", "acs", *energies, "share"]
    found = each.groupby(keys, sort=False)[summed].sum(min_count=1).reset_index()
    found.insert(2, "rate", found["spikes"] / found["neurons"])
    return found.drop(columns=["spikes", "neurons"])


def _layers_of(
    group: str, firing: pd.DataFrame, operations: pd.DataFrame, energies: Sequence[str]
) -> pd.DataFrame:
    names = layer_names([*operations["layer"].unique(), *firing["layer"].unique()])
    order = _woven(list(operations["layer"].unique()), list(firing["layer"].unique()))
    told = operations.groupby("layer", sort=False)[["kind", "input"]].first()
    counts = ["dense_macs", "input_rate", "macs", "acs"]
    means = operations.groupby("layer", sort=False)[counts].mean()
    fired = firing.groupby("layer", sort=False)[["rate", "neurons"]].mean()
    found = pd.concat([told, fired, means], axis=1).reindex(order)
    found.insert(0, "group", group)
    found.insert(1, "layer", found.index)
    for place, attribute in enumerate(("place", "part", "words", "whole"), 2):
        found.insert(place, attribute, [getattr(names[path], attribute) for path in order])
    for measure in energies:
        found[measure] = layer_energy(operations, measure)
    first = found[energies[0]]
    found["share"] = first / (first.sum() or np.nan)
    return found.reset_index(drop=True)


def _woven(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """Both in one order: what only ``second`` has stands after what precedes it there."""
    order, place = list(first), 0
    for name in second:
        if name in order:
            place = order.index(name) + 1
        else:
            order.insert(place, name)
            place += 1
    return order


def in_reading_order(paths: Sequence[str]) -> list[str]:
    """``paths`` in their order, but the branches of one attention by their size."""
    found: list[str] = []
    for _, same in groupby(paths, key=lambda path: (bool(_size(path)), _block(path)[0])):
        found += sorted(same, key=_size)
    return found


def _size(path: str) -> int:
    """Tokens that a branch sees; 0 of what is no branch."""
    scale = re.search(r"\.branches\.(?:\w+\.)?scale(\d+)", path)
    return int(scale[1]) if scale else 0


def outline(names: Sequence[LayerName]) -> list[str]:
    """Words of consecutive layers, where a part is named at its first one only."""
    found = []
    for _, same in groupby(names, key=lambda name: name.whole):
        for number, name in enumerate(same):
            found.append(name.words if number == 0 or not name.unit else name.unit)
    return found
