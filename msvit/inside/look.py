"""Chosen test images, one by one, in the very batches in which they were tested."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from msvit.inside.spikes import LayerSpikes, SpikeWatch
from msvit.inside.votes import Votes, VoteWatch
from msvit.training.kept import KeptCell

NEURONS = 8
"""Of each layer, in a raster."""


@dataclass(frozen=True)
class ImageVotes:
    """The votes of one layer for the tokens of one image; ``S`` branches.

    Where branches vote channel by channel, means over the channels of a head.

    Attributes:
        branches: their names.
        scores: float32 ``[S, T, heads, H, W]``, spikes that each branch adds to the score.
        mask: float32 ``[T, heads, H, W]``, what the attention neuron has made of their sum.
        alone: float32 ``[S, T, heads, H, W]``, 1 where it would let through what is there if the
            branch alone voted.
    """

    branches: tuple[str, ...]
    scores: np.ndarray
    mask: np.ndarray
    alone: np.ndarray


@dataclass(frozen=True)
class ImageLook:
    """What a network does with one image.

    Attributes:
        index: of the image in the test set, from 0.
        label, predicted: classes.
        pixels: bytes ``[C, H, W]``, or counts of events ``[T, C, H, W]``.
        votes: by layer; empty for a network without token attention.
        spikes: by layer; empty for a network without neurons.
    """

    index: int
    label: int
    predicted: int
    pixels: np.ndarray
    votes: Mapping[str, ImageVotes]
    spikes: Mapping[str, LayerSpikes]


def look_at(cell: KeptCell, indices: Sequence[int]) -> list[ImageLook]:
    """The test images at ``indices``, in this order.

    A batch is computed as a whole, since what is rounded, and what a batch-coupled network
    computes, depends on the others in it.
    """
    size, there = cell.test.batch_size, len(cell.test)
    batches = sorted({index // size for index in indices})
    # All but the last batch of the test are full, so the loader cuts where the test did.
    if not batches:
        return []
    order = torch.cat([torch.arange(b * size, min((b + 1) * size, there)) for b in batches])
    found: dict[int, ImageLook] = {}
    with VoteWatch(cell.model) as votes, SpikeWatch(cell.model, NEURONS) as spikes:
        for number, batch in zip(batches, cell.test.batches(order), strict=True):
            here = sorted({index for index in indices if index // size == number})
            places = [index - number * size for index in here]
            spikes.places = places
            predicted = cell.logits(batch.images).argmax(-1)
            maps = {path: _maps(seen, places) for path, seen in votes.seen.items()}
            for i, (index, place) in enumerate(zip(here, places, strict=True)):
                found[index] = ImageLook(
                    index=index,
                    label=int(batch.labels[place]),
                    predicted=int(predicted[place]),
                    pixels=batch.images[place].cpu().numpy(),
                    votes={path: images[i] for path, images in maps.items()},
                    spikes={layer: images[i] for layer, images in spikes.seen.items()},
                )
    return [found[index] for index in indices]


def _maps(seen: Votes, places: Sequence[int]) -> list[ImageVotes]:
    chosen = torch.as_tensor(places, device=seen.mask.device)
    # [..., B, H, W, heads, d] → [..., heads, H, W] of each image
    scores, mask, alone = (
        maps.index_select(-5, chosen).float().mean(-1).movedim(-1, -3).cpu().numpy()
        for maps in (seen.scores, seen.mask, seen.alone)
    )
    return [
        ImageVotes(seen.branches, scores[:, :, i], mask[:, i], alone[:, :, i])
        for i in range(len(places))
    ]
