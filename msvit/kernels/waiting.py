"""Spikes as bytes: what products compute with, and what waits for the backward pass.

A product keeps its input for the gradient of its weights. Where that input holds spikes, or sums of
a few, bytes say the same as floats (but for the sign of a zero); all products of one input share
them. As everywhere in autograd, a change made through ``.data`` goes unseen.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.profiler import record_function

from . import cpp

_LEAST = 16384  # elements; smaller tensors are not worth keeping in another form
_MOST_DEAD = 2**24  # bytes found between two looks for dead ones


class Spikes(NamedTuple):
    """``values``, a byte for each element in the order of memory, and their sum."""

    values: Tensor
    total: int


@contextmanager
def spikes_as_bytes(keep: bool) -> Iterator[None]:
    """A forward pass on the CPU that turns no spikes into bytes twice.

    With ``keep``, what autograd keeps in it are bytes where they say enough.
    """
    seen = _Seen()
    token = _seen.set(seen)
    try:
        with saved_tensors_hooks(seen.pack, unpack) if keep else nullcontext():
            yield
    finally:
        _seen.reset(token)


def bytes_of(x: Tensor) -> Spikes | None:
    """The bytes of ``x``, on the CPU and dense; None if it holds other numbers."""
    return (_seen.get() or _Seen()).bytes_of(x)


def others_are_at_work() -> bool:
    """Whether the caller has hooks of its own (checkpoints, offloading), which ours would hide."""
    active = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return active is not None and active(True) is not None


class _Seen:
    """What one forward pass has asked about, for as long as it lives."""

    def __init__(self) -> None:
        self._found: dict[tuple, tuple[StorageWeakRef, Spikes | None]] = {}
        self._added = 0  # bytes found since the dead were looked for

    def bytes_of(self, x: Tensor) -> Spikes | None:
        passes = cpp.passes(x.dtype)
        if passes is None:
            return None
        if x.is_inference():  # it counts no changes: nobody knows whether bytes still hold
            found = passes.to_bytes(x)
            return None if found is None else Spikes(*found)
        # While its weak reference stands, a storage's address is not used for another.
        storage = StorageWeakRef(x.untyped_storage())
        key = (storage.cdata, x.storage_offset(), x.numel(), x.dtype, x._version)
        if key not in self._found:
            if self._added > _MOST_DEAD:
                self._found = {k: v for k, v in self._found.items() if not v[0].expired()}
                self._added = 0
            with _for_profilers("pack spikes"):
                found = passes.to_bytes(x)
            self._added += 0 if found is None else x.numel()
            self._found[key] = storage, None if found is None else Spikes(*found)
        return self._found[key][1]

    def pack(self, x: Tensor) -> tuple:
        """For autograd: ``x``, or its bytes, and what tells :func:`unpack` which."""
        found = self.bytes_of(x) if _may_be_packed(x) else None
        if found is None:
            # Not x itself: kept by what has computed it, that would be a cycle.
            return x.detach(), x._version
        like = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
        return found.values, like


_seen: ContextVar[_Seen | None] = ContextVar("_seen", default=None)


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
    with _for_profilers("unpack spikes"):
        return cpp.passes(like.dtype).from_bytes(values, out)


def _for_profilers(name: str) -> AbstractContextManager:
    # It takes as long as some of the small tensors that it names, whether or not anyone looks.
    return record_function(name) if torch.autograd._profiler_enabled() else nullcontext()


def _may_be_packed(x: Tensor) -> bool:
    if x.numel() < _LEAST or x.device.type != "cpu":
        return False
    parameter = x.is_leaf and x.requires_grad
    return not parameter and _is_dense(x)


def _is_dense(x: Tensor) -> bool:
    if x.is_contiguous():
        return True
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
