"""Mean and deviation of the pixels of a training set, by which images are normalised."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from msvit.data.caches import cache_places, kept
from msvit.data.encoded import Encoded
from msvit.data.processes import by_all_cores
from msvit.data.views import View
from msvit.files import replace_file

MOST_DECODED = 10_000
"""Images on disk that are measured, of more as many evenly spaced: to 0.001 of a deviation."""

_TOGETHER = 64

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and deviation of pixels in [0, 1], one per channel, to four decimals."""


def of_array(images: np.ndarray) -> Statistics:
    """Of all ``images``, uint8 ``[N, C, H, W]``."""
    total = np.zeros((2, images.shape[1]))
    for start in range(0, len(images), 1024):
        total += _sums(images[start : start + 1024])
    return _statistics(total, images.size // images.shape[1])


def of_files(encoded: Encoded, view: View) -> Statistics:
    """Of encoded images as ``view`` shows them; measured once and kept.

    Raises:
        DataError: for an image that cannot be read or shown.
    """
    chosen = encoded
    if len(encoded) > MOST_DECODED:
        chosen = encoded[np.linspace(0, len(encoded) - 1, MOST_DECODED).astype(np.int64)]

    def make(place: Path) -> Statistics:
        found = _measured(chosen, view)
        content = json.dumps({"mean": found[0], "std": found[1]}).encode()
        replace_file(place.with_suffix(".json"), lambda file: file.write(content))
        return found

    places = cache_places(encoded.root, chosen.paths(), "statistics", repr(view))
    return kept(places, _read, make) or _measured(chosen, view)


def _measured(encoded: Encoded, view: View) -> Statistics:
    def sums(start: int) -> np.ndarray:
        part = encoded[start : start + _TOGETHER]
        return _sums(np.stack([part.pixels(index, view, ()) for index in range(len(part))]))

    images = len(encoded)
    starts = range(0, images, _TOGETHER)
    pieces = [(min(_TOGETHER, images - start), (start,)) for start in starts]
    what = f"measuring mean and deviation of {encoded.root}"
    total = np.zeros((2, 3))
    for part in by_all_cores(what, sums, pieces, 4 * _TOGETHER):
        total += part
    return _statistics(total, images * view.size**2)


def _sums(images: np.ndarray) -> np.ndarray:
    """Of values and of their squares, by channel: float64 ``[2, C]``, exact below 2⁵³."""
    wide = images.astype(np.uint64)
    return np.stack([wide.sum((0, 2, 3)), (wide * wide).sum((0, 2, 3))]).astype(np.float64)


def _statistics(sums: np.ndarray, pixels: int) -> Statistics:
    mean, square = sums / pixels
    deviation = np.sqrt(np.maximum(square - mean**2, 0))
    rounded = [tuple(round(float(v) / 255, 4) for v in values) for values in (mean, deviation)]
    return rounded[0], rounded[1]


def _read(place: Path) -> Statistics | None:
    try:
        found = json.loads(place.with_suffix(".json").read_text("utf-8"))
        return tuple(map(float, found["mean"])), tuple(map(float, found["std"]))
    except (OSError, ValueError, LookupError, TypeError):
        return None
