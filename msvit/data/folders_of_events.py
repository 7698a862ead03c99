"""Recordings in one folder for each class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from msvit.data.events import Events, Recordings
from msvit.options import DataError


def recordings_in(
    root: Path,
    folders: Mapping[str, str],
    classes: Sequence[str],
    suffix: str,
    read: Callable[[Path], list[tuple[int, Events]]],
) -> Recordings:
    """Those of each split, which has a folder (split → its name) with folders of ``classes``.

    Raises:
        DataError: as :func:`class_files`.
    """
    found = {s: class_files(root / name, classes, (suffix,)) for s, name in folders.items()}
    files = {split: [f for own in c.values() for f in own] for split, c in found.items()}
    counts = {split: [len(own) for own in c.values()] for split, c in found.items()}
    return Recordings(root, files, read, counts)


def class_files(
    folder: Path, classes: Sequence[str], suffixes: Sequence[str], fewest: int = 1
) -> dict[str, list[Path]]:
    """The recordings of each of ``classes``, in the order of their names.

    Raises:
        DataError: for a class without a folder, or with fewer recordings than ``fewest``.
    """
    found = {}
    for name in classes:
        place = folder / name
        try:
            files = sorted(
                f for f in place.iterdir() if f.suffix in suffixes and not f.name.startswith(".")
            )
        except OSError as error:
            raise DataError(f"{place}: cannot be read ({error.strerror})") from error
        if len(files) < fewest:
            raise DataError(
                f"{place}: {len(files) or 'no'} {' or '.join(suffixes)} "
                + ("file" if len(files) < 2 else "files")
                + (f"; at least {fewest} are needed" if fewest > 1 else "")
            )
        found[name] = files
    return found
