"""One cell on several workers: Ray Train places and joins them, each trains its part.

A task leads: it only waits, so that a cell on many workers is one task among others to whoever runs
a study, with an ending of its own. The first worker is to the results folder what the one process
of a small cell is (:func:`studies.worker.run_cell`): it holds the lock, writes the log, the
checkpoint and the record. The others write what they print to ``log-<rank>.txt``.

Ray Train neither retries nor keeps checkpoints here. Where workers are lost, by a crash, a machine
or because one hangs and the others give up waiting for it, all of them end, and the cell is run
again from its own checkpoint like any other whose process died.
"""

from __future__ import annotations

import os
import tempfile
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msvit.allotment import GPU_SHARE
from msvit.cells import Cell
from msvit.records.schema import RecordError
from msvit.records.store import cell_folder
from studies.cluster import has_room
from studies.progress import first_line
from studies.resources import Resources
from studies.worker import LostPeers, Train, failure_of, output_to, reachable, run_cell

HANG_SECONDS = 900.0
"""How long workers wait for one that does not answer. The longest that one does alone is to write a
checkpoint, or to read the images, which some find in the cache of their machine and others do not.
"""

NODE_LABEL = "ray.io/node-id"  # that every node of Ray has


@dataclass(frozen=True)
class Group:
    """``count`` workers with ``cpus`` and ``gpus`` each, on ``nodes`` machines (None: any)."""

    count: int
    cpus: float
    gpus: float
    nodes: int | None
    hang_seconds: float

    @classmethod
    def of(cls, resources: Resources, cpus: float, gpus: float) -> Group:
        """``cpus`` and ``gpus`` are what a worker gets where ``resources`` do not tell."""
        count = resources.count
        if resources.cpus is not None:
            cpus = resources.cpus / count
        if resources.gpus is not None:
            gpus = resources.gpus / count
        return cls(count, cpus, gpus, resources.nodes, HANG_SECONDS)

    def __str__(self) -> str:
        where = f" on {self.nodes} machines" if self.nodes else ""
        return f"{self.count} workers{where} with {self.cpus:g} CPUs and {self.gpus:g} GPUs each"


class _Ended(Exception):
    """The cell has ended, other than well, by what the first worker has found: its outcome.

    Raised rather than returned, so that Ray ends the others, which wait for the first.
    """

    def __init__(self, outcome: dict[str, Any]) -> None:
        super().__init__(outcome)
        self.outcome = outcome


def run_together(
    group: Group,
    cell: Mapping[str, Any],
    results: str,
    data_dir: str | None = None,
    train: Train | None = None,
    attempt: int = 1,
) -> dict[str, Any]:
    """:func:`studies.worker.run_cell` on a ``group``; called in a task of its own.

    Raises:
        RecordError: where the results cannot be written.
        LostPeers: where a worker was lost; the cell has kept its checkpoint.
    """
    _settle_ray_train(group)
    from ray.train import ControllerError, WorkerGroupError

    task: dict[str, Any] = {"cell": dict(cell), "results": results, "data_dir": data_dir}
    task |= {"train": train, "attempt": attempt, "gpus": group.gpus}
    while True:
        try:
            return _fit(group, task)
        except WorkerGroupError as error:
            return _ending(error, Cell.from_dict(cell), attempt)
        except ControllerError as error:
            if type(error.controller_failure).__name__ != "WorkerGroupStartupTimeoutError":
                raise LostPeers(f"the workers did not start: {error.controller_failure}") from None
            # No room within a minute: other cells have it, unless machines are gone.
            if not has_room(group.count, group.cpus, group.gpus, group.nodes):
                raise LostPeers(f"there is no room for {group} any more") from None


def _settle_ray_train(group: Group) -> None:
    """What Ray Train reads from the environment of its driver, which is this process."""
    os.environ |= {
        "RAY_TRAIN_V2_ENABLED": "1",
        # Output goes to the log of the cell, once.
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
        "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
        "RAY_TRAIN_METRICS_ENABLED": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": str(group.hang_seconds),
    }


