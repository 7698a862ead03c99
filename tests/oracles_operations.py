"""Operations counted one synapse after the other, in loops over plain numbers.

Nothing of the package's rules is used: a convolution is walked pixel by pixel, tap by tap and
channel by channel, a product number by number. Only images and time steps are summed up first,
because all of them meet the same synapses.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np


@dataclass
class Count:
    """Synapses that there are, what values make of them, and what values other than zero do."""

    synapses: int = 0
    synops: float = 0
    active: int = 0
    kind: str = ""
    rate: float = 0.0


def summed(x: np.ndarray) -> tuple[list, list, int]:
    """``[T, B, ...]`` → magnitudes, values other than zero, by place; and how many were summed."""
    flat = x.reshape(-1, *x.shape[2:])
    return np.abs(flat).sum(0).tolist(), (flat != 0).sum(0).tolist(), len(flat)


def kind_of(x: np.ndarray) -> str:
    if ((x == 0) | (x == 1)).all():
        return "spikes"
    return "analog" if (x % 1).any() else "integer"


def convolution(
    x: np.ndarray,
    outputs: int,
    kernel: tuple[int, int],
    stride: int = 1,
    padding: tuple[int, int] = (0, 0),
    groups: int = 1,
) -> Count:
    """Every synapse of a convolution of ``x [T, B, H, W, C]``; zero padding has none."""
    values, active, times = summed(x)
    height, width, channels = x.shape[2:]
    rows = (height + 2 * padding[0] - kernel[0]) // stride + 1
    columns = (width + 2 * padding[1] - kernel[1]) // stride + 1
    count = Count()
    for row, column, dy, dx in product(*map(range, (rows, columns, *kernel))):
        y, z = row * stride - padding[0] + dy, column * stride - padding[1] + dx
        if not (0 <= y < height and 0 <= z < width):
            continue
        for output in range(outputs):
            group = output * groups // outputs
            for channel in range(channels // groups):
                source = group * (channels // groups) + channel
                count.synapses += times
                count.synops += values[y][z][source]
                count.active += active[y][z][source]
    return count


def fully_connected(x: np.ndarray, outputs: int) -> Count:
    """Every synapse of a layer on the last axis of ``x [T, B, ..., C]``."""
    values, active, times = summed(x.reshape(*x.shape[:2], -1))
    count = Count()
    for source, _ in product(range(len(values)), range(outputs)):
        count.synapses += times
        count.synops += values[source]
        count.active += active[source]
    return count


def of_products(a: np.ndarray, b: np.ndarray) -> tuple[Count, Count, int]:
    """``a [T, B, heads, n, m] @ b [T, B, heads, m, p]``: by a's values, by b's, and where both."""
    left, right = (Count(kind=kind_of(x), rate=float(np.abs(x).mean())) for x in (a, b))
    joint = 0
    for step, image, head in np.ndindex(a.shape[:3]):
        one, other = a[step, image, head].tolist(), b[step, image, head].tolist()
        for n, m, p in product(range(len(one)), range(len(other)), range(len(other[0]))):
            x, y = one[n][m], other[m][p]
            for count, value in ((left, x), (right, y)):
                count.synapses += 1
                count.synops += abs(value)
                count.active += value != 0
            joint += x != 0 and y != 0
    return left, right, joint
