"""What the inputs of a layer carry, over all images: spikes, whole numbers, levels, or neither."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from msvit.metrics.contents import CONTENTS, Contents, look


@dataclass
class Operand:
    """What an input carried so far: the widest of ``CONTENTS``, and sums over all images.

    ``synops`` and ``active_synops`` are what its values, and those that are not zero, reach.
    ``level_bits`` are those of the network's quantisers, 0 where it has none.
    """

    level_bits: int = 0
    content: str = "spikes"
    total: float = 0.0
    elements: int = 0
    active: float = 0.0
    peak: float = 0.0
    synops: float = 0.0
    active_synops: float = 0.0

    def add(self, other: Operand) -> None:
        """Take in what the same input carried of other images."""
        self.content = max(self.content, other.content, key=CONTENTS.index)
        self.peak = max(self.peak, other.peak)
        for name in ("total", "elements", "active", "synops", "active_synops"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def kind(self) -> str:
        """Its content, which are ``levels`` in a quantised twin."""
        return "levels" if self.level_bits and self.content != "analog" else self.content

    @property
    def spiking(self) -> bool:
        return self.kind in ("spikes", "integer")

    @property
    def bits(self) -> int:
        """Of levels: what its quantiser has, and more where levels were added or multiplied."""
        return max(self.level_bits, int(self.peak).bit_length())

    @property
    def rate(self) -> float | None:
        """Mean magnitude of spikes; None of other input and before any was seen."""
        return self.total / self.elements if self.spiking and self.elements else None

    def see(self, x: Tensor, reach: Callable[[Tensor, float], float]) -> Contents:
        """Take in ``x`` ``[T, B, ..., C]``.

        ``reach`` makes of sums over the last axis, ``[T, B, ...]``, and of their total how many
        synapses they reach.
        """
        found = self.skim(x)
        reached = reach(found.active, found.active_total)
        self.active += found.active_total
        self.active_synops += reached
        if found.values is not None and found.peak is not None:
            self.peak = max(self.peak, found.peak)
            spikes = found.kind == "spikes"
            self.synops += reached if spikes else reach(found.values, found.total)
        return found

    def skim(self, x: Tensor) -> Contents:
        """Take in what the papers' formula asks of ``x`` ``[T, B, ..., C]``, and no more."""
        found = look(x)
        self.content = max(self.content, found.kind, key=CONTENTS.index)
        self.elements += x.numel()
        self.total += found.total
        return found


def sparser(operand: Operand) -> tuple[int, float]:
    """Orders the operands of a product by their spikes: binary before integer, then by rate.

    Levels by their bits, before analog values.
    """
    if operand.kind == "levels":
        return 0, operand.bits
    return CONTENTS.index(operand.content), operand.rate or 0.0
