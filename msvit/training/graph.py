"""A function of tensors on a GPU as one CUDA graph: recorded once, then replayed.

A step of a spiking transformer is more than a thousand kernels. The host needs longer to start
them than the device to run them; a graph starts them all at once. Whatever a recorded function
reads lies at a fixed place, so inputs are copied into buffers, and its Python code runs no more:
what hooks would see, it does not show. Random numbers follow the seed of each replay.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

_log = logging.getLogger("msvit")

Outputs = tuple[Tensor, ...]

WARM_UP = 3
"""Calls before a function is recorded: what it compiles or keeps must be there by then."""


class CannotRecord(RuntimeError):
    """A function does what no graph can hold; the message says what, in a few words."""


class Recorder(Protocol):
    """What :class:`Graphed` needs of a device."""

    def aside(self, run: Callable[[], Outputs]) -> tuple[Outputs, str]:
        """Call ``run`` where it will be recorded; also, why it cannot be, or ``""``."""

    def record(self, run: Callable[[], Outputs]) -> Callable[[], Outputs]:
        """A function that does the work of ``run``, always into the same outputs.

        ``run`` is called once and has then done no work yet.

        Raises:
            CannotRecord: where the device refuses; nothing has changed. What is returned raises it
                as well, before it does anything, where it can no longer be used.
        """


class Graphed:
    """``run``, from its fourth call on as a recorded graph: ``(*inputs) -> outputs``.

    The first calls are as real as the later ones, and all give the same numbers. Inputs of other
    shapes than those of the first call, and all where ``recorder`` is None, are not replayed.
    What a call returns is overwritten by the next one.
    """

    def __init__(self, run: Callable[..., Outputs], recorder: Recorder | None) -> None:
        self._run, self._recorder = run, recorder
        self._shapes: list[torch.Size] = []
        self._calls = 0
        self._inputs: Outputs = ()
        self._replay: Callable[[], Outputs] | None = None
        self.problem = "it has not run often enough" if recorder else ""
        """Why calls are not replayed, in a few words; empty where they are or need not be."""

    @property
    def recorded(self) -> bool:
        return self._replay is not None

    def __call__(self, *inputs: Tensor) -> Outputs:
        shapes = [x.shape for x in inputs]
        self._shapes = self._shapes or shapes
        if self._recorder is None or shapes != self._shapes:
            return self._run(*inputs)
        self._calls += 1
        if self._calls <= WARM_UP:
            outputs, self.problem = self._recorder.aside(lambda: self._run(*inputs))
            return outputs
        try:
            if self._replay is None:
                self._replay = self._record(self._recorder, inputs)
            for buffer, new in zip(self._inputs, inputs, strict=True):
                buffer.copy_(new)
            return self._replay()
        except CannotRecord as error:
            self.problem = str(error)
            _log.warning("no CUDA graph, so slower: %s", self.problem)
            self.release()
            return self._run(*inputs)

    def release(self) -> None:
        """Give back what the recording holds; later calls are not replayed."""
        self._replay, self._recorder, self._inputs = None, None, ()

    def _record(self, recorder: Recorder, inputs: Outputs) -> Callable[[], Outputs]:
        if self.problem:
            raise CannotRecord(self.problem)
        self._inputs = tuple(x.clone() for x in inputs)
        return recorder.record(lambda: self._run(*self._inputs))


class CudaGraphs:
    """Records on the current CUDA device; a :class:`Recorder`.

    What one instance has recorded shares memory: recordings run one after the other, and the
    outputs of one are read before the next begins.
    """

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()
        self._memory = torch.cuda.graph_pool_handle()
        self._failed = False

    def aside(self, run: Callable[[], Outputs]) -> tuple[Outputs, str]:
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream), _waits() as waits:
            outputs = run()
        current.wait_stream(self._stream)
        return outputs, waits[0] if waits else ""

    def record(self, run: Callable[[], Outputs]) -> Callable[[], Outputs]:
        if self._failed:
            raise CannotRecord("an earlier recording has failed")
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        before = generator.get_state()
        try:
            with torch.cuda.graph(graph, pool=self._memory, stream=self._stream):
                outputs = run()
        except RuntimeError as error:
            # A capture that breaks off leaves its stream current, and its generator waiting for
            # its end. The one that takes its place is not known to what was recorded before.
            self._failed = True
            torch.cuda.set_stream(current)
            fresh = torch.Generator(torch.device("cuda", torch.cuda.current_device()))
            fresh.set_state(before)
            generator.graphsafe_set_state(fresh.graphsafe_get_state())
            cause = _first_cause(error)
            if isinstance(cause, torch.OutOfMemoryError):
                raise cause from None  # less memory is needed, not another way to compute
            reason = (str(cause).splitlines() or [""])[0]
            raise CannotRecord(f"{type(cause).__name__}: {reason}") from error

        def replay() -> Outputs:
            if self._failed:
                raise CannotRecord("a later recording has failed")
            graph.replay()
            return outputs

        return replay


def _first_cause(error: BaseException) -> BaseException:
    """What was raised in a capture, before its end raised something of its own."""
    while error.__context__ is not None:
        error = error.__context__
    return error


@contextmanager
def _waits() -> Iterator[list[str]]:
    """Collects where the host waits for the device, which no graph can."""
    found: list[str] = []
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    for warning in caught:
        if "called a synchronizing" in str(warning.message):
            place = f"{warning.filename}:{warning.lineno}"
            found.append(f"the host waits for the device in it ({place})")
        else:
            where = warning.filename, warning.lineno
            warnings.warn_explicit(str(warning.message), warning.category, *where)
