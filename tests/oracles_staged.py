"""Plain and slow formulas of SpikingResformer's and Meta-SpikeFormer's layers.

As in :mod:`tests.oracles`, on nested lists and with nothing of the package: spikes of one
image are ``x[t][n][c]``; images of the convolution are ``image[row][column][c]``.
"""

from __future__ import annotations

from math import sqrt

from tests.oracles import Sequence, lif

Image = list[list[list[float]]]
Matrix = list[list[float]]


def dual_spike_attention(
    x: Sequence,
    y: Sequence,
    heads: int,
    rates: tuple[list[float], list[float]],
    thresholds: tuple[float, float],
) -> tuple[list[Sequence], Sequence]:
    """DSSA of one image: attention spikes ``[head][t][n][m]``, and the spikes it gives.

    ``y[t][m]`` holds, head by head, the channels of y₁ and then those of y₂. ``rates`` are
    those of x and of the attention for every head, ``thresholds`` those of the attention and
    of the output.
    """
    width = len(x[0][0]) // heads
    attention = []
    out = [[[0.0] * (width * heads) for _ in step] for step in x]
    for head in range(heads):
        scale = 1 / sqrt(rates[0][head] * width)
        products = [
            [
                [
                    scale
                    * sum(token[head * width + c] * key[head * 2 * width + c] for c in range(width))
                    for key in y_t
                ]
                for token in x_t
            ]
            for x_t, y_t in zip(x, y, strict=True)
        ]
        fired = lif(products, thresholds[0])
        attention.append(fired)
        scale = 1 / sqrt(rates[1][head] * len(y[0]))
        for t, step in enumerate(fired):
            for n, row in enumerate(step):
                for c in range(width):
                    values = [value[head * 2 * width + width + c] for value in y[t]]
                    out[t][n][head * width + c] = scale * sum(
                        a * v for a, v in zip(row, values, strict=True)
                    )
    return attention, lif(out, thresholds[1])


def pointwise(image: Image, weight: Matrix) -> Image:
    """1×1 convolution, ``weight[out][in]``."""
    return [
        [[sum(w * v for w, v in zip(row, p, strict=True)) for row in weight] for p in line]
        for line in image
    ]


def affine(image: Image, scale: list[float], shift: list[float]) -> Image:
    return [
        [[v * a + b for v, a, b in zip(p, scale, shift, strict=True)] for p in line]
        for line in image
    ]


def depthwise(image: Image, weight: list[Matrix], border: list[float]) -> Image:
    """3×3 convolution per channel that sees ``border[c]`` outside of the image."""
    height, width = len(image), len(image[0])

    def value(row: int, column: int, c: int) -> float:
        inside = 0 <= row < height and 0 <= column < width
        return image[row][column][c] if inside else border[c]

    return [
        [
            [
                sum(
                    weight[c][i][j] * value(row + i - 1, column + j - 1, c)
                    for i in range(3)
                    for j in range(3)
                )
                for c in range(len(border))
            ]
            for column in range(width)
        ]
        for row in range(height)
    ]


def convolution(image: Image, weight: list[list[Matrix]], shift: list[float]) -> Image:
    """Ordinary 3×3 convolution, ``weight[out][in][i][j]``, zeros outside, plus ``shift``."""
    height, width = len(image), len(image[0])
    out = []
    for row in range(height):
        line = []
        for column in range(width):
            pixel = list(shift)
            for o, kernels in enumerate(weight):
                for c, kernel in enumerate(kernels):
                    for i in range(3):
                        for j in range(3):
                            r, k = row + i - 1, column + j - 1
                            if 0 <= r < height and 0 <= k < width:
                                pixel[o] += kernel[i][j] * image[r][k][c]
            line.append(pixel)
        out.append(line)
    return out
