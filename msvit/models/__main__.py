"""``python -m msvit.models``: the zoo as a Markdown table, every figure computed from the code."""

from __future__ import annotations

import os
import signal
import sys

# Ctrl-C while torch loads: there is nothing to save, and nothing to say.
if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

from collections.abc import Sequence
from typing import Any

import torch

from msvit.commands import Parser, command
from msvit.models import create_model, list_models, zoo
from msvit.models.base import Model
from msvit.options import unknown


def zoo_table(pattern: str = "*") -> str:
    """One row per registry name that matches: parameters, cost of a time step, evidence."""
    lines = [
        "| model | M params | published | GMAC per step | otherwise | compared with authors' code "
        "| remark |",
        "|---|---:|---:|---:|---:|---|---|",
    ]
    for name in list_models(pattern):
        entry = zoo()[name]
        with torch.device("meta"):  # shapes without memory or arithmetic
            model = create_model(name)
        millions = sum(p.numel() for p in model.parameters()) / 1e6
        counted = [f"otherwise: {entry['gmac_source']}"] if "gmac_source" in entry else []
        remarks = [*([entry["note"]] if "note" in entry else []), *counted]
        lines.append(
            f"| `{name}` | {millions:.2f} | {_figure(entry.get('published_m'))} "
            f"| {dense_macs_per_step(model) / 1e9:.2f} | {_figure(entry.get('other_gmac'))} "
            f"| {entry.get('golden', '–')} | {'; '.join(remarks)} |"
        )
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def dense_macs_per_step(model: Model) -> int:
    """Multiply-accumulates of one image in one time step if no zero were skipped."""
    counts: list[int] = []

    def count(module: Any, inputs: tuple, output: torch.Tensor) -> None:
        operands = inputs if len(inputs) == 2 else (*inputs, output)
        counts.append(module.dense_macs(*operands))

    for module in model.modules():
        if hasattr(module, "dense_macs"):
            module.register_forward_hook(count)
    options = model.options
    # A time step of events costs what one of an image does.
    shape = (1, options.in_channels, options.image_size, options.image_size)
    with torch.no_grad():
        model.eval()(torch.empty(shape, device="meta"))
    return sum(counts)


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = Parser(prog="python -m msvit.models", description=__doc__, allow_abbrev=False)
    parser.add_argument("pattern", nargs="?", default="*", help="names to list, such as 'msvit*'")
    pattern = parser.parse_args(arguments).pattern
    if not list_models(pattern):
        parser.exit(2, unknown(pattern, zoo(), f"error: no model is called {pattern!r}") + "\n")
    print(zoo_table(pattern))
    return 0


if __name__ == "__main__":
    sys.exit(main())
