"""What a recipe's augmentation costs beside a training step.

python -m studies.timing.augmentation
python -m studies.timing.augmentation --recipe msvit-cifar10 --model msvit_cifar10 --batches 20

Random images of the model's size, on a GPU where there is one. Batches are made, then a step is
taken on one of them, then both in turn; on a GPU, which works while the host draws, both in turn
may take no longer than the longer one.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

import torch

from msvit import create_model
from msvit.commands import Parser, command
from msvit.data.splits import Images
from msvit.precision import choose_precision
from msvit.recipes import TrainingOptions, load_recipe
from msvit.runtime import prepare_process, training_device
from msvit.training.augmentation import Augmentation
from msvit.training.batches import Normalise
from msvit.training.loop import Trainer
from msvit.training.optimization import Rates, make_erasing, make_mixup, make_optimizer
from msvit.training.randomness import seed_everything
from msvit.training.step import TrainingStep, choose_recorder

_WARM_UP = {"cuda": 5, "cpu": 1}  # steps, in the fourth of which a GPU records them


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = Parser(description="Measure what augmentation costs beside a training step.")
    parser.add_argument("--recipe", default="msvit-cifar10", metavar="NAME")
    parser.add_argument("--model", default="msvit_cifar10", metavar="NAME")
    parser.add_argument("--batches", type=int, default=20, metavar="N")
    given = parser.parse_args(arguments)
    options = TrainingOptions.parse(load_recipe(given.recipe), given.recipe)
    prepare_process()
    device = training_device()
    generator = seed_everything(0, 0)
    model = create_model(given.model).to(device).train()
    channels, size = model.options.in_channels, model.options.image_size
    mean = (0.5,) * channels
    normalise = Normalise(mean, (0.25,) * channels, device)
    optimizer = make_optimizer(model, options, device)
    precision = choose_precision(options.precision, device)
    step = TrainingStep(
        *(model, options, optimizer, normalise, precision), *choose_recorder(precision, device)
    )
    rates = Rates(optimizer, options, given.batches, device)
    mixup = make_mixup(options, model.options.num_classes)
    trainer = Trainer(model, step, rates, normalise, mixup, erase=make_erasing(options, device))
    augment = Augmentation(options, mean, device)
    shape = (options.batch_size, channels, size, size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8).to(device)
    labels = torch.randint(model.options.num_classes, (len(images),)).to(device)

    def make() -> tuple[torch.Tensor, torch.Tensor]:
        return trainer.prepared(Images(augment(images, generator), labels))

    one = make()
    rates.set(0)
    for _ in range(_WARM_UP[device.type]):
        step(*one)
    print(f"{given.recipe}, {given.model}, batch {len(images)}, {precision.label}, {device}")
    alone = _milliseconds(lambda: step(*one), given.batches, device)
    made = _milliseconds(make, given.batches, device)
    both = _milliseconds(lambda: step(*make()), given.batches, device)
    print(
        f"step {alone:.1f} ms, augmentation {made:.1f} ms ({made / alone:.1%}), both {both:.1f} ms"
    )
    return 0


def _milliseconds(work: Callable[[], object], times: int, device: torch.device) -> float:
    """Mean time of ``work``, done a number of ``times`` one behind the other."""
    _finish(device)
    began = time.perf_counter()
    for _ in range(times):
        work()
    _finish(device)
    return (time.perf_counter() - began) * 1e3 / times


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    sys.exit(main())
