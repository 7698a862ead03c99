"""A look as tidy frames, one row per observation.

``images``: image (place in the test set, from 0), label, predicted.
``votes``, of chosen images: image, layer, map (a branch such as ``scale3``, or ``mask``), timestep,
    head, row, column, value (spikes; where branches vote channel by channel, means over a head).
``firing``, of chosen images: image, layer, timestep, rate (spikes per neuron), active (share of the
    neurons that fire at all). ``rasters``: image, layer, neuron, timestep, spikes.
``classes``, means over test images: layer, class, map, row, column, value.
``scales``: layer, branch, votes (for a token, by head and time step), vote_share, kept_alone (share
    of decisions that would let through, if it alone voted), changed_without (share that would be
    others without it), class_share (of the variation of the number of votes; bias corrected), kept
    (share that the mask lets through).
``pairs``: layer, first, second, correlation (of votes over tokens), both, only_first, only_second
    (shares of decisions). ``pair_maps``: layer, first, second, only, row, column, share.
``differences``: image, label, predicted, layer, first, second, share (of decisions that differ).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.look.content import Look
from msvit.inside import LayerSurvey

Axes = Mapping[str, Sequence[Any] | np.ndarray]
"""Names of the axes of an array, and what stands along each."""


def frames(look: Look) -> dict[str, pd.DataFrame]:
    """All frames that there are, by the names of their files."""
    found: dict[str, list[pd.DataFrame]] = {"images": [_images(look)]}
    for image in look.images:
        for layer, seen in image.spikes.items():
            steps = range(len(seen.rate))
            key = {"image": image.index, "layer": layer}
            rates = tidy(seen.rate, {"timestep": steps}, key, "rate")
            _add(found, "firing", rates.assign(active=seen.active))
            axes: Axes = {"neuron": seen.neurons, "timestep": steps}
            _add(found, "rasters", tidy(seen.raster, axes, key, "spikes"))
        for layer in look.survey.layers:
            votes = image.votes[layer]
            maps = np.concatenate([votes.scores, votes.mask[None]])
            steps, heads, rows, columns = map(range, maps.shape[1:])
            axes = {"map": (*votes.branches, "mask"), "timestep": steps, "head": heads}
            axes |= {"row": rows, "column": columns}
            _add(found, "votes", tidy(maps, axes, {"image": image.index, "layer": layer}))
    for layer, of_layer in look.survey.layers.items():
        for name, frame in _of_layer(look, of_layer):
            frame.insert(0, "layer", layer)
            _add(found, name, frame)
    return {name: pd.concat(parts, ignore_index=True) for name, parts in found.items()}


def tidy(
    values: np.ndarray,
    axes: Axes,
    key: Mapping[str, Any] | None = None,
    name: str = "value",
) -> pd.DataFrame:
    """An array as rows: the ``key``, its place on each of the ``axes``, the value."""
    index = pd.MultiIndex.from_product(list(axes.values()), names=list(axes))
    frame = pd.DataFrame({name: values.reshape(-1)}, index=index).reset_index()
    for place, (column, value) in enumerate((key or {}).items()):
        frame.insert(place, column, value)
    return frame


def scale_rows(seen: LayerSurvey) -> pd.DataFrame:
    """A row per branch of a layer, as in ``scales``."""
    return pd.DataFrame(
        {
            "branch": seen.branches,
            "votes": seen.votes,
            "vote_share": seen.votes / (seen.votes.sum() or np.nan),
            "kept_alone": seen.alone,
            "changed_without": seen.changed,
            "class_share": seen.class_share,
            "kept": seen.kept,
        }
    )


def _images(look: Look) -> pd.DataFrame:
    survey = look.survey
    known = {"image": survey.indices, "label": survey.labels, "predicted": survey.predicted}
    return pd.DataFrame(known)


def _of_layer(look: Look, seen: LayerSurvey) -> Iterator[tuple[str, pd.DataFrame]]:
    """Parts of frames, by their names."""
    classes, rows, columns = map(range, seen.class_masks.shape)
    maps = np.concatenate([seen.class_maps, seen.class_masks[:, None]], axis=1)
    named = (*seen.branches, "mask")
    axes: Axes = {"class": classes, "map": named, "row": rows, "column": columns}
    yield "classes", tidy(maps, axes).dropna()
    yield "scales", scale_rows(seen)
    for pair in seen.pairs:
        key = {"first": pair.first, "second": pair.second}
        shares = {name: getattr(pair, name) for name in ("both", "only_first", "only_second")}
        yield "pairs", pd.DataFrame([{**key, "correlation": pair.correlation, **shares}])
        axes = {"only": (pair.first, pair.second), "row": rows, "column": columns}
        only = np.stack([pair.first_map, pair.second_map])
        yield "pair_maps", tidy(only, axes, key, "share")
        yield "differences", _images(look).assign(**key, share=pair.by_image)


def _add(found: dict[str, list[pd.DataFrame]], name: str, frame: pd.DataFrame) -> None:
    found.setdefault(name, []).append(frame)
