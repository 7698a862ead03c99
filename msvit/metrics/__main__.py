"""``python -m msvit.metrics MODEL``: what a network costs, layer by layer, under named models."""

from __future__ import annotations

import os
import signal
import sys

# Ctrl-C while torch loads: there is nothing to save, and nothing to say.
if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

from msvit.commands import Parser, command
from msvit.metrics.costs import Costs, measured_costs
from msvit.metrics.sources import images_of, network_of
from msvit.options import ConfigError, DataError
from msvit.printing import print_error
from msvit.records.energy_choice import EnergyChoice, add_energy, energy_choice
from msvit.records.schema import RecordError


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    from msvit.checkpoints import CheckpointError

    try:
        _refuse_idle(options)
        energy = energy_choice(options)
        network = network_of(options.model, options.weights)
        images = images_of(network, options.data, options.images, options.data_dir, options.most)
        costs = measured_costs(network, images, options.rate, energy.models)
        if options.csv is not None:
            _write_csv(costs, options.csv)
    except (ConfigError, DataError, RecordError, CheckpointError) as error:
        print_error(error)
        return 2
    _show(costs, energy)
    if options.csv is not None:
        print(f"written: {options.csv}")
    return 0


def _refuse_idle(options: argparse.Namespace) -> None:
    """Options that would do nothing beside the others."""
    if options.rate is not None and (options.data is not None or options.images is not None):
        raise ConfigError("--rate", "", "rates are measured where --data or --images are given")
    if options.data_dir is not None and options.data is None:
        raise ConfigError("--data-dir", "", "it tells where --data is, which is not given")


def _show(costs: Costs, energy: EnergyChoice) -> None:
    widths = [max(map(len, column)) for column in zip(*costs.table, strict=True)]
    for line in costs.table:
        first, second, *rest = (
            text.ljust(w) if i < 2 else text.rjust(w)
            for i, (text, w) in enumerate(zip(line, widths, strict=True))
        )
        print("  ".join([first, second, *rest]).rstrip())
    print()
    for note in (*costs.notes, energy.note()):
        print(note)


def _write_csv(costs: Costs, path: Path) -> None:
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(costs.rows[0]))
            writer.writeheader()
            writer.writerows(costs.rows)
    except OSError as error:
        raise RecordError(f"{path}: cannot be written ({error.strerror})") from None


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m msvit.metrics", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("model", help="a name of the zoo, or a trained cell: its folder or weights.safetensors")
    add("--weights", type=Path, metavar="FILE", help="an official checkpoint of the model")
    add("--data", metavar="NAME", help="measure on the test images of this data set")
    add("--images", type=Path, metavar="FOLDER", help="measure on the images of a folder")
    add("--data-dir", type=Path, metavar="DIR", help="where data sets are")
    add("--most", type=_count, default=256, metavar="N", help="images at most (default: 256)")
    add(
        "--rate",
        type=_rate,
        metavar="R",
        help="without data: every layer but the first is given so many spikes per value and step "
        "(default: 0.2)",
    )
    add("--csv", type=Path, metavar="FILE", help="write the rows, unrounded")
    add_energy(parser)
    return parser


def _count(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"a whole number from 1 on is needed (got {text!r})")
    return int(text)


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"a share from 0 to 1 is needed (got {text!r})")
    return value


if __name__ == "__main__":
    sys.exit(main())
