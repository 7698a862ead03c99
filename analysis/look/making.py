"""From a finished cell to its look, and to the files of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from analysis.canvas import slug, write_figures
from analysis.look import MANIFEST
from analysis.look.content import Look, first_of_each_class, least_alike, voting_words
from analysis.look.frames import frames
from analysis.look.maps import differing_images, pairs_of_scales, votes_of_classes, votes_of_images
from analysis.look.scales import weight_of_scales
from analysis.look.spikes import spikes_of_image
from analysis.look.words import sentences
from msvit.inside import Survey, look_at, survey, voting_layers
from msvit.options import ConfigError, unknown
from msvit.training.kept import KeptCell

USUAL_IMAGES = 6
"""The first test images of as many classes, unless others are asked for."""
DIFFERING = 4
"""Images on which scales differ most."""


@dataclass(frozen=True)
class Wanted:
    """What to look at.

    Attributes:
        images: places in the test set, from 0.
        classes: of which the first image each, and which alone figures by class show.
        layers: paths of attentions, or words for them; none: all.
        most: of the test images, for means; None: all.
    """

    images: tuple[int, ...] = ()
    classes: tuple[int, ...] = ()
    layers: tuple[str, ...] = ()
    most: int | None = None


def look_inside(cell: KeptCell, label: str, wanted: Wanted = Wanted()) -> Look:
    """Run the network over its test images, and look at the chosen ones.

    Raises:
        ConfigError: for images, classes or layers that there are not, and for a network that has
            neither neurons nor token attention.
    """
    labels = cell.test.samples.labels.cpu().numpy()
    number = cell.cell.model["num_classes"]
    layers = _layers(cell, wanted.layers)
    _check_places("--images", wanted.images, len(labels), "test images")
    _check_places("--classes", wanted.classes, number, "classes")
    classes = wanted.classes or range(number)
    usual = first_of_each_class(labels, classes)
    if not usual:
        raise ConfigError("--classes", "", "there are no test images of them")
    chosen = list(wanted.images) or (usual if wanted.classes else usual[:USUAL_IMAGES])
    images = dict(zip(chosen, look_at(cell, chosen), strict=True))
    if not layers and not images[chosen[0]].spikes:
        what = f"{cell.cell.model['name']} has neither neurons nor token attention"
        raise ConfigError(str(cell.folder), "", f"{what}: nothing to look at")
    found = survey(cell, wanted.most)
    found = replace(found, layers={path: found.layers[path] for path in layers})
    differing = _differing(found)
    others = sorted({i for order in differing.values() for i in order} - images.keys())
    images |= dict(zip(others, look_at(cell, others), strict=True))
    return Look(
        label=label,
        survey=found,
        images=[images[i] for i in chosen],
        rasters=[images[i] for i in wanted.images or chosen[:1]],
        differing={path: [images[i] for i in order] for path, order in differing.items()},
        classes=classes,
        recorded=cell.record["test"]["accuracy"],
    )


def write_look(look: Look, facts: Mapping[str, Any], folder: Path) -> list[str]:
    """Write the figures as PNG and PDF, ``frames/``, and last ``inside.json``; its sentences.

    Raises:
        OSError: if the folder cannot be written.
    """
    figures = {f"{n:02d}_{name}": f for n, (name, f) in enumerate(draw_look(look).items(), 1)}
    (folder / MANIFEST).unlink(missing_ok=True)
    write_figures(figures, folder)
    kept = folder / "frames"
    kept.mkdir(exist_ok=True)
    made = frames(look)
    for old in (*kept.glob("*.parquet"), *kept.glob("*.csv")):
        if old.stem not in made:
            old.unlink()
    for name, frame in made.items():
        frame.to_parquet(kept / f"{name}.parquet", index=False)
        if name in ("scales", "pairs"):
            frame.to_csv(kept / f"{name}.csv", index=False, lineterminator="\n")
    said = sentences(look)
    told = [
        {"name": name, "title": str(figure.get_label()), "text": figure.get_suptitle()}
        for name, figure in figures.items()
    ]
    manifest = {**facts, "label": look.label, "said": said, "figures": told}
    text = json.dumps(manifest, indent=1, ensure_ascii=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
    return said


def draw_look(look: Look) -> dict[str, Figure]:
    """All figures of a look, by name, in reading order."""
    found: dict[str, Figure | None] = {}
    for layer in look.survey.layers:
        end = slug(look.words[layer].place)
        found[f"votes_{end}"] = votes_of_images(look, layer)
        found[f"classes_{end}"] = votes_of_classes(look, layer)
        found[f"scales_{end}"] = weight_of_scales(look, layer)
        found[f"pairs_{end}"] = pairs_of_scales(look, layer)
        found[f"differing_{end}"] = differing_images(look, layer)
    for image in look.rasters:
        if image.spikes:
            found[f"spikes_{image.index}"] = spikes_of_image(look, image)
    return {name: figure for name, figure in found.items() if figure is not None}


def _layers(cell: KeptCell, asked: Sequence[str]) -> list[str]:
    """Paths of attentions, in network order."""
    voting = voting_layers(cell.model)
    words = voting_words(voting)
    names = {words[path].words: path for path in voting}
    names |= {words[path].place: path for path in voting} | {path: path for path in voting}
    for name in asked:
        if not voting:
            what = cell.cell.model["name"]
            message = f"{what} has no attention whose branches vote for tokens"
            raise ConfigError(
                "--layer", name, f"{message}; without --layer, its spikes are shown", " "
            )
        if name not in names:
            raise ConfigError("--layer", name, unknown(name, names, "no such attention"), " ")
    wanted = {names[name] for name in asked}
    return [path for path in voting if not asked or path in wanted]


def _check_places(option: str, places: Sequence[int], there: int, what: str) -> None:
    for place in places:
        if place >= there:
            message = f"there are {there} {what}, 0 to {there - 1}"
            raise ConfigError(option, str(place), message, " ")


def _differing(found: Survey) -> dict[str, list[int]]:
    """By layer, the images on which its two least alike branches disagree most."""
    order = {
        path: np.argsort(-least_alike(seen).by_image, kind="stable")[:DIFFERING]
        for path, seen in found.layers.items()
        if seen.pairs
    }
    return {path: found.indices[places].tolist() for path, places in order.items()}
