"""Whether all images of a set that streams can be opened, and none is cut off: looked at once.

Otherwise a broken file would end a training when its turn comes, hours later.
"""

from __future__ import annotations

from pathlib import Path

from msvit.data.caches import cache_places, kept
from msvit.data.catalogue import Catalogue
from msvit.data.processes import by_all_cores

_TOGETHER = 512
_WORTH_A_PROCESS = 2000  # images


def check_images_of(catalogue: Catalogue) -> None:
    """Look at the beginning and end of each image; nothing that looks sound is decoded.

    Raises:
        DataError: naming the first that is not.
    """

    def known(place: Path) -> bool | None:
        return place.with_suffix(".ok").exists() or None

    def make(place: Path) -> bool:
        _look(catalogue)
        place.with_suffix(".ok").touch()
        return True

    if kept(cache_places(catalogue.root, catalogue.paths(), "sound"), known, make) is None:
        _look(catalogue)


def _look(catalogue: Catalogue) -> None:
    parts = [encoded for encoded, _ in catalogue.splits.values()]

    def look(part: int, start: int) -> None:
        chosen = parts[part][start : start + _TOGETHER]
        for index in range(len(chosen)):
            chosen.check(index)

    what = f"looking through {catalogue.root}"
    for _ in by_all_cores(what, look, catalogue.pieces(_TOGETHER), _WORTH_A_PROCESS):
        pass
