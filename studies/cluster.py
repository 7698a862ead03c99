"""Where cells run: a Ray of our own on this machine, or a running cluster.

Ray reads its settings when it is imported. This module sets them first; nothing else in the
harness imports Ray at module level. Where Ray was imported before us, its settings stand.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from msvit.allotment import usable_cpus
from msvit.options import ConfigError
from studies.packing import START_MPS, Device, Packing, look_at_machine

ROOT = Path(__file__).resolve().parent.parent

PROBE_SECONDS = 3.0
OBJECT_STORE_BYTES = 100 << 20  # cells exchange a few kilobytes


class RayLost(RuntimeError):
    """Ray itself, not a cell, has died."""


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
    """
    most = usable_cpus()
    if place.address is None and place.cpus_per_cell > most:
        raise ConfigError(
            f"--cpus-per-cell {place.cpus_per_cell:g}",
            "",
            f"this process may use {most} here; --address names a cluster with larger machines",
        )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no reports over the network
    # Ray would print a paragraph on each; the study says itself what became of the cell.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "worker died|killed due to memory pressure")
    try:
        if place.address is None:
            _start()
        else:
            _join(place.address)
        # A scheduler's SIGTERM ends a study as Ctrl-C does; Ray would print a stack and abort.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        yield
    except KeyboardInterrupt:
        print(
            "\nStopping; the same command goes on from here. (Ctrl-C again stops at once.)",
            flush=True,
        )
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
        raise
    finally:
        if "ray" in sys.modules:
            sys.modules["ray"].shutdown()


def packing(place: Place, results: Path) -> Packing:
    """What share of a GPU each cell gets; says how to start MPS where cells only take turns."""
    forced = place.gpus_per_cell
    if not any(node.get("GPU") for node in _nodes()):
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


def slots(cpus: float, gpus: float) -> int:
    """How many cells fit at once; a cell does not stretch over two machines."""
    return sum(
        min(
            int(node.get("CPU", 0) // cpus),
            int(node.get("GPU", 0) / gpus + 1e-6) if gpus else sys.maxsize,  # 1 // 0.1 is 9
        )
        for node in _nodes()
    )


def resources() -> str:
    """What the machines have, in words."""
    nodes = [f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in _nodes()]
    return "; ".join(nodes) or "no machine"


def _start() -> None:
    if "ray" not in sys.modules:  # what is set later would reach its processes, and not this one
        # A token for this run only: Ray would else want to keep one in the home folder.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray

    # Ray puts the folder it is started from first on its workers' path. Another checkout
    # that the user happens to be in must not take the place of this one.
    with contextlib.chdir(ROOT):
        # "local" and not the default, which would try to join what a dead cluster left behind.
        ray.init(
            address="local",
            num_cpus=usable_cpus(),
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )


def _join(address: str) -> None:
    if address != "auto":
        _probe(address)

    import ray

    # Only the packages travel: a working folder would take data and results along.
    packages = [str(ROOT / name) for name in ("msvit", "studies")]
    try:
        with contextlib.chdir("/"):  # where no package hides those that travel
            ray.init(
                address=address,
                runtime_env={"py_modules": packages},
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"--address {address}", "", reason) from None


def _probe(address: str) -> None:
    """Ray waits minutes for an address where nobody answers; a socket knows at once."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdigit() or not 0 < int(port) < 65536:
        message = "on a machine of the cluster, 'auto' or HOST:PORT is needed"
        raise ConfigError(f"--address {address}", "", message)
    try:
        socket.create_connection((host, int(port)), PROBE_SECONDS).close()
    except OSError as error:
        message = f"no Ray cluster there ({error.strerror or 'no answer'})"
        raise ConfigError(f"--address {address}", "", message) from None


def _nodes() -> list[dict[str, float]]:
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
