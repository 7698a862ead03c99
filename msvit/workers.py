"""Several processes that train one model together, each on its part of every batch.

Whoever has started them has also joined them into torch's default process group; a process that is
in none is alone: rank 0 of 1, for which everything here is free. Nothing knows who starts them.

A worker's part of a batch is such that what is computed does not depend on their number: all draw
the same random numbers for the whole batch, and each takes those of its own images.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from msvit.options import ConfigError

Value = TypeVar("Value")


class UnevenWorkers(ConfigError):
    """So many workers cannot share every batch evenly; another number of them could."""


def count() -> int:
    """Workers of this training, at least 1."""
    return distributed.get_world_size() if _together() else 1


def rank() -> int:
    """Number of this worker, from 0."""
    return distributed.get_rank() if _together() else 0


def is_first() -> bool:
    """Whether this is the one that writes files and tells how it goes."""
    return rank() == 0


def own(x: Tensor, dim: int = 0, turns: int = 1) -> Tensor:
    """This worker's part of ``x``, along its axis of the images of a batch.

    A batch that is used in ``turns``, a share of it after the other, is shared turn by turn. From
    both ends of each inwards where pairs come out even: then the part reversed is the part of the
    reversed batch, and blending a batch with itself reversed, as mixup does, is done within parts.

    Raises:
        ValueError: where the batch cannot be shared evenly.
    """
    workers, place = count(), rank()
    if workers == 1:
        return x
    each, left = divmod(x.shape[dim], turns)
    if left or each % workers:
        raise ValueError(f"{workers} workers cannot share {x.shape[dim]} images in {turns} turns")
    part, in_pairs = each // workers, each % (2 * workers) == 0
    taken = []
    for start in range(0, x.shape[dim], each):
        if in_pairs:
            half = part // 2
            taken.append(x.narrow(dim, start + place * half, half))
            taken.append(x.narrow(dim, start + each - (place + 1) * half, half))
        else:
            taken.append(x.narrow(dim, start + place * part, part))
    return torch.cat(taken, dim)


def own_of(drawn: Sequence[Value], turns: int = 1) -> list[Value]:
    """The part of ``drawn``, something for each image of a batch, that :func:`own` takes."""
    return [drawn[place] for place in own(torch.arange(len(drawn)), turns=turns)]


def own_batches(images: int, batch_size: int) -> Tensor:
    """Which of ``images`` this worker evaluates, int64: every ``count()``-th batch as a whole."""
    batches = torch.arange(images).split(batch_size)[rank() :: count()]
    return torch.cat(batches) if batches else torch.arange(0)


def total(x: Tensor) -> Tensor:
    """The sum of ``x`` over all workers, on each of them; without gradient."""
    if count() == 1:
        return x
    summed = x.detach().clone()
    distributed.all_reduce(summed)
    return summed


def most(x: float) -> float:
    """The largest ``x`` of all workers."""
    return max(of_all(x))


def of_all(value: Value) -> list[Value]:
    """The ``value`` of every worker, by rank; anything that can be pickled."""
    if count() == 1:
        return [value]
    values: list[Any] = [None] * count()
    distributed.all_gather_object(values, value)
    return values


def from_first(value: Value) -> Value:
    """The ``value`` of the first worker, on all; anything that can be pickled."""
    if count() == 1:
        return value
    values: list[Any] = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


@torch.no_grad()
def take_buffers_of_first(model: nn.Module) -> None:
    """Give all workers the first one's running statistics.

    Between two steps each has its own, where they are not shared.
    """
    if count() == 1:
        return
    for buffer in model.buffers():
        distributed.broadcast(buffer, src=0)


def is_loss_of_another(error: BaseException) -> bool:
    """Whether an ``error`` tells of the group and not of this worker.

    Gloo has no error of its own: its messages name the line of its source, or the connection that
    it has closed since another one did not answer in time.
    """
    if isinstance(error, distributed.DistError):
        return True
    said = str(error) if isinstance(error, RuntimeError) else ""
    return "/gloo/" in said or "caused pair closure" in said


def describe(crews: Sequence[int]) -> dict[str, Any]:
    """For the record: how many on how many machines, joined by what.

    ``crews`` are how many have trained, one after the other, these here being the last.
    """
    machines = len(set(of_all(platform.node())))
    joined_by = distributed.get_backend() if count() > 1 else "none"
    found = {"count": count(), "machines": machines, "joined_by": joined_by}
    return found if len(crews) == 1 else {**found, "before": list(crews[:-1])}


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized()
