"""Where cells run: a Ray of our own on this machine, or a running cluster.

Ray reads its settings when it is imported. This module sets them first; nothing else in the
harness imports Ray at module level. Where Ray was imported before us, its settings stand.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from msvit.allotment import usable_cpus, usable_memory
from msvit.options import ConfigError
from studies.packing import START_MPS, Device, Packing, look_at_machine
from studies.room import machines

ROOT = Path(__file__).resolve().parent.parent

PROBE_SECONDS = 3.0
WATCH_SECONDS = 1.0  # between two looks at the head of Ray
WATCH_MISSES = 3  # in a row mean that it is dead
LAST_SECONDS = 3.0  # to notice it oneself
SOCKET_BYTES = 107  # of a socket's path, on Linux
_SETTINGS = b"\0\0\0\4\0\0\0\0\0"  # an empty frame of HTTP/2
LONGEST_SOCKET = "/session_2026-01-31_23-59-59_999999_4194304/sockets/plasma_store"
OBJECT_STORE_BYTES = 100 << 20  # cells exchange a few kilobytes
CELL_BYTES = 1 << 30  # of the machine's memory, what no cell does without: torch and a small model


class RayLost(RuntimeError):
    """Ray itself, not a cell, has died, or does not start."""


LOST = "Ray has died under the study; the same command goes on where this one stopped"


@dataclass(frozen=True)
class Place:
    """Where cells run and what each may use; without ``address``, a Ray of our own."""

    address: str | None = None
    cpus_per_cell: float = 1.0
    gpus_per_cell: float | None = None  # None: as studies/packing.py finds best


@contextlib.contextmanager
def connected(place: Place) -> Iterator[None]:
    """Ray, started or joined, and left again.

    Raises:
        ConfigError: where no cluster answers at ``place.address``, or this machine is too small.
        RayLost: where Ray does not start, or dies.
    """
    most = usable_cpus()
    if place.address is None and place.cpus_per_cell > most:
        raise ConfigError(
            f"--cpus-per-cell {place.cpus_per_cell:g}",
            "",
            f"this process may use {most} here; --address names a cluster with larger machines",
        )
    calm_ray()
    watch = None
    try:
        if place.address is None:
            cpus = cpus_with_memory(place.cpus_per_cell)
            if cpus < most:
                memory = f"{usable_memory() / 1e9:.1f} GB of memory"
                print(f"note: {memory} let cells run on {cpus} of {most} CPUs only", flush=True)
            start_ray(cpus)
        else:
            _join(place.address)
        # A scheduler's SIGTERM ends a study as Ctrl-C does; Ray would print a stack and abort.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        watch = _Watch()
        watch.start()
        yield
    except KeyboardInterrupt:
        print(
            "\nStopping; the same command goes on from here. (Ctrl-C again stops at once.)",
            flush=True,
        )
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
        raise
    finally:
        if watch is not None and not watch.lost:
            watch.over.set()  # the head is about to end as it should
        if "ray" in sys.modules:
            sys.modules["ray"].shutdown()
        if watch is not None:
            watch.over.set()


def calm_ray() -> None:
    """Settings that Ray reads when it is imported."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no reports over the network
    # Ray would print paragraphs on each lost process and node, with lines of their logs; the study
    # says itself what became of the cell.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "^")


def packing(place: Place, results: Path) -> Packing:
    """What share of a GPU each cell gets; says how to start MPS where cells only take turns."""
    forced = place.gpus_per_cell
    if not any(has.get("GPU") for has in machines().values()):
        return Packing(results, None, forced or 0.0)
    if forced is not None and not 0 < forced < 1:
        return Packing(results, None, forced)
    found = [look_at_machine()] if place.address is None else _look_at_nodes()
    devices = [device for device, _ in found if device is not None]
    if not all(mps for _, mps in found):
        print(f"note: cells take turns on a GPU; where `{START_MPS}` runs, they work side by side")
    if len(devices) < len(found):
        return Packing(results, None, forced)
    return Packing(results, min(devices, key=lambda device: device.memory_gb), forced)


