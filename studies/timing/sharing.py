"""What sharing a batch costs: two workers with a thread each against one with two threads.

python -m studies.timing.sharing
python -m studies.timing.sharing --model msvit_cifar10 --batch 32 --rounds 5 --sync

Both take the same updates of the same batch, in turns, each time in fresh processes joined by gloo.
Nothing else should run on the machine. Exit code: 0 done, 2 a wrong option.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from datetime import timedelta
from statistics import median

import torch
from torch import distributed

from msvit import create_model, workers
from msvit.commands import Parser, command
from msvit.layers.shared_statistics import share_statistics
from msvit.precision import choose_precision
from msvit.recipes import TrainingOptions
from msvit.runtime import prepare_process
from msvit.training.batches import Normalise
from msvit.training.optimization import make_optimizer
from msvit.training.step import TrainingStep
from studies.command_line import positive

_CPU = torch.device("cpu")
_THREADS = 2
_WARM_UP = 2  # steps that compile, fill the allocator, arrange buckets


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(options.rounds):
        for count, found in seconds.items():
            found.append(_measured(count, options))
    one, two = (median(found) for found in seconds.values())
    print(f"{options.model}, batch {options.batch}, {options.precision}, ms a step")
    print(f"one worker, {_THREADS} threads: {one * 1e3:8.1f}  {_spread(seconds[1])}")
    print(f"two workers, 1 thread:   {two * 1e3:8.1f}  {_spread(seconds[2])}")
    print(f"ratio: {two / one:.3f}")
    return 0


def _measured(count: int, options: argparse.Namespace) -> float:
    """Median seconds of a step of ``count`` workers."""
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        told = spawn.SimpleQueue()
        given = (count, f"file://{folder}/meeting", options, told)
        processes = [spawn.Process(target=_work, args=(rank, *given)) for rank in range(count)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            raise RuntimeError("a worker ended without a result")
        return told.get()


def _work(
    rank: int,
    count: int,
    meeting: str,
    options: argparse.Namespace,
    told: multiprocessing.SimpleQueue[float],
) -> None:
    prepare_process()
    torch.set_num_threads(_THREADS // count)
    if count > 1:
        distributed.init_process_group("gloo", meeting, timedelta(minutes=5), count, rank)
    torch.manual_seed(0)
    model = create_model(options.model).train()
    recipe = TrainingOptions.parse(
        {"batch_size": options.batch, "sync_batchnorm": options.sync}, "training"
    )
    if recipe.sync_batchnorm:
        share_statistics(model)
    size = model.options.image_size
    images = torch.randint(0, 256, (options.batch, 3, size, size), dtype=torch.uint8)
    labels = torch.randint(10, (options.batch,))
    step = TrainingStep(
        *(model, recipe, make_optimizer(model, recipe), Normalise((0.5,) * 3, (0.25,) * 3, _CPU)),
        choose_precision(options.precision, _CPU),
    )
    seconds = []
    for _ in range(_WARM_UP + options.steps):
        began = time.perf_counter()
        step(workers.own(images), workers.own(labels))
        workers.total(torch.zeros(1))  # the slowest counts
        seconds.append(time.perf_counter() - began)
    if rank == 0:
        told.put(median(seconds[_WARM_UP:]))
    if count > 1:
        distributed.destroy_process_group()  # or gloo's threads may be alive when the process ends


def _spread(found: list[float]) -> str:
    return f"({min(found) * 1e3:.1f} to {max(found) * 1e3:.1f} over {len(found)} rounds)"


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="msvit_cifar10", metavar="NAME")
    add("--batch", type=positive(int), default=16, metavar="N", help="images a step (default 16)")
    add("--steps", type=positive(int), default=8, metavar="N", help="timed a process (default 8)")
    add("--rounds", type=positive(int), default=5, metavar="N", help="default 5")
    add("--precision", default="fp32", metavar="NAME", help="default fp32")
    add("--sync", action="store_true", help="norms share their statistics")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
