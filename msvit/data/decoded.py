"""Encoded images decoded once, by all cores, and kept as one array that processes map.

They map it instead of decoding again: they share one copy, and only the pages that are used are
read. A file beside it tells which images they are.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from msvit.data.caches import cache_places, kept, mapped_bytes
from msvit.data.catalogue import Catalogue
from msvit.data.fingerprint import Fingerprint, fingerprint
from msvit.data.processes import by_all_cores, shared_bytes
from msvit.data.views import View, Whole
from msvit.files import replace_file, replacing

_TOGETHER = 128  # images that a process decodes at a time
_WORTH_A_PROCESS = 500  # images; fewer are decoded sooner than a process has begun

_log = logging.getLogger("msvit")

Decoded = tuple[dict[str, np.ndarray], Fingerprint]
"""Split → images uint8 ``[N, 3, size, size]``, and which images they are."""


def decoded(catalogue: Catalogue, view: View) -> Decoded:
    """All images as ``view`` shows them, from where they are kept, or decoded now.

    Raises:
        DataError: for a file that is no image, or not one that the view shows.
    """

    def make(place: Path) -> Decoded:
        _log.info("decoding %s once, into %s", catalogue.root, place.parent)
        return _decode_into(catalogue, view, place)

    found = kept(_places(catalogue, view), lambda place: _read(catalogue, place), make)
    if found is not None:
        return found
    images = shared_bytes((len(catalogue), 3, view.size, view.size))
    _decode(catalogue, view, images)
    return _divided(catalogue, images)


def known_fingerprint(catalogue: Catalogue, view: View) -> Fingerprint | None:
    """Of images that have been decoded before; None where none are kept."""
    read = (_read_fingerprint(place) for place in _places(catalogue, view))
    return next((found for found in read if found is not None), None)


def _places(catalogue: Catalogue, view: View) -> list[Path]:
    more = "" if isinstance(view, Whole) else repr(view)
    return cache_places(catalogue.root, catalogue.paths(), "images", more)


def _decode_into(catalogue: Catalogue, view: View, place: Path) -> Decoded:
    with replacing(place.with_suffix(".npy")) as file:
        images = mapped_bytes(file, (len(catalogue), 3, view.size, view.size))
        _decode(catalogue, view, images)
        images.flush()
        arrays, found = _divided(catalogue, images)
    content = json.dumps(found).encode()
    replace_file(place.with_suffix(".json"), lambda file: file.write(content))
    return arrays, found


def _decode(catalogue: Catalogue, view: View, images: np.ndarray) -> None:
    """Fill ``images`` with all of the catalogue, split behind split."""
    parts = [encoded for encoded, _ in catalogue.splits.values()]

    places = list(_by_split(catalogue, images).values())

    def decode(part: int, start: int) -> None:
        chosen = parts[part][start : start + _TOGETHER]
        for index in range(len(chosen)):
            places[part][start + index] = chosen.pixels(index, view, ())

    what = f"decoding {catalogue.root}"
    for _ in by_all_cores(what, decode, catalogue.pieces(_TOGETHER), _WORTH_A_PROCESS):
        pass


def _divided(catalogue: Catalogue, images: np.ndarray) -> Decoded:
    arrays = _by_split(catalogue, images)
    sets = {split: (arrays[split], labels) for split, (_, labels) in catalogue.splits.items()}
    return arrays, fingerprint(sets)


def _by_split(catalogue: Catalogue, images: np.ndarray) -> dict[str, np.ndarray]:
    ends = np.cumsum([0, *(len(encoded) for encoded, _ in catalogue.splits.values())])
    parts = zip(catalogue.splits, ends[:-1], ends[1:], strict=True)
    return {split: images[start:end] for split, start, end in parts}


def _read(catalogue: Catalogue, place: Path) -> Decoded | None:
    known = _read_fingerprint(place)
    if known is None:
        return None
    file = place.with_suffix(".npy")
    try:
        images = np.load(file, mmap_mode="c")
    except FileNotFoundError:
        return None
    except Exception as error:
        _log.warning("%s is broken (%s): decoding again", file, error)
        return None
    return _by_split(catalogue, images), known


def _read_fingerprint(place: Path) -> Fingerprint | None:
    try:
        found: Mapping[str, object] = json.loads(place.with_suffix(".json").read_text("utf-8"))
        return Fingerprint(counts=found["counts"], digest=found["digest"])  # type: ignore[typeddict-item]
    except (OSError, ValueError, LookupError, TypeError):
        return None
