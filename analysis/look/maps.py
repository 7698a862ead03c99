"""Figures of votes as maps: image by image, class by class, scale against scale."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from analysis.look.content import Look, branch_words, least_alike
from analysis.look.panels import Column, map_grid, picture
from msvit.inside import ImageLook, Pair
from msvit.inside.look import ImageVotes

MOST_CLASSES = 12
"""Rows of a figure."""
MOST_PAIRS = 6

_VOTES = "votes for a token"
_HOW = "Votes: spikes of a branch for a token, by head and time step"


def votes_of_images(look: Look, layer: str) -> Figure:
    """The score map of every scale and of their sum, and the mask, averaged over time and heads."""
    images = look.images
    seen = [image.votes[layer] for image in images]
    scores = np.stack([votes.scores.mean((1, 2)) for votes in seen])  # [images, S, H, W]
    masks = [votes.mask.mean((0, 1)) for votes in seen]
    columns = [_pictures(images), *_maps(seen[0].branches, scores, masks)]
    title = [f"{look.label}: what {look.words[layer].words} votes for"]
    title.append(f"{_HOW}, averaged over both. Mask: spikes of the attention neuron.")
    return map_grid([_of_image(image) for image in images], columns, title)


def votes_of_classes(look: Look, layer: str) -> Figure | None:
    """The same, averaged over the test images of each class."""
    seen = look.survey.layers[layer]
    there = [c for c in look.classes if not np.isnan(seen.class_masks[c]).any()]
    shown = there[:MOST_CLASSES]
    if not shown:  # of the classes that were asked for, the images that means are over have none
        return None
    columns = _maps(seen.branches, seen.class_maps[shown], list(seen.class_masks[shown]))
    counts = np.bincount(look.survey.labels, minlength=max(shown) + 1)
    rows = [f"class {c}\n({counts[c]} images)" for c in shown]
    title = [f"{look.label}: what {look.words[layer].words} votes for, by class"]
    title.append(f"Means over {look.seen}. {_HOW}.")
    if len(shown) < len(there):
        title.append(f"The first {len(shown)} of {len(there)} classes; all are in the frames.")
    return map_grid(rows, columns, title)


def pairs_of_scales(look: Look, layer: str) -> Figure | None:
    """Where each of two scales alone would keep a token that the other alone would not."""
    pairs = look.survey.layers[layer].pairs
    if not pairs:
        return None
    shown = pairs[:MOST_PAIRS]
    bar = "share of decisions"
    columns = [
        Column("only first", [pair.first_map for pair in shown], bar),
        Column("only second", [pair.second_map for pair in shown], bar),
    ]
    rows = [_of_pair(pair) for pair in shown]
    title = [f"{look.label}: where scales disagree, {look.words[layer].words}"]
    title.append(
        f"Share of all decisions (a token of a head in a time step) in which one scale, if it "
        f"alone voted, would keep the token and the other would not. Over {look.seen}. r: "
        "correlation of their votes over the tokens of an image."
    )
    if len(shown) < len(pairs):
        title.append(f"The first {len(shown)} of {len(pairs)} pairs; all are in the frames.")
    return map_grid(rows, columns, title)


def differing_images(look: Look, layer: str) -> Figure | None:
    """The images on which the two least alike scales disagree most, and where."""
    images = look.differing.get(layer)
    if not images:
        return None
    pair = least_alike(look.survey.layers[layer])
    first, second = branch_words(pair.first), branch_words(pair.second)
    seen = [image.votes[layer] for image in images]
    one, other = (seen[0].branches.index(name) for name in (pair.first, pair.second))
    votes = [[v.scores[i].mean((0, 1)) for v in seen] for i in (one, other)]
    only = [[_only(v, *two) for v in seen] for two in ((one, other), (other, one))]
    columns = [
        _pictures(images),
        *(Column(f"{name}", votes[i], _VOTES) for i, name in enumerate((first, second))),
        *(Column(f"only {n}", only[i], "share kept") for i, n in enumerate((first, second))),
    ]
    where = look.words[layer].words
    title = [f"{look.label}: images on which {first} and {second} disagree most, {where}"]
    title.append(f"Of {look.seen}. {_HOW}. Only: what this scale alone would keep, the other not.")
    return map_grid([_of_image(image) for image in images], columns, title)


def _maps(branches: Sequence[str], scores: np.ndarray, masks: Sequence[np.ndarray]) -> list[Column]:
    """Columns of the branches, their sum and the mask, of scores ``[rows, S, H, W]``."""
    names = [branch_words(name) for name in branches] if len(branches) > 1 else ["votes"]
    found = [Column(name, list(scores[:, i]), _VOTES) for i, name in enumerate(names)]
    if len(branches) > 1:
        found.append(Column("sum", list(scores.sum(1)), "sum of votes"))
    return [*found, Column("mask", masks, "spikes")]


def _pictures(images: Sequence[ImageLook]) -> Column:
    events = images[0].pixels.ndim == 4
    return Column("events" if events else "image", [picture(i.pixels) for i in images])


def _of_image(image: ImageLook) -> str:
    read = "" if image.label == image.predicted else f"\nread as {image.predicted}"
    return f"image {image.index}\nclass {image.label}{read}"


def _of_pair(pair: Pair) -> str:
    known = "" if math.isnan(pair.correlation) else f", r = {pair.correlation:.2f}"
    return (
        f"{branch_words(pair.first)}, {branch_words(pair.second)}\n"
        f"only: {pair.only_first:.1%}, {pair.only_second:.1%}\nboth: {pair.both:.1%}{known}"
    )


def _only(votes: ImageVotes, one: int, other: int) -> np.ndarray:
    """Share of heads and time steps in which ``one`` alone keeps a token, ``other`` not."""
    # Both are 0 or 1, or shares of a head's channels.
    return (votes.alone[one] * (1 - votes.alone[other])).mean((0, 1))
