"""The augmentation of the event papers, on the device and the batch, without a wait for the host.

``SNNAugmentWide`` of the released Spikformer and QKFormer code (after Li et al. 2022, Neuromorphic
Data Augmentation, arXiv 2203.06145): every second sample is mirrored, then one of six operations is
drawn for each: none, a shear by up to 0.3, a move by up to 5 pixels along a row or a column, a turn
by up to 30°, or a square cut out, of up to 11% of the plane. All frames of a sample are treated
alike. Operations and their strengths are torchvision's, with the nearest pixel.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn.functional import grid_sample

from msvit import workers
from msvit.runtime import to_device

OPERATIONS = ("identity", "shear", "move_along_row", "move_along_column", "turn", "cut")

_STRENGTHS = 31  # from one end of a range to the other, evenly
_SHEAR = 0.3
_PIXELS = 5.0
_DEGREES = 30.0
_CUT = (0.001, 0.11)  # share of the plane


def augment_events(frames: Tensor, random: Generator, turns: int = 1) -> Tensor:
    """``frames`` ``[B, T, C, H, W]``, bytes or floats, changed sample by sample.

    ``random`` is a CPU generator: what it draws is the same on every device. Pixels that move in
    have seen nothing. ``turns`` as of :func:`msvit.workers.own`: it is drawn for all workers.
    """
    count, height, width = len(frames) * workers.count(), *frames.shape[-2:]
    mirrored = torch.rand(count, generator=random) < 0.5
    operation = torch.randint(len(OPERATIONS), (count,), generator=random)
    steps = torch.randint(_STRENGTHS, (count,), generator=random)
    holes = _holes(count, height, width, random)
    is_cut = operation == OPERATIONS.index("cut")
    holes[:, ~is_cut] = 0
    mirrored, operation, steps = (workers.own(x, 0, turns) for x in (mirrored, operation, steps))
    holes = workers.own(holes, 1, turns)

    device = frames.device
    flags, holes = to_device(mirrored, device), to_device(holes, device)
    sources = to_device(_sources(operation, steps), device)
    frames = torch.where(flags.view(-1, 1, 1, 1, 1), frames.flip(-1), frames)
    return _cut(_moved(frames, sources), holes)


def _holes(count: int, height: int, width: int, random: Generator) -> Tensor:
    """Top, left, height and width of a square for each sample, as torchvision's RandomErasing."""
    low, high = _CUT
    share = low + (high - low) * torch.rand(count, generator=random)
    side = (share * height * width).sqrt().round().long()
    corner = torch.rand(2, count, generator=random)
    top = (corner[0] * (height - side + 1)).long()
    left = (corner[1] * (width - side + 1)).long()
    return torch.stack([top, left, side, side])


def _sources(operation: Tensor, steps: Tensor) -> Tensor:
    """Where each pixel is taken from: ``[B, 2, 3]`` for (x, y, 1) around the centre, in pixels."""

    def strength(most: float) -> Tensor:
        return torch.linspace(-most, most, _STRENGTHS)[steps]

    matrices = torch.eye(2, 3).repeat(len(operation), 1, 1)
    shear, along_row, along_column, turn = (operation == index for index in range(1, 5))
    matrices[:, 0, 1] += torch.where(shear, strength(_SHEAR).tan(), 0)
    moved = strength(_PIXELS).trunc()  # whole pixels
    matrices[:, 0, 2] -= torch.where(along_row, moved, 0)
    matrices[:, 1, 2] -= torch.where(along_column, moved, 0)
    angle = torch.where(turn, strength(_DEGREES).deg2rad(), 0)
    cosine, sine = angle.cos(), angle.sin()
    matrices[:, 0, 0] *= cosine
    matrices[:, 1, 1] *= cosine
    matrices[:, 0, 1] -= sine
    matrices[:, 1, 0] += sine
    return matrices


def _moved(frames: Tensor, sources: Tensor) -> Tensor:
    """Every pixel from where ``sources`` say, the nearest one there; 0 from outside."""
    height, width = frames.shape[-2:]
    y = torch.arange(height, device=frames.device) - (height - 1) / 2
    x = torch.arange(width, device=frames.device) - (width - 1) / 2
    places = torch.stack(
        [*torch.meshgrid(x, y, indexing="xy"), torch.ones_like(x).expand(height, -1)]
    )
    grid = (sources @ places.flatten(1)).unflatten(-1, (height, width))  # [B, 2, H, W]
    half = torch.stack([sources.new_tensor(width / 2), sources.new_tensor(height / 2)])
    grid = (grid / half.view(1, 2, 1, 1)).permute(0, 2, 3, 1)
    planes = frames.flatten(1, 2).float()
    moved = grid_sample(planes, grid, mode="nearest", align_corners=False)
    return moved.to(frames.dtype).view(frames.shape)


def _cut(frames: Tensor, holes: Tensor) -> Tensor:
    """0 within the squares: ``holes`` are their top, left, height and width, ``[4, B]``."""
    rows = torch.arange(frames.shape[-2], device=frames.device)[:, None]
    columns = torch.arange(frames.shape[-1], device=frames.device)
    top, left, height, width = holes.view(4, -1, 1, 1)
    inside = (rows >= top) & (rows < top + height) & (columns >= left) & (columns < left + width)
    return frames.masked_fill(inside[:, None, None], 0)
