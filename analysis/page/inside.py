"""What ``analysis/inside.py`` has written of the cells of a study, as a part of its page."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageChops

from analysis.collect import StudyResults
from analysis.look import FOLDER, MANIFEST
from analysis.page.content import Inside, Picture
from analysis.page.pictures import data_uri
from msvit.records.store import cell_folder

_UNSEEN = 8
"""Of 255: how far 256 colours may lie from those of a picture, to take their place."""


@dataclass(frozen=True)
class _Written:
    """The files of one cell: names, titles and texts of figures, in reading order."""

    folder: Path
    label: str
    cell: str
    said: tuple[str, ...]
    figures: tuple[tuple[str, str, str], ...]


def insides_of(study: StudyResults, room: float) -> tuple[list[Inside], list[str], list[str]]:
    """What cells of the study hold inside, as far as ``room`` (characters) goes.

    Returns:
        A part per cell that was looked into; the figures that there is no room for; a line for
        each file that could not be used. The first figure of every cell goes before the second of
        any.
    """
    written, warnings = _written(study)
    pictures: dict[tuple[str, str], Picture] = {}
    left_out: list[str] = []
    most = max((len(one.figures) for one in written), default=0)
    for place in range(most):
        for one in (one for one in written if place < len(one.figures)):
            name, title, text = one.figures[place]
            try:
                source = data_uri("image/png", _smaller(one.folder / f"{name}.png"))
            except OSError as error:
                warnings.append(f"{one.folder / name}.png: {error}. {_AGAIN}")
                continue
            room -= len(source)
            if room < 0:
                left_out.append(f"{one.label}: {name}")
                continue
            key = f"inside-{one.cell}-{name}"
            pictures[one.cell, name] = Picture(key, title.partition(": ")[2], text, source)
    found = [_inside(one, pictures) for one in written]
    return [one for one in found if one.pictures], left_out, warnings


_AGAIN = "Make it again: python analysis/inside.py CELL"


def _inside(one: _Written, pictures: dict[tuple[str, str], Picture]) -> Inside:
    shown = (pictures.get((one.cell, name)) for name, _, _ in one.figures)
    return Inside(one.label, one.cell, one.said, tuple(p for p in shown if p is not None))


def _written(study: StudyResults) -> tuple[list[_Written], list[str]]:
    results = study.folder.parent.parent
    found, warnings = [], []
    for row in study.finished.itertuples():
        folder = cell_folder(results, row.id) / FOLDER
        path = folder / MANIFEST
        if not path.is_file():
            continue
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            figures = tuple(_figure(figure) for figure in told["figures"])
            said = tuple(map(str, told["said"]))
        except (OSError, ValueError, KeyError, TypeError):
            warnings.append(f"{path}: not readable. {_AGAIN}")
            continue
        found.append(_Written(folder, row.label, row.id, said, figures))
    return found, warnings


def _figure(told: Mapping[str, Any]) -> tuple[str, str, str]:
    return str(told["name"]), str(told["title"]), str(told["text"])


def _smaller(path: Path) -> bytes:
    """A PNG file, in 256 colours where nobody would see that: less than half of the bytes."""
    with Image.open(path) as image:
        whole = image.convert("RGB")
    method = Image.Quantize.MAXCOVERAGE
    few = whole.quantize(256, method=method, dither=Image.Dither.NONE)
    apart = np.asarray(ImageChops.difference(whole, few.convert("RGB")))
    target = io.BytesIO()
    same = apart.max(initial=0) <= _UNSEEN
    (few if same else whole).save(target, "PNG", optimize=True)
    return target.getvalue()
