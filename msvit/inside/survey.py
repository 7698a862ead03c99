"""Votes over a whole test set: by class, and scale against scale; memory independent of images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from msvit.inside.votes import Votes, VoteWatch
from msvit.training.kept import KeptCell


@dataclass(frozen=True)
class Pair:
    """Two branches of a layer, each voting alone; shares are of all images, steps, heads, tokens.

    Attributes:
        first, second: names of the branches.
        correlation: between their votes over the tokens of an image, mean over images and heads;
            NaN where one of them never varies.
        both, only_first, only_second: shares that both, or one alone, would keep.
        first_map, second_map: ``[H, W]``, the latter two by token.
        by_image: ``[N]``, share of each image on which they differ.
    """

    first: str
    second: str
    correlation: float
    both: float
    only_first: float
    only_second: float
    first_map: np.ndarray
    second_map: np.ndarray
    by_image: np.ndarray

    @property
    def either(self) -> float:
        """Share that one of them, or both, would keep."""
        return self.both + self.only_first + self.only_second


@dataclass(frozen=True)
class LayerSurvey:
    """One token attention over many images; ``S`` branches, ``K`` classes.

    Attributes:
        branches: their names.
        class_maps: ``[K, S, H, W]``, mean votes for a token by class, head and time step; NaN for
            classes without images.
        class_masks: ``[K, H, W]``, mean output of the attention neuron.
        votes: ``[S]``, mean votes for a token, by head and time step.
        class_share: ``[S]``, share of the variation of the number of votes between images that
            the class explains, mean over heads (corrected for what chance would explain; NaN
            where nothing varies).
        mask_rate: mean output of the attention neuron; ``kept`` is the share that it lets through.
        alone: ``[S]``, share that would be let through if this branch alone voted.
        changed: ``[S]``, share of all decisions that would be others if this branch did not vote.
        pairs: of every two branches.
    """

    branches: tuple[str, ...]
    class_maps: np.ndarray
    class_masks: np.ndarray
    votes: np.ndarray
    class_share: np.ndarray
    mask_rate: float
    kept: float
    alone: np.ndarray
    changed: np.ndarray
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class Survey:
    """``layers`` by the paths of their attention.

    Attributes:
        indices: int64 ``[N]``, the test images that were seen.
        labels, predicted: int64 ``[N]``, their classes.
        there: how many test images there are.
    """

    layers: Mapping[str, LayerSurvey]
    indices: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    there: int

    @property
    def accuracy(self) -> float:
        return float((self.labels == self.predicted).mean())


def survey(cell: KeptCell, most: int | None = None) -> Survey:
    """The test set of ``cell``, or ``most`` of its images, evenly over all."""
    there = len(cell.test)
    order = None
    if most is not None and most < there:
        order = torch.linspace(0, there - 1, most, dtype=torch.float64).round().long()
    layers: dict[str, _Sums] = {}
    labels, predicted = [], []
    with VoteWatch(cell.model) as watch:
        for batch in cell.test.batches(order):
            predicted.append(cell.logits(batch.images).argmax(-1).cpu())
            labels.append(batch.labels.cpu())
            for path, votes in watch.seen.items():
                sums = layers.setdefault(path, _Sums(cell.cell.model["num_classes"]))
                sums.add(votes, batch.labels)
    return Survey(
        layers={path: sums.result() for path, sums in layers.items()},
        indices=(torch.arange(there) if order is None else order).numpy(),
        labels=torch.cat(labels).numpy(),
        predicted=torch.cat(predicted).numpy(),
        there=there,
    )


@dataclass
class _Sums:
    """Sums of one layer over images, so far; on the CPU."""

    classes: int
    branches: tuple[str, ...] = ()
    images: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    by_image: list[Tensor] = field(default_factory=list)

    def add(self, votes: Votes, labels: Tensor) -> None:
        """Take in the votes of a batch, of which these are the classes ``[B]``."""
        self.branches = votes.branches
        self.images += len(labels)
        maps = votes.scores.mean((1, 5, 6))  # [S, B, H, W]
        masks = votes.mask.mean((0, 4, 5))  # [B, H, W]
        counts = votes.scores.mean((1, 3, 4, 6)).double()  # [S, B, heads]
        self._by_class("maps", maps.transpose(0, 1), labels)
        self._by_class("masks", masks, labels)
        self._by_class("images", torch.ones_like(labels, dtype=torch.float64), labels)
        self._by_class("counts", counts.transpose(0, 1), labels)
        self._sum("squares", counts.square().sum(1))
        self._sum("kept", _share(votes.kept))
        self._sum("alone", torch.stack([_share(one) for one in votes.alone]))
        self._sum("changed", torch.stack([_share(w != votes.kept) for w in votes.without]))
        self._pairs(votes)

    def _pairs(self, votes: Votes) -> None:
        over_tokens = votes.scores.mean((1, 6)).flatten(2, 3)  # [S, B, N, heads]
        centred = over_tokens - over_tokens.mean(2, keepdim=True)
        length = centred.norm(dim=2)  # [S, B, heads]
        differ = []
        for a, b in combinations(range(len(self.branches)), 2):
            product, scale = (centred[a] * centred[b]).sum(1), length[a] * length[b]
            varied = scale > 0
            first, second = votes.alone[a], votes.alone[b]
            only_first, only_second = first & ~second, second & ~first
            self._sum(f"correlation {a} {b}", (product[varied] / scale[varied]).double().sum())
            self._sum(f"varied {a} {b}", varied.sum().double())
            self._sum(f"both {a} {b}", _share(first & second))
            self._sum(f"first {a} {b}", _by_token(only_first))
            self._sum(f"second {a} {b}", _by_token(only_second))
            differ.append((first != second).double().mean((0, 2, 3, 4, 5)))
        self.by_image.append(torch.stack(differ).cpu() if differ else torch.empty(0, 0))

    def _sum(self, name: str, value: Tensor) -> None:
        found = value.cpu()
        self.sums[name] = self.sums[name] + found if name in self.sums else found

    def _by_class(self, name: str, values: Tensor, labels: Tensor) -> None:
        """Add ``values`` ``[B, ...]`` up class by class."""
        into = values.new_zeros(self.classes, *values.shape[1:])
        self._sum(name, into.index_add(0, labels, values))

    def result(self) -> LayerSurvey:
        sums, images = self.sums, self.images
        of_class = sums["images"].float()  # [K]
        class_masks = sums["masks"] / of_class.view(-1, 1, 1)  # 0 / 0 is NaN
        differ = torch.cat(self.by_image, 1).numpy()  # [pairs, N]
        return LayerSurvey(
            branches=self.branches,
            class_maps=(sums["maps"] / of_class.view(-1, 1, 1, 1)).numpy(),
            class_masks=class_masks.numpy(),
            votes=(sums["maps"].double().sum(0) / images).mean((1, 2)).numpy(),
            class_share=self._class_share(),
            mask_rate=float((sums["masks"].double().sum(0) / images).mean()),
            kept=float(sums["kept"]) / images,
            alone=(sums["alone"] / images).numpy(),
            changed=(sums["changed"] / images).numpy(),
            pairs=tuple(
                self._pair(a, b, differ[i])
                for i, (a, b) in enumerate(combinations(range(len(self.branches)), 2))
            ),
        )

    def _class_share(self) -> np.ndarray:
        """Epsilon squared: the share of variance between classes, less what chance would give."""
        of_class = self.sums["images"]
        there = of_class > 0
        counts, of_class = self.sums["counts"][there], of_class[there]  # [K, S, heads], [K]
        mean = counts.sum(0) / self.images
        total = (self.sums["squares"] - self.images * mean.square()).sum(-1)  # [S], over heads
        between = (counts.square() / of_class.view(-1, 1, 1)).sum(0) - self.images * mean.square()
        within = total - between.sum(-1)
        freedom = self.images - len(of_class)
        if freedom <= 0:
            return np.full(len(self.branches), math.nan)
        expected = within / freedom * (self.images - 1)
        varied = total > 1e-9 * self.sums["squares"].sum(-1)
        share = (1 - expected / total).clamp(min=0)
        return torch.where(varied, share, torch.nan).numpy()

    def _pair(self, a: int, b: int, by_image: np.ndarray) -> Pair:
        first, second = (
            self.sums[f"{which} {a} {b}"] / self.images for which in ("first", "second")
        )
        varied = float(self.sums[f"varied {a} {b}"])
        correlation = float(self.sums[f"correlation {a} {b}"])
        return Pair(
            first=self.branches[a],
            second=self.branches[b],
            correlation=correlation / varied if varied else math.nan,
            both=float(self.sums[f"both {a} {b}"]) / self.images,
            only_first=float(first.mean()),
            only_second=float(second.mean()),
            first_map=first.numpy(),
            second_map=second.numpy(),
            by_image=by_image,
        )


def _share(kept: Tensor) -> Tensor:
    """Of decisions ``[T, B, H, W, heads, d]``, summed over images."""
    return kept.double().mean() * kept.shape[1]


def _by_token(kept: Tensor) -> Tensor:
    """Of decisions ``[T, B, H, W, heads, d]``, ``[H, W]`` summed over images."""
    return kept.double().mean((0, 4, 5)).sum(0)
