"""What was looked at: one cell, over its test images and on some of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from analysis.layers import LayerName, layer_names
from msvit.inside import ImageLook, LayerSurvey, Pair, Survey


@dataclass(frozen=True)
class Look:
    """One cell.

    Attributes:
        label: of its configuration, seed and all.
        survey: its token attentions over test images; without layers where it has none.
        images: those that were chosen; ``rasters`` are those whose spikes are drawn.
        differing: by layer, those on which the two scales that are least alike differ most.
        classes: those that figures show.
        recorded: test accuracy that the record says.
    """

    label: str
    survey: Survey
    images: Sequence[ImageLook]
    rasters: Sequence[ImageLook]
    differing: Mapping[str, Sequence[ImageLook]]
    classes: Sequence[int]
    recorded: float

    @property
    def seen(self) -> str:
        """How many images means are over."""
        many, there = len(self.survey.indices), self.survey.there
        return f"all {there} test images" if many == there else f"{many} of {there} test images"

    @cached_property
    def words(self) -> dict[str, LayerName]:
        """Of every layer that votes, and of every one that fires."""
        spiking = [layer for image in self.images[:1] for layer in image.spikes]
        voting = {path: seen.branches for path, seen in self.survey.layers.items()}
        return voting_words(voting, spiking)


def least_alike(seen: LayerSurvey) -> Pair:
    """Of two or more scales, those that would keep the fewest of their tokens both."""
    return min(seen.pairs, key=_overlap)


def _overlap(pair: Pair) -> float:
    """Of what either alone would keep, the share that both would."""
    return pair.both / pair.either if pair.either else 1.0


def voting_words(
    voting: Mapping[str, Sequence[str]], others: Sequence[str] = ()
) -> dict[str, LayerName]:
    """Words of attentions, of which the branches are given, and of ``others`` of the network."""
    parts = [f"{path}.branches.{name}" for path, names in voting.items() for name in names]
    return layer_names([*voting, *parts, *others])


def branch_words(name: str) -> str:
    """``scale3`` → ``scale 3``; a second one of that size, ``scale3_2`` → ``scale 3 (2nd)``."""
    size, _, number = name.removeprefix("scale").partition("_")
    which = {"": "", "2": " (2nd)", "3": " (3rd)"}.get(number, f" ({number}th)")
    return f"scale {size}{which}"


def first_of_each_class(labels: np.ndarray, classes: Iterable[int]) -> list[int]:
    """Places in the test set; classes without images are left out."""
    places = [np.flatnonzero(labels == one) for one in classes]
    return [int(place[0]) for place in places if len(place)]
