"""Plain and slow formulas of the papers, one number at a time, on nested lists.

They share nothing with the package: no tensor operation, no layout, no neuron of it.
Spikes of one image are ``x[t][n][c]``: time step, token in raster order, channel.
"""

from __future__ import annotations

Sequence = list[list[list[float]]]


def lif(current: Sequence, threshold: float, tau: float = 2.0) -> Sequence:
    """Leaky integrate and fire, decaying input, hard reset to 0."""
    potential = [[0.0 for _ in token] for token in current[0]]
    spikes = []
    for step in current:
        fired = []
        for n, token in enumerate(step):
            row = []
            for c, value in enumerate(token):
                charged = potential[n][c] + (value - potential[n][c]) / tau
                fires = charged >= threshold
                potential[n][c] = 0.0 if fires else charged
                row.append(1.0 if fires else 0.0)
            fired.append(row)
        spikes.append(fired)
    return spikes


def self_attention(
    q: Sequence, k: Sequence, v: Sequence, heads: int, scale: float, threshold: float
) -> Sequence:
    """Spikformer's SSA: ``LIF(scale · (q kᵀ) v)``, token by token, head by head."""
    width = len(q[0][0]) // heads

    def step(q_t: list, k_t: list, v_t: list) -> list:
        out = [[0.0] * (width * heads) for _ in q_t]
        for head in range(heads):
            channels = range(head * width, (head + 1) * width)
            for n, query in enumerate(q_t):
                for key, value in zip(k_t, v_t, strict=True):
                    agreement = sum(query[c] * key[c] for c in channels)
                    for c in channels:
                        out[n][c] += scale * agreement * value[c]
        return out

    return lif([step(*spikes) for spikes in zip(q, k, v, strict=True)], threshold)


def spike_driven_attention(
    q: Sequence,
    k: Sequence,
    v: Sequence,
    threshold: float,
    spread: tuple[int, int, int] | None = None,
) -> Sequence:
    """SDT's attention: ``q ⊙ LIF(Σ_N k ⊙ v)``, one decision per channel for all tokens.

    ``spread`` is ``(height, width, heads)`` where spikes spread to their neighbours: those of
    k and v over the image, those of both masked tensors over tokens × channels of a head.
    """

    def in_plane(x: Sequence) -> Sequence:
        return [spread_in_plane(step, *spread[:2]) for step in x] if spread else x

    def in_heads(x: Sequence) -> Sequence:
        return [spread_in_heads(step, spread[2]) for step in x] if spread else x

    gathered = in_heads(mask(in_plane(k), in_plane(v)))
    sums = [[[sum(column) for column in zip(*step, strict=True)]] for step in gathered]
    chosen = [[decision[0]] * len(q[0]) for decision in lif(sums, threshold)]
    return in_heads(mask(chosen, q))


def mask(a: Sequence, b: Sequence) -> Sequence:
    return [
        [[x * y for x, y in zip(r, s, strict=True)] for r, s in zip(m, n, strict=True)]
        for m, n in zip(a, b, strict=True)
    ]


def spread_in_plane(tokens: list[list[float]], height: int, width: int) -> list[list[float]]:
    """Maximum over the 3×3 neighbourhood in the image, for every channel."""
    out = []
    for n in range(height * width):
        row, column = divmod(n, width)
        near = [
            tokens[i * width + j]
            for i in range(max(row - 1, 0), min(row + 2, height))
            for j in range(max(column - 1, 0), min(column + 2, width))
        ]
        out.append([max(values) for values in zip(*near, strict=True)])
    return out


def spread_in_heads(tokens: list[list[float]], heads: int) -> list[list[float]]:
    """Maximum over neighbouring tokens and channels, channels within their head."""
    width = len(tokens[0]) // heads
    out = []
    for n in range(len(tokens)):
        near = tokens[max(n - 1, 0) : n + 2]
        row = []
        for c in range(width * heads):
            first = c // width * width
            low, high = max(c - 1, first), min(c + 2, first + width)
            row.append(max(max(token[low:high]) for token in near))
        out.append(row)
    return out
