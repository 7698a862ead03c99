"""What the command lines of this folder share."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from msvit import processor
from msvit.commands import DEFAULT_RESULTS


def add_place(parser: argparse.ArgumentParser, what: str) -> None:
    """Options that say where results and data are, and what each ``what`` may use."""
    add = parser.add_argument
    add(
        "--results",
        type=Path,
        default=DEFAULT_RESULTS,
        metavar="DIR",
        help="where records, tables and figures are kept (default: %(default)s)",
    )
    add("--data-dir", type=Path, metavar="DIR", help="where data sets are, or are downloaded to")
    add("--address", metavar="auto|HOST:PORT", help="run on this Ray cluster, not here")
    add(
        "--cpus-per-cell",
        type=positive(float),
        default=1.0,
        metavar="N",
        help=f"CPUs, and so threads, of each {what} (default: 1)",
    )
    add(
        "--gpus-per-cell",
        type=_share,
        metavar="auto|N",
        help=f"GPUs of each {what}; 0.5 lets two share one (default: auto, as many as fit)",
    )


def notes_on_precision(asked: Iterable[str], options: argparse.Namespace) -> list[str]:
    """What a person should know before waiting for cells of the precisions ``asked`` for."""
    if "bf16" not in asked or options.address is not None or processor.multiplies_bf16():
        return []
    return [
        "this processor has no instructions for bf16: unless a GPU trains, products are computed "
        "number by number and a step takes minutes; with training.precision=fp32 it takes seconds"
    ]


def positive(kind: type) -> Any:
    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not 0 < value < math.inf:
            what = "a whole number from 1 on" if kind is int else "a number above 0"
            raise argparse.ArgumentTypeError(f"{what} is needed (got {text!r})")
        return value

    return parse


def _share(text: str) -> float | None:
    if text == "auto":
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf or (value > 1 and value != int(value)):
        raise argparse.ArgumentTypeError(
            f"auto, 0, a fraction of one or a whole number is needed (got {text!r})"
        )
    return value