def _fit(group: Group, task: Mapping[str, Any]) -> dict[str, Any]:
    import ray.train.torch

    train: Any = ray.train  # whose types are those of its first version
    one = {"CPU": group.cpus} | ({"GPU": group.gpus} if group.gpus else {})
    strategy = {1: "STRICT_PACK", group.count: "STRICT_SPREAD"}.get(group.nodes or 0, "PACK")
    between = group.nodes is not None and 1 < group.nodes < group.count
    scaling = train.ScalingConfig(
        num_workers=group.count,
        use_gpu=group.gpus > 0,
        resources_per_worker=one,
        placement_strategy=strategy,
        label_selector=_on_nodes(group) if between else None,
    )
    # NCCL refuses two workers on one GPU.
    backend = "nccl" if group.gpus >= 1 else "gloo"
    with tempfile.TemporaryDirectory() as notes:  # of Ray Train; nothing of ours is kept there
        trainer = train.torch.TorchTrainer(
            _work,
            train_loop_config=dict(task),
            torch_config=train.torch.TorchConfig(
                backend=backend, timeout_s=int(group.hang_seconds)
            ),
            scaling_config=scaling,
            run_config=train.RunConfig(
                name="cell",
                storage_path=notes,
                failure_config=train.FailureConfig(max_failures=0, controller_failure_limit=0),
            ),
        )
        return trainer.fit().return_value


def _on_nodes(group: Group) -> list[dict[str, str]]:
    """The machine of each worker: as many on each, where most is free now."""
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node()

    def room(node: str) -> int:
        cpus, gpus = free[node].get("CPU", 0.0), free[node].get("GPU", 0.0)
        return int(min(cpus / group.cpus, gpus / group.gpus if group.gpus else cpus / group.cpus))

    chosen = sorted(free, key=room, reverse=True)[: group.nodes]
    return [{NODE_LABEL: node} for node in chosen for _ in range(group.count // len(chosen))]


def _ending(error: Any, cell: Cell, attempt: int) -> dict[str, Any]:
    """What the first errors of workers (``WorkerGroupError``) mean for the cell."""
    own = {r: e for r, e in sorted(error.worker_failures.items()) if not _is_loss(e)}
    for found in own.values():
        if isinstance(found, _Ended):
            return found.outcome
        if isinstance(found, RecordError):
            raise found
    if not own:
        reasons = {f"worker {r}: {_said(e)}" for r, e in error.worker_failures.items()}
        raise LostPeers("; ".join(sorted(reasons)))
    rank, first = next(iter(own.items()))
    message = f"worker {rank}: {first}"
    return {"failure": failure_of(cell, type(first).__name__, message, str(error), attempt)}


def _is_loss(error: BaseException) -> bool:
    """Whether it tells of the group, and not of the cell; Ray's own errors do."""
    return isinstance(error, LostPeers) or type(error).__module__.split(".")[0] == "ray"


def _said(error: BaseException) -> str:
    cause = getattr(error, "health_check_failure", error)
    return first_line(str(cause)) or type(cause).__name__


def _work(task: Mapping[str, Any]) -> dict[str, Any] | None:
    """In the process of each worker; the first one's outcome is that of the cell."""
    from msvit import workers
    from msvit.training import train_cell

    os.environ[GPU_SHARE] = f"{task['gpus']:g}"
    train = task["train"] or train_cell
    cell, results, data_dir = task["cell"], task["results"], task["data_dir"]
    try:
        if workers.is_first():
            begun = _Beginning(train)
            outcome = run_cell(cell, results, data_dir, begun, task["attempt"])
            if not begun.told:  # another process has the cell, or has finished it
                workers.from_first(False)
            if "failure" in outcome:
                raise _Ended(outcome)
            return outcome
        if workers.from_first(None):
            resolved = Cell.from_dict(cell)
            folder = cell_folder(reachable(Path(results)), resolved.id)
            folder.mkdir(parents=True, exist_ok=True)
            place = Path(data_dir) if data_dir else None
            with output_to(folder / f"log-{workers.rank()}.txt"):
                try:
                    train(resolved, folder, data_dir=place, report=lambda progress: None)
                except Exception:
                    traceback.print_exc()
                    raise
    except RuntimeError as error:
        if workers.is_loss_of_another(error):
            raise LostPeers(str(error)) from None
        raise
    return None


class _Beginning:
    """``train``, told to all workers when the first one begins."""

    def __init__(self, train: Train) -> None:
        self._train, self.told = train, False

    def __call__(self, cell: Cell, folder: Path, **options: Any) -> Mapping[str, Any]:
        from msvit import workers

        self.told = True
        try:
            workers.from_first(True)
            return self._train(cell, folder, **options)
        except RuntimeError as error:
            if workers.is_loss_of_another(error):
                raise LostPeers(str(error)) from error
            raise
