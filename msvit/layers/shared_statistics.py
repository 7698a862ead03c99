"""Statistics over the whole batch, where several workers train on parts of it."""

from __future__ import annotations

from torch import nn

from msvit.layers.dualspike import FiringRate
from msvit.layers.norm import BatchNorm


def share_statistics(model: nn.Module) -> None:
    """Have norms and running firing rates take their statistics over all workers, in place.

    As torch's ``SyncBatchNorm`` does: what a step computes is then the same, up to rounding, on any
    number of workers. Alone, nothing changes.
    """
    for module in model.modules():
        if isinstance(module, BatchNorm | FiringRate):
            module.process_group = None  # type: ignore[assignment]  # by which kernels know them
            module.even_parts = True  # type: ignore[assignment]  # as msvit.workers.own shares them
