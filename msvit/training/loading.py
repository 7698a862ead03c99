"""From a split and an order to batches on the device: the one place where training gets its data.

Small splits live on the device as bytes. What is in memory and too large for it is gathered some
batches ahead. What is on disk is decoded as far ahead, by processes that end with the epoch, into
memory that they share with this one.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msvit.allotment import cpus_beside_gpu
from msvit.data.processes import Processes, finish, shared_bytes
from msvit.data.splits import Images, Samples, Streamed
from msvit.runtime import to_device

RESIDENT_BYTES = 2e9
"""A split of more stays off a GPU's memory, of which models want the most."""

_AHEAD = 3  # batches that are made or ready while one is used
_TOGETHER = 8  # images that a process decodes at a time: all work on the batch that is next

Batches = Generator[Images, None, None]


class Loader:
    """Batches of a split on the device, in the order asked for; knows how long it was waited for.

    ``waited`` is in seconds, of all batches so far, spent inside ``next()`` for data.
    """

    def __init__(
        self,
        samples: Samples,
        batch_size: int,
        device: torch.device,
        workers: int | None = None,
    ) -> None:
        """``workers`` are the processes that decode; 0: none.

        By default as many as this one has threads, and beside a GPU as many as it has CPUs.
        """
        self.batch_size, self.device = batch_size, device
        self.waited = 0.0
        self._workers = _decoders(device) if workers is None else workers
        self._labels = samples.labels.to(device)
        self._is_resident = isinstance(samples, Images) and _fits(samples, device)
        if isinstance(samples, Images) and self._is_resident:
            samples = samples.to(device)
        self.samples = samples

    def __len__(self) -> int:
        """Samples of the split."""
        return len(self.samples)

    def batches(self, order: Tensor | None = None, seed: Sequence[int] = ()) -> Iterator[Images]:
        """The samples at ``order`` (int64, on the host; all of them as they are), as raw bytes.

        The last batch may be smaller. What random views of streamed images show follows from
        ``seed`` and the sample's index, not from the order: in the middle of an epoch it goes on
        with ``order[start:]``.

        Raises:
            DataError: naming an image that cannot be read.
        """
        made = self._made(order, seed)
        try:
            while True:
                began = time.perf_counter()
                batch = next(made, None)
                self.waited += time.perf_counter() - began
                if batch is None:
                    return
                yield batch
        finally:
            made.close()

    def _made(self, order: Tensor | None, seed: Sequence[int]) -> Batches:
        samples = self.samples
        if isinstance(samples, Images):
            made = self._resident if self._is_resident else self._gathered
            return made(samples, order)
        if isinstance(samples, Streamed):
            return self._streamed(samples, order, seed)
        raise TypeError(f"no batches can be made of {type(samples).__name__}")

    def _resident(self, samples: Images, order: Tensor | None) -> Batches:
        if order is None:
            for start in range(0, len(samples), self.batch_size):
                yield samples[start : start + self.batch_size]
            return
        on_device = to_device(order, self.device)
        for start in range(0, len(order), self.batch_size):
            yield samples[on_device[start : start + self.batch_size]]

    def _gathered(self, samples: Images, order: Tensor | None) -> Batches:
        chosen = _whole(samples) if order is None else order

        def pinned(part: Tensor) -> Tensor:
            return samples.images[part].pin_memory()

        with ThreadPoolExecutor(1) as beside:
            pending: deque[Future[Tensor]] = deque()
            parts = deque(chosen.split(self.batch_size))
            labels = self._labelled(chosen)
            while parts or pending:
                while parts and len(pending) < _AHEAD:
                    pending.append(beside.submit(pinned, parts.popleft()))
                images = pending.popleft().result().to(self.device, non_blocking=True)
                yield Images(images, next(labels))

    def _streamed(self, samples: Streamed, order: Tensor | None, seed: Sequence[int]) -> Batches:
        chosen = _whole(samples) if order is None else order
        labels = self._labelled(chosen)
        size = self.batch_size
        batches = np.split(chosen.numpy(), range(size, len(chosen), size))
        ahead = _AHEAD if self._workers else 1
        slots = shared_bytes((min(ahead, len(batches)), min(size, len(chosen)), *samples.shape))

        def decode(slot: int, start: int, indices: np.ndarray) -> None:
            samples.decode(indices, slots[slot, start : start + len(indices)], seed)

        with Processes(self._workers, decode) as workers:

            def begin(batch: int) -> list[Future[Any]]:
                indices, slot = batches[batch], batch % len(slots)
                starts = range(0, len(indices), _TOGETHER)
                return [workers.give(slot, s, indices[s : s + _TOGETHER]) for s in starts]

            pending = deque(begin(batch) for batch in range(len(slots)))
            for batch, indices in enumerate(batches):
                for work in pending.popleft():
                    finish(work)
                made = torch.from_numpy(slots[batch % len(slots), : len(indices)])
                # Out of the slot before it is used again.
                images = made.pin_memory() if self.device.type == "cuda" else made.clone()
                if batch + len(slots) < len(batches):
                    pending.append(begin(batch + len(slots)))
                yield Images(images.to(self.device, non_blocking=True), next(labels))

    def _labelled(self, order: Tensor) -> Iterator[Tensor]:
        """The labels of each batch, on the device."""
        on_device = to_device(order, self.device)
        for start in range(0, len(order), self.batch_size):
            yield self._labels[on_device[start : start + self.batch_size]]


def _decoders(device: torch.device) -> int:
    threads = torch.get_num_threads()
    return max(threads, cpus_beside_gpu()) if device.type == "cuda" else threads


def _fits(samples: Images, device: torch.device) -> bool:
    return device.type == "cpu" or samples.images.nbytes <= RESIDENT_BYTES


def _whole(samples: Samples) -> Tensor:
    return torch.arange(len(samples))
