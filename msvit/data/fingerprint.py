"""Which images a data set has found: enough to tell one folder's from another's. Needs no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from typing_extensions import TypedDict

if TYPE_CHECKING:
    import numpy as np

DIGITS = 16


class Fingerprint(TypedDict):
    """Of the images as they were found, before any of our options has chosen among them."""

    counts: dict[str, list[int]]  # split → images of each class
    digest: str  # of the decoded images and their labels


def fingerprint(sets: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Fingerprint:
    """Of ``sets``, split → images uint8 ``[N, ...]`` and their labels ``[N]``."""
    import numpy as np

    counts, digest = {}, hashlib.sha256()
    for split, (images, labels) in sets.items():
        counts[split] = np.bincount(labels).tolist()
        digest.update(f"{split} {images.shape}".encode())
        digest.update(np.ascontiguousarray(images).data)
        digest.update(labels.astype("<i8").tobytes())
    return {"counts": counts, "digest": digest.hexdigest()[:DIGITS]}


def describe_images(found: Fingerprint) -> str:
    """``50,000 train and 10,000 test images, digest 0123456789abcdef``."""
    return f"{describe_counts(found['counts'])}, digest {found['digest']}"


def describe_counts(counts: Mapping[str, Sequence[int]]) -> str:
    """``50,000 train and 10,000 test images``."""
    sizes = [f"{sum(classes):,} {split}" for split, classes in counts.items()]
    return f"{' and '.join(sizes)} images"
