"""What a tensor carries: spikes, whole numbers or anything else, and how much of it, exactly.

Sums are of whole numbers, in types that hold them exactly, so that no result depends on how images
were batched or in which order they came.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

CONTENTS = ("spikes", "integer", "analog")
"""Each includes those before it: ``spikes`` are 0 and 1, ``integer`` are whole numbers."""

_EXACT = {torch.float32: 2**24, torch.float64: 2**53}  # whole numbers below have no gaps
_LANE = 255  # what a byte can count to


@dataclass(frozen=True)
class Contents:
    """One tensor ``[..., C]``.

    Attributes:
        kind: the narrowest of ``CONTENTS``.
        peak: the largest magnitude; of analog values none is known.
        values: sums of magnitudes over the last axis, ``[...]``; None of analog values.
        total: sum of magnitudes; 0 of analog values.
    """

    kind: str
    peak: float | None
    values: Tensor | None
    total: float
    _source: Tensor

    @cached_property
    def active(self) -> Tensor:
        """Numbers of values other than 0 over the last axis, ``[...]``."""
        if self.kind == "spikes":
            assert self.values is not None
            return self.values
        return _count_rows(self._source)

    @cached_property
    def active_total(self) -> float:
        """Number of values other than 0."""
        return self.total if self.kind == "spikes" else whole_sum(self.active)


def look(x: Tensor) -> Contents:
    """See what ``x`` ``[..., C]`` carries, value by value."""
    x = x.detach()
    if x.dtype == torch.bool:
        x = x.view(torch.uint8)
    lying = _as_it_lies(x)
    low, high = torch.stack(torch.aminmax(lying)).tolist()
    analog = Contents("analog", None, None, 0.0, x)
    if low % 1 or high % 1:  # decides at once for most analog tensors, infinite ones included
        return analog
    peak = max(-low, high)
    fits = peak * x.shape[-1] < _EXACT[torch.float32]
    magnitudes = x if low >= 0 else x.abs()
    values = magnitudes.sum(-1, dtype=torch.float32 if fits else torch.float64)
    if peak <= 1 and low >= 0:
        # Values within [0, 1] sum up to their number of non-zeros only if all are 0 or 1.
        total = whole_sum(values)
        whole = total == count_nonzero(lying)
        return Contents("spikes", peak, values, total, x) if whole else analog
    if x.is_floating_point() and any(_is_broken(step) for step in lying):
        return analog
    return Contents("integer", peak, values, whole_sum(values), x)


def _is_broken(x: Tensor) -> bool:
    """Whether a value of ``x`` is no whole number."""
    low, high = torch.aminmax(x.frac())
    return bool(low) or bool(high)


def _as_it_lies(x: Tensor) -> Tensor:
    """``x`` with its axes in the order of memory, in which passes over it are fastest."""
    if x.is_contiguous():
        return x
    return x.permute(sorted(range(x.ndim), key=x.stride, reverse=True))


def whole_sum(x: Tensor) -> float:
    """Sum of whole numbers: exact while it is below 2⁵³."""
    return float(x.sum(dtype=torch.float64))


def count_nonzero(x: Tensor) -> int:
    """Values of ``x`` other than 0; several times faster than torch's own count.

    Eight bytes are added at a time, so often that none of them overflows.
    """
    flags = x.bool().flatten().view(torch.uint8)
    block = 8 * 128
    whole = len(flags) // block * block
    if not whole:
        return int(flags.sum())
    lanes = flags[:whole].view(torch.int64).view(128, -1).sum(0)
    return int(lanes.view(torch.uint8).sum()) + int(flags[whole:].sum())


def _count_rows(x: Tensor) -> Tensor:
    """The same over the last axis, ``[..., C]`` → ``[...]``."""
    flags = x.bool().contiguous().view(torch.uint8)
    words, rest = divmod(x.shape[-1], 8)
    if rest or not words or words > _LANE:
        return flags.sum(-1, dtype=torch.int32)
    lanes = flags.view(torch.int64).sum(-1).view(torch.uint8)
    return lanes.view(*x.shape[:-1], 8).sum(-1, dtype=torch.int32)
