"""A look inside trained networks: what their scales vote for, what is kept, which neurons fire.

python analysis/inside.py results/cells/<id> [--images 0,5,17 | --classes 3,8] [--layer NAME]
python analysis/inside.py --grid scales [--results DIR]

Needs the kept weights of a finished cell and its test images; trains nothing. Of a grid, the first
finished cell of each configuration is looked at. Figures (PNG, PDF), frames (Parquet) and what they
say go to the cell's folder, and from there into the page of every study that has the cell.
"""

from __future__ import annotations

import os
import signal
import sys

if not __package__:
    # As a script, this folder would come first on the path and hide the standard `statistics`.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    # Ctrl-C while modules load: there is nothing to save, and nothing to say.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.look import FOLDER
from msvit.commands import DEFAULT_RESULTS, Parser, command
from msvit.options import ConfigError, DataError
from msvit.printing import print_error
from msvit.records.schema import RecordError
from msvit.records.store import cell_folder, read_record, unwritable

if TYPE_CHECKING:
    from analysis.look.making import Wanted
    from msvit.cells import Cell


@dataclass(frozen=True)
class Place:
    """A cell of a results folder, and what it is called in a study."""

    results: Path
    id: str
    label: str = ""


def look_into(place: Place, wanted: Wanted, data_dir: Path | None, out: Path | None) -> Path:
    """Look into one cell, write what is seen, print what it says; the folder of its files.

    Raises:
        CheckpointError, ConfigError, DataError, RecordError: where that cannot be done.
    """
    from analysis.look.making import look_inside, write_look
    from msvit.training.kept import open_kept

    folder = cell_folder(place.results, place.id)
    record = read_record(place.results, place.id)
    if record is None:
        raise RecordError(f"{folder}: no finished cell (there is no record.json)")
    cell = open_kept(place.results, record, data_dir)
    label = place.label or _label(cell.cell)
    look = look_inside(cell, label, wanted)
    target = folder / FOLDER if out is None else out
    try:
        target.mkdir(parents=True, exist_ok=True)
        said = write_look(look, {"cell": place.id}, target)
    except OSError as error:
        raise unwritable(Path(error.filename or target), error) from None
    print(label)
    for sentence in said:
        print(f"  {sentence}")
    print(f"  {target}: figures, frames/", flush=True)
    return target


def _label(cell: Cell) -> str:
    """Of a cell that no study has named."""
    scales = cell.model.get("scales")
    told = "" if scales is None else f" scales={','.join(map(str, scales))}"
    return f"{cell.model['name']}{told} seed {cell.seed}"


def _of_grid(results: Path, grid: str) -> list[Place]:
    """The first finished cell of each configuration."""
    from analysis.collect import collect

    finished = collect(results, grid).finished.drop_duplicates("group")
    if finished.empty:
        raise RecordError(f"--grid {grid}: no cell is finished yet")
    return [Place(results, row.id, row.label) for row in finished.itertuples()]


def _look_into_all(places: Sequence[Place], wanted: Wanted, options: argparse.Namespace) -> int:
    """Each that can be looked into; why not of each other one. The exit code."""
    from analysis.canvas import slug
    from msvit.checkpoints import CheckpointError

    seen = 0
    for place in places:
        out = None if options.out is None else options.out / slug(place.label)
        try:
            look_into(place, wanted, options.data_dir, out)
            seen += 1
        except (CheckpointError, ConfigError, DataError, RecordError) as error:
            print_error(f"{place.label} is left out: {error}")
    if options.out is None and seen:
        print(f"\nfor the page: python analysis/report.py --grid {options.grid}")
    return 0 if seen else 2


def _numbers(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"whole numbers with commas are needed (got {text!r})")
    return tuple(dict.fromkeys(map(int, parts)))


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"a whole number from 1 on is needed (got {text!r})")
    return int(text)


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = Parser(description=__doc__.split("\n", 1)[0], allow_abbrev=False)
    add = parser.add_argument
    add("cell", nargs="?", type=Path, metavar="CELL", help="folder of a finished cell")
    add("--grid", metavar="NAME", help="of a study: a cell of each configuration")
    add("--images", type=_numbers, default=(), metavar="N,N", help="test images, from 0")
    add("--classes", type=_numbers, default=(), metavar="N,N", help="the first image of each")
    add("--layer", action="append", default=[], metavar="NAME", help="an attention; repeatable")
    add("--most", type=_count, metavar="N", help="test images for means (default: all)")
    add("--data-dir", type=Path, metavar="DIR", help="where data sets are")
    add("--results", type=Path, default=DEFAULT_RESULTS, help="of --grid (default: %(default)s)")
    add("--out", type=Path, metavar="DIR", help="write there, not in the cell's folder")
    options = parser.parse_args(arguments)
    if options.cell is not None and options.grid is not None:
        parser.error("CELL and --grid both choose cells: give one of them")
    if options.cell is None and options.grid is None:
        parser.error("which cell? its folder, or --grid NAME of a study")
    if options.images and options.classes:
        parser.error("--images and --classes both choose images: give one of them")
    from analysis.look.making import Wanted
    from msvit.checkpoints import CheckpointError

    wanted = Wanted(options.images, options.classes, tuple(options.layer), options.most)
    try:
        if options.grid is not None:
            return _look_into_all(_of_grid(options.results, options.grid), wanted, options)
        whole = options.cell.resolve()
        if whole.parent.name != "cells":
            raise RecordError(f"{options.cell}: no folder <results>/cells/<id> of a cell")
        look_into(Place(whole.parent.parent, whole.name), wanted, options.data_dir, options.out)
    except (CheckpointError, ConfigError, DataError, RecordError) as error:
        print_error(error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
