"""A model whose gradient is that of all workers: torch's DistributedDataParallel, made exact.

DDP sums gradients in buckets while the backward pass goes on, and behind the first step arranges
them by the order in which gradients came. A training that is resumed would take that step with
other buckets than one that goes on, and round sums of more than two workers otherwise: it is taken
on trial. DDP waits for a gradient of every parameter that wants one; a bias in front of a norm,
which no loss depends on, is given zeros where workers train together (:mod:`msvit.kernels`).
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
    joined = DistributedDataParallel(model, gradient_as_bucket_view=True)
    joined.broadcast_buffers = not shares_statistics  # as an argument it has another name by now
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
