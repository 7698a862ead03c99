"""Spikes that wait for the backward pass take a byte each.

A product keeps its input for the gradient of its weights. Where that input holds spikes, or sums of
a few, bytes say the same as floats (but for the sign of a zero); two products of one input share
them. As everywhere in autograd, a change made through ``.data`` goes unseen.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.profiler import record_function

from . import cpp

_LEAST = 16384  # elements; smaller tensors are not worth a look


def spikes_as_bytes() -> saved_tensors_hooks:
    """Context for a forward pass on the CPU, where kernels can be compiled."""
    return saved_tensors_hooks(_Packer().pack, unpack)


def others_are_at_work() -> bool:
    """Whether the caller has hooks of its own (checkpoints, offloading), which ours would hide."""
    active = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return torch.compiler.is_compiling() or (active is not None and active(True) is not None)


class _Packer:
    """Packs what one forward pass keeps; knows what it has packed before."""

    def __init__(self) -> None:
        self._packed: dict[tuple, tuple[StorageWeakRef, Tensor | None]] = {}

    def pack(self, x: Tensor) -> tuple:
        passes = _passes_for(x)
        if passes is None:
            return _as_it_is(x)
        # While its weak reference stands, a storage's address is not used for another.
        storage = StorageWeakRef(x.untyped_storage())
        key = (storage.cdata, x.storage_offset(), x.numel(), x.dtype, x._version)
        if key not in self._packed:
            with record_function("pack spikes"):
                self._packed[key] = storage, passes.to_bytes(x)
        values = self._packed[key][1]
        if values is None:
            return _as_it_is(x)
        return values, torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")


def _as_it_is(x: Tensor) -> tuple[Tensor, int]:
    # Not x itself: kept by what has computed it, that would be a cycle.
    return x.detach(), x._version


def unpack(kept: tuple) -> Tensor:
    """What was packed.

    Raises:
        RuntimeError: it was changed since then; autograd does not look where there are hooks.
    """
    values, like = kept
    if isinstance(like, int):
        if values._version != like:
            raise RuntimeError(
                "a tensor that the gradient needs was changed in place: it is at version "
                f"{values._version}, and {like} is needed"
            )
        return values
    out = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype)
    with record_function("unpack spikes"):
        return cpp.passes(like.dtype).from_bytes(values, out)


def _passes_for(x: Tensor) -> cpp.Passes | None:
    parameter = x.is_leaf and x.requires_grad
    if parameter or x.device.type != "cpu" or x.numel() < _LEAST or not _is_dense(x):
        return None
    return cpp.passes(x.dtype)


def _is_dense(x: Tensor) -> bool:
    if x.is_contiguous():
        return True
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