def _look_at_nodes() -> list[tuple[Device | None, bool]]:
    """What every machine with a GPU says of itself."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(num_cpus=0)(look_at_machine)
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
    on = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    return ray.get([look.options(scheduling_strategy=strategy).remote() for strategy in on])


class _Watch(threading.Thread):
    """Notices that the head of Ray has died.

    Ray would try to reach it for a minute and then end this process.
    """

    def __init__(self) -> None:
        import ray

        super().__init__(daemon=True)
        host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
        self._address = (host, int(port))
        self.over = threading.Event()
        self.lost = False
        signal.signal(signal.SIGUSR1, _raise_lost)

    def run(self) -> None:
        missed = 0
        while missed < WATCH_MISSES:
            if self.over.wait(WATCH_SECONDS):
                return
            missed = missed + 1 if _refusal(self._address, WATCH_SECONDS) else 0
        self.lost = True
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        if not self.over.wait(LAST_SECONDS):  # it waits within Ray
            from rich.console import Console

            Console().show_cursor()  # bars have hidden it
            print(f"error: {LOST}", file=sys.stderr, flush=True)
            os._exit(2)


def _raise_lost(*_: object) -> NoReturn:
    raise RayLost(LOST)


def _refusal(address: tuple[str, int], seconds: float, greet: bool = False) -> OSError | None:
    """Why nobody is at a host and port, None where somebody is.

    Where they are greeted as gRPC does (RFC 9113, section 3.4), they have to answer likewise.
    """
    try:
        with socket.create_connection(address, seconds) as connection:
            if greet:
                connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _SETTINGS)
                connection.settimeout(seconds)
                if connection.recv(4)[3:] != _SETTINGS[3:4]:
                    return OSError(errno.EPROTO, "another service answers")
    except OSError as error:
        return error
    return None


def cpus_with_memory(cpus_per_cell: float) -> int:
    """CPUs that this process may use, as far as cells on all of them have memory to begin with.

    Ray watches the machine's memory, or that of a container, and takes no notice of a smaller
    allotment: 64 cells in 8 GB would end each other.
    """
    cells = (usable_memory() - OBJECT_STORE_BYTES) // CELL_BYTES
    return min(usable_cpus(), math.ceil(max(1, cells) * cpus_per_cell))


def start_ray(cpus: int) -> None:
    """A Ray of our own, on this machine, with so many CPUs and the memory of the allotment."""
    if "ray" not in sys.modules:  # what is set later would reach its processes, and not this one
        # A token for this run only: Ray would else want to keep one in the home folder.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray

    folder = socket_folder()
    # Ray puts the folder it is started from first on its workers' path. Another checkout
    # that the user happens to be in must not take the place of this one.
    with contextlib.chdir(ROOT), one_line("Ray does not start"):
        # "local" and not the default, which would try to join what a dead cluster left behind.
        ray.init(
            address="local",
            num_cpus=cpus,
            _memory=max(usable_memory() - OBJECT_STORE_BYTES, CELL_BYTES),
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            logging_level=logging.ERROR,
            log_to_driver=False,
            _temp_dir=folder,
        )


def socket_folder() -> str:
    """Where Ray puts its files: sockets among them, whose paths the system keeps short.

    Where Ray itself would (``TMPDIR`` in front of ``/tmp``), unless that is too long a path or
    another user's.

    Raises:
        ConfigError: where no such folder can be used.
    """
    own = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    others = ("/tmp", "/var/tmp", os.environ.get("XDG_RUNTIME_DIR", ""), "/dev/shm")
    for folder in (own, *filter(None, others)):
        path = Path(folder).resolve() / "ray"
        writable = path if path.is_dir() else path.parent
        short = len(os.fsencode(f"{path}{LONGEST_SOCKET}")) <= SOCKET_BYTES
        if short and writable.is_dir() and os.access(writable, os.W_OK | os.X_OK):
            return str(path)
    message = "a folder that can be written and has a short path is needed for Ray's sockets"
    raise ConfigError("RAY_TMPDIR", "", message, ": ")


@contextlib.contextmanager
def one_line(what: str) -> Iterator[None]:
    """Have whatever Ray raises while it starts said in one line, without those of its own."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise RayLost(f"{what}: {reason}") from None
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _join(address: str) -> None:
    if address != "auto":
        _probe(address)

    import ray
    from ray._private.services import canonicalize_bootstrap_address

    if address == "auto" and (found := canonicalize_bootstrap_address(address)):
        _probe(found)  # it may be one that a dead cluster has left behind

    # Only the packages travel: a working folder would take data and results along.
    packages = [str(ROOT / name) for name in ("msvit", "studies")]
    # The folder is one where no package hides those that travel.
    with contextlib.chdir("/"), one_line(f"--address {address}"):
        ray.init(
            address=address,
            runtime_env={"py_modules": packages},
            logging_level=logging.ERROR,
            log_to_driver=False,
        )


def _probe(address: str) -> None:
    """Ray waits minutes for an address where nobody answers; a socket knows at once."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdigit() or not 0 < int(port) < 65536:
        message = "on a machine of the cluster, 'auto' or HOST:PORT is needed"
        raise ConfigError(f"--address {address}", "", message)
    if (error := _refusal((host, int(port)), PROBE_SECONDS, greet=True)) is not None:
        message = f"no Ray cluster there ({error.strerror or 'no answer'})"
        raise ConfigError(f"--address {address}", "", message)
