"""A model whose gradient is that of all workers: torch's DistributedDataParallel, made exact.

DDP sums gradients in buckets while the backward pass goes on. Two things it has to be told, or
would find out at a cost: which parameters get no gradient (a bias in front of a norm, whatever is
frozen), for which it would wait without end or search in every step; and in which order gradients
come, by which it arranges its buckets behind the first step. A training that is resumed would take
that step with others, and round sums of more than two workers otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

Learn = Callable[[nn.Module], object]
"""Forward and backward pass of a few images through the module that it is given."""


def data_parallel(
    model: nn.Module, learn: Learn, shares_statistics: bool
) -> DistributedDataParallel:
    """``model`` as one of all workers': its backward pass leaves the mean of their gradients.

    ``learn`` is run on trial; what that leaves in gradients, running statistics and generators is
    undone. Where they are not shared already (``shares_statistics``), all go on with the first
    worker's running statistics at each step, as in every script that uses DDP.
    """
    with _undone(model):
        learn(model)
        without = [w for w in model.parameters() if w.requires_grad and w.grad is None]
    for weight in without:  # DDP does not take in what needs no gradient when it is made
        weight.requires_grad_(False)
    joined = DistributedDataParallel(model, gradient_as_bucket_view=True)
    joined.broadcast_buffers = not shares_statistics  # as an argument it has another name by now
    for weight in without:
        weight.requires_grad_(True)
    with _undone(model):
        learn(joined)
    return joined


def summed_by_workers(model: nn.Module, whole: bool) -> AbstractContextManager:
    """Context of a backward pass; one that is not the last of an update waits for nobody."""
    if isinstance(model, DistributedDataParallel) and not whole:
        return model.no_sync()
    return nullcontext()


class _undone:
    """Context in which a model runs on trial."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        device = next(model.parameters()).device
        self._generators = torch.random.fork_rng([device] if device.type == "cuda" else [])

    def __enter__(self) -> None:
        self._kept = [buffer.clone() for buffer in self._model.buffers()]
        self._generators.__enter__()

    def __exit__(self, *exception: object) -> None:
        self._generators.__exit__(None, None, None)
        with torch.no_grad():
            for buffer, kept in zip(self._model.buffers(), self._kept, strict=True):
                buffer.copy_(kept)
        self._model.zero_grad(set_to_none=True)
