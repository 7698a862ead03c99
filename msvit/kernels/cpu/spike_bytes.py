"""Spikes as bytes: what products compute with, and what waits for the backward pass.

A product keeps its input for the gradient of its weights. Where that input holds spikes, or sums of
a few, bytes say the same as floats (but for the sign of a zero); all products of one input share
them. As everywhere in autograd, a change made through ``.data`` goes unseen. On the CPU alone.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from ctypes import c_int, c_int64, c_void_p
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.profiler import record_function

from . import build

LEAST = 16384  # elements; smaller tensors are not worth keeping in another form
MOST_DEAD = 2**24  # bytes found between two looks for dead ones
READ_BEHIND = 64  # bytes behind the last one that products may read


class Spikes(NamedTuple):
    """``values``, a byte for each element in the order of memory, and their sum."""

    values: Tensor
    total: int


@cache
def codec(dtype: torch.dtype) -> Codec | None:
    """What turns tensors of ``dtype`` into bytes, None where it cannot be compiled."""
    library = build.units(dtype)
    return None if library is None else Codec(library)


class Codec:
    """Floats to bytes and back, on dense tensors."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._encode, self._decode = library.unit_to_bytes, library.unit_from_bytes
        self._encode.argtypes = self._decode.argtypes = (c_void_p, c_void_p, c_int64, c_int)
        self._encode.restype, self._decode.restype = c_int64, None
        self._padded = library.unit_padded
        self._padded.argtypes, self._padded.restype = (c_int64,), c_int64

    def encode(self, x: Tensor) -> Spikes | None:
        """The values of ``x`` in the order of its memory; None unless all are 0, 1 … 255."""
        count = x.numel()
        out = torch.empty(self._padded(count) + READ_BEHIND, dtype=torch.uint8)
        total = self._encode(x.data_ptr(), out.data_ptr(), count, torch.get_num_threads())
        return None if total < 0 else Spikes(out, total)

    def decode(self, values: Tensor, out: Tensor) -> Tensor:
        """Fills ``out`` with what :meth:`encode` has made ``values`` of."""
        count = out.numel()
        self._decode(values.data_ptr(), out.data_ptr(), count, torch.get_num_threads())
        return out


@contextmanager
def spikes_as_bytes(keep: bool) -> Iterator[ForwardPass]:
    """A forward pass on the CPU that turns no spikes into bytes twice.

    With ``keep``, what autograd keeps in it are bytes where they say enough.
    """
    current = ForwardPass()
    token = _current.set(current)
    try:
        with saved_tensors_hooks(current.pack, unpack) if keep else nullcontext():
            yield current
    finally:
        _current.reset(token)


def bytes_of(x: Tensor) -> Spikes | None:
    """The bytes of ``x``, on the CPU and dense; None if it holds other numbers."""
    return (_current.get() or ForwardPass()).bytes_of(x)


def others_are_at_work() -> bool:
    """Whether the caller has hooks of its own (checkpoints, offloading), which ours would hide."""
    active = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return active is not None and active(True) is not None


class ForwardPass:
    """What one forward pass has asked about, for as long as it lives."""

    def __init__(self) -> None:
        self._found: dict[tuple, tuple[StorageWeakRef, Spikes | None]] = {}
        self._added = 0  # bytes found since the dead were looked for

    def bytes_of(self, x: Tensor) -> Spikes | None:
        coder = codec(x.dtype)
        if coder is None:
            return None
        if x.is_inference():  # it counts no changes: nobody knows whether bytes still hold
            return coder.encode(x)
        # While its weak reference stands, a storage's address is not used for another.
        storage = StorageWeakRef(x.untyped_storage())
        key = (storage.cdata, x.storage_offset(), x.numel(), x.dtype, x._version)
        if key not in self._found:
            if self._added > MOST_DEAD:
                self._found = {k: v for k, v in self._found.items() if not v[0].expired()}
                self._added = 0
            with _for_profilers("pack spikes"):
                found = coder.encode(x)
            self._added += 0 if found is None else x.numel()
            self._found[key] = storage, found
        return self._found[key][1]

    def remembered(self) -> list[Spikes | None]:
        """What is known of tensors that live, and of the last that died."""
        return [found for _, found in self._found.values()]

    def pack(self, x: Tensor) -> tuple:
        """For autograd: ``x``, or its bytes, and what tells :func:`unpack` which."""
        found = self.bytes_of(x) if _may_be_packed(x) else None
        if found is None:
            # Not x itself: kept by what has computed it, that would be a cycle.
            return x.detach(), x._version
        like = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
        return found.values, like


_current: ContextVar[ForwardPass | None] = ContextVar("_current", default=None)


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
    coder = codec(like.dtype)
    assert coder is not None  # it has packed them
    out = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype)
    with _for_profilers("unpack spikes"):
        return coder.decode(values, out)


def _for_profilers(name: str) -> AbstractContextManager:
    # It takes as long as some of the small tensors that it names, whether or not anyone looks.
    return record_function(name) if torch.autograd._profiler_enabled() else nullcontext()


def _may_be_packed(x: Tensor) -> bool:
    if x.numel() < LEAST or x.device.type != "cpu":
        return False
    parameter = x.is_leaf and x.requires_grad
    return not parameter and _is_dense(x)


def _is_dense(x: Tensor) -> bool:
    if x.is_contiguous():
        return True
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
