"""One cell on several workers: Ray Train places and joins them, each trains its part.

A task leads: it only waits, so that a cell on many workers is one task among others to whoever runs
a study, with an ending of its own. The first worker is to the results folder what the one process
of a small cell is (:func:`studies.worker.run_cell`): it holds the lock, writes the log, the
checkpoint and the record. The others write what they print to ``log-<rank>.txt``.

Ray Train neither retries nor keeps checkpoints here. Where workers are lost, by a crash, a machine
or because one hangs and the others give up waiting for it, all of them end, and the cell is run
again from its own checkpoint like any other whose process died. So it is where the leading task
dies, which takes its workers along; what they had taken is freed by :mod:`studies.room`.
"""

from __future__ import annotations

import os
import tempfile
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msvit.allotment import GPU_SHARE
from msvit.cells import Cell
from msvit.records.schema import RecordError
from msvit.records.store import cell_folder
from studies.progress import first_line
from studies.room import Group, NoRoom, free_machines, machines_for
from studies.worker import LostPeers, Train, failure_of, output_to, reachable, run_cell

HANG_SECONDS = 900.0
"""How long workers wait for one that does not answer. The longest that one does alone is to write a
checkpoint, or to read the images, which some find in the cache of their machine and others do not.
"""

FIRST_SECONDS = 5.0
"""What the first worker finds as well is told in its words: the others let it speak first."""

NODE_LABEL = "ray.io/node-id"  # that every node of Ray has


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
        NoRoom: where the group has not begun, as what was free for it is not any more.
        LostPeers: where a worker was lost; the cell has kept its checkpoint.
        ray.exceptions.OutOfMemoryError: where one was ended because its machine's memory was full.
    """
    _settle_ray_train()
    from ray.exceptions import RayActorError
    from ray.train import ControllerError, TrainingFailedError, WorkerGroupError

    task: dict[str, Any] = {"cell": dict(cell), "results": results, "data_dir": data_dir}
    task |= {"train": train, "attempt": attempt, "gpus": group.gpus}
    try:
        return _fit(group, task)
    except WorkerGroupError as error:
        return _ending(error, Cell.from_dict(cell), attempt)
    except ControllerError as error:
        if type(error.controller_failure).__name__ == "WorkerGroupStartupTimeoutError":
            raise NoRoom(f"there is no room for {group} any more") from None
        raise LostPeers(f"the workers did not start: {error.controller_failure}") from None
    except (RayActorError, TrainingFailedError) as error:  # what watches over them is gone
        raise LostPeers(first_line(str(error)) or type(error).__name__) from None


def _settle_ray_train() -> None:
    """What Ray Train reads from the environment of its driver, which is this process."""
    os.environ |= {
        "RAY_TRAIN_V2_ENABLED": "1",
        # Output goes to the log of the cell, once.
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
        "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
        "RAY_TRAIN_METRICS_ENABLED": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        # A machine that is taken away ends in its workers' death, and they are started again by us.
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": str(HANG_SECONDS),
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
        label_selector=_labels(group) if between else None,
    )
    # NCCL refuses two workers on one GPU.
    backend = "nccl" if group.gpus >= 1 else "gloo"
    with tempfile.TemporaryDirectory() as notes:  # of Ray Train; nothing of ours is kept there
        trainer = train.torch.TorchTrainer(
            _work,
            train_loop_config=dict(task),
            torch_config=train.torch.TorchConfig(backend=backend, timeout_s=int(HANG_SECONDS)),
            scaling_config=scaling,
            run_config=train.RunConfig(
                name="cell",
                storage_path=notes,
                failure_config=train.FailureConfig(
                    max_failures=0, controller_failure_limit=0, max_preemption_failures=0
                ),
            ),
        )
        _start_less(trainer)
        return trainer.fit().return_value


def _labels(group: Group) -> list[dict[str, str]]:
    """The machine of each worker, as Ray selects it.

    Raises:
        NoRoom: where too few machines have room for their part.
    """
    chosen = machines_for(group, free_machines())
    if not chosen:
        raise NoRoom(f"there is no room for {group} any more")
    return [{NODE_LABEL: node} for node in chosen]


_NOT_NEEDED = {
    "PlacementGroupCleanerCallback",  # asks the dashboard, without end where there is none
    "DatasetsCallback",  # of Ray Data
}


def _start_less(trainer: Any) -> None:
    """Have Ray Train start no processes of which a cell makes no use; each takes seconds.

    What a dead leader leaves taken is freed by :func:`studies.room.remove_abandoned`.
    """
    made = trainer._create_default_callbacks
    trainer._create_default_callbacks = lambda: [
        callback for callback in made() if type(callback).__name__ not in _NOT_NEEDED
    ]


def _ending(error: Any, cell: Cell, attempt: int) -> dict[str, Any]:
    """What the first errors of workers (``WorkerGroupError``) mean for the cell."""
    found = {rank: _cause(failure) for rank, failure in sorted(error.worker_failures.items())}
    for cause in found.values():
        if isinstance(cause, _Ended):
            return cause.outcome
        if isinstance(cause, RecordError) or _is_of_ray(cause, "OutOfMemoryError"):
            raise cause
    own = {r: e for r, e in found.items() if not isinstance(e, LostPeers) and not _is_of_ray(e)}
    if not own:
        said = (f"worker {r}: {first_line(str(e)) or type(e).__name__}" for r, e in found.items())
        raise LostPeers("; ".join(said))
    rank, first = next(iter(own.items()))
    message = f"worker {rank}: {first}"
    return {"failure": failure_of(cell, type(first).__name__, message, str(error), attempt)}


def _cause(error: BaseException) -> BaseException:
    """What Ray Train has found to be wrong with a worker that does not answer, or its error."""
    return getattr(error, "health_check_failure", error)


def _is_of_ray(error: BaseException, name: str = "") -> bool:
    """Whether it tells of processes and machines, and not of the cell."""
    kind = type(error)
    return kind.__module__.split(".")[0] == "ray" and name in ("", kind.__name__)


def _work(task: Mapping[str, Any]) -> dict[str, Any] | None:
    """In the process of each worker; the first one's outcome is that of the cell."""
    from msvit import workers
    from msvit.training import train_cell

    os.environ[GPU_SHARE] = f"{task['gpus']:g}"
    train = task["train"] or train_cell
    try:
        if workers.is_first():
            return _lead(train, task)
        if workers.from_first(None):
            _follow(train, task)
    except RuntimeError as error:
        if workers.is_loss_of_another(error):
            raise LostPeers(str(error)) from None
        raise
    return None


def _lead(train: Train, task: Mapping[str, Any]) -> dict[str, Any]:
    from msvit import workers

    begun = _Beginning(train)
    given = (task["cell"], task["results"], task["data_dir"], begun, task["attempt"])
    outcome = run_cell(*given)
    if not begun.told:  # another process has the cell, or has finished it
        workers.from_first(False)
    if "failure" in outcome:
        raise _Ended(outcome)
    return outcome


def _follow(train: Train, task: Mapping[str, Any]) -> None:
    from msvit import workers

    cell = Cell.from_dict(task["cell"])
    folder = cell_folder(reachable(Path(task["results"])), cell.id)
    folder.mkdir(parents=True, exist_ok=True)
    place = Path(task["data_dir"]) if task["data_dir"] else None
    with output_to(folder / f"log-{workers.rank()}.txt"):
        try:
            train(cell, folder, data_dir=place, report=lambda progress: None)
        except Exception as error:
            traceback.print_exc()
            if not workers.is_loss_of_another(error):
                time.sleep(FIRST_SECONDS)
            raise


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
