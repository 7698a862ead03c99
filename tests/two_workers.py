"""Two processes in one of torch's process groups, as Ray Train or torchrun would start them."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

Work = Callable[[int], Any]


def two_workers(folder: Path, work: Work, start: str = "fork") -> list[Any]:
    """What ``work(rank)`` returns in each of two workers, joined by gloo, by way of ``folder``.

    Where this process has used a GPU, ``start`` has to be ``spawn``, and ``work`` pickled.
    """
    context = multiprocessing.get_context(start)
    processes = [context.Process(target=_worker, args=(folder, work, rank)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def _worker(folder: Path, work: Work, rank: int) -> None:
    torch.set_num_threads(1)
    meeting, seconds = f"file://{folder}/meeting", timedelta(seconds=120)
    torch.distributed.init_process_group("gloo", meeting, seconds, rank=rank, world_size=2)
    torch.save(work(rank), folder / f"{rank}.pt")
    torch.distributed.barrier()
