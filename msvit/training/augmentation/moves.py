"""Mirroring and shifting: each image of a batch on its own, in one gather."""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

from msvit import workers
from msvit.runtime import to_device


def mirror_and_shift(
    images: Tensor, hflip: bool, shift: int, random: Generator, turns: int = 1
) -> Tensor:
    """Mirror and move each of ``images`` ``[B, C, H, W]`` on its own, in one gather.

    Rows and columns that move in are 0 (black, for bytes). ``random`` is a CPU generator. All
    frames of an event sample ``[B, T, C, H, W]`` are treated alike. ``turns`` as of
    :func:`msvit.workers.own`: it is drawn for the images of all workers.
    """
    if not hflip and not shift:
        return images
    if images.ndim == 5:
        planes = mirror_and_shift(images.flatten(1, 2), hflip, shift, random, turns)
        return planes.unflatten(1, images.shape[1:3])
    count, channels, height, width = images.shape
    of_all = count * workers.count()
    offsets = torch.randint(0, 2 * shift + 1, (2, of_all, 1), generator=random)
    offsets = workers.own(offsets, 1, turns)
    rows = torch.arange(height) + offsets[0]  # [B, H] in the padded image
    columns = torch.arange(width)
    if hflip:
        mirrored = workers.own(torch.rand(of_all, 1, generator=random), 0, turns) < 0.5
        columns = torch.where(mirrored, columns.flip(0), columns)
    columns = columns + offsets[1]  # [B, W]
    padded = pad(images, (shift, shift, shift, shift))
    rows, columns = to_device(rows, images.device), to_device(columns, images.device)
    image = torch.arange(count, device=images.device).view(-1, 1, 1, 1)
    channel = torch.arange(channels, device=images.device).view(1, -1, 1, 1)
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]
