"""Tables, figures and a page of studies from their records, without training anything.

python analysis/report.py --grid scales [--baseline qkformer] [--energy NAME|all] [--out DIR]
python analysis/report.py --grid scales --grid deltas --space scales --format html

Works at any moment of a study: what is not finished is shown as missing. With a baseline, named
before looking, every other configuration is compared with it. Several studies and searches have
their own tables and figures, and one page together.
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

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from analysis.collect import StudyResults, collect
from analysis.drawn import Drawn
from analysis.formats import FORMATS, console, terminal, write_table
from analysis.page import PAGE
from analysis.study_tables import TABLES, check_baseline
from analysis.view import View
from msvit.commands import DEFAULT_RESULTS, Parser, command
from msvit.options import ConfigError, unknown
from msvit.printing import print_error
from msvit.records.energy_choice import add_energy, energy_choice
from msvit.records.schema import RecordError
from msvit.records.store import unwritable

PRINTED = ("table", "differences", "effects", "twins")
"""The tables that a terminal shows; the others are long."""


def _frames(drawn: Drawn, folder: Path) -> None:
    from analysis.frames import write_frames

    write_frames(drawn.study, folder / "frames")


def _figures(drawn: Drawn, folder: Path) -> None:
    from analysis.canvas import write_figures

    write_figures(drawn.figures, folder / "figures")


def _page(drawn: Drawn, folder: Path) -> None:
    from analysis.page.render import write_page
    from analysis.page.study import study_part

    write_page([study_part(drawn)], folder)


WRITERS: dict[str, tuple[str, Callable[[Drawn, Path], None]]] = {
    "parquet": ("frames", _frames),
    "figures": ("figures", _figures),
    "html": (PAGE, _page),
}
"""What a report holds beside its tables: what it is called in the folder, and who writes it."""

ALL = (*FORMATS, *WRITERS)


def write_report(drawn: Drawn, formats: Collection[str] = ALL, out: Path | None = None) -> Path:
    """Write the tables, ``frames/``, ``figures/`` and page of a study, or those of ``formats``.

    Returns:
        The folder: ``out``, or the study's own, ``<results>/studies/<grid>``.

    Raises:
        RecordError: if the folder cannot be written, or the baseline is no configuration.
    """
    folder = drawn.study.folder if out is None else out
    tables = drawn.tables
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for stem, table in tables.items():
            write_table(table, folder, stem, [name for name in formats if name in FORMATS])
        for name in formats:
            if name in WRITERS:
                _, write = WRITERS[name]
                write(drawn, folder)
        if out is None:
            _remove_old(folder, TABLES.keys() - tables)
    except OSError as error:
        raise unwritable(Path(error.filename or folder), error) from None
    return folder


def _remove_old(folder: Path, stems: Iterable[str]) -> None:
    """Tables that earlier reports had and this one has not, such as of another baseline."""
    for stem in stems:
        for end in (".md", ".csv", ".tex", "_column.tex"):
            (folder / f"{stem}{end}").unlink(missing_ok=True)


def print_summary(drawn: Drawn, formats: Collection[str] = ALL, out: Path | None = None) -> None:
    """Print the main tables of a study, its failed and missing cells, and its files of ``formats``.

    Files of other formats may be there, of an earlier question.
    """
    shown, study, tables = console(), drawn.study, drawn.tables
    for name in PRINTED:
        if name in tables:
            shown.print(terminal(tables[name]))
            for note in tables[name].notes:
                shown.print(note)
    for line in (*study.warnings, *_unfinished_lines(study)):
        shown.print(line, soft_wrap=True)
    folder = study.folder if out is None else out
    kinds = [name for name in formats if name in FORMATS]
    found = [folder / f"{stem}.{kind}" for stem in tables for kind in kinds]
    found += [folder / made for name, (made, _) in WRITERS.items() if name in formats]
    files = [f"{path.name}{'/' * path.is_dir()}" for path in found if path.exists()]
    shown.print(f"\n{folder}: {', '.join(files) or 'nothing written yet'}", soft_wrap=True)
    if (page := folder / PAGE) in found and page.is_file():  # a path of its own: terminals open it
        shown.print(f"page: {page}", soft_wrap=True)


def _unfinished_lines(study: StudyResults) -> list[str]:
    """One line per failed cell with its log, one per configuration with missing cells."""
    failed = study.cells[study.cells["status"] == "failed"]
    missing = study.cells[study.cells["status"] == "missing"]
    lines = [
        f"failed: {cell.label}: {cell.problem}" + (f" (log: {cell.log})" if cell.log else "")
        for cell in failed.itertuples()
    ]
    for group, seeds in missing.groupby("group", sort=False)["seed"]:
        lines.append(f"missing: {group}, seeds: {', '.join(map(str, seeds))}")
    return lines


def _study_name(grid: str) -> str:
    """A study is named by its grid file."""
    return Path(grid).stem if grid.endswith((".yaml", ".yml")) else grid


def _several(
    studies: Sequence[StudyResults],
    spaces: Sequence[str],
    results: Path,
    view: View,
    formats: Collection[str],
    out: Path | None,
) -> None:
    """Files of each, and of more than one a page of all, in ``out`` or in the results folder.

    A baseline is that of the studies which have it; one of them has to.
    """
    from analysis.page.several import write_pages
    from analysis.search import collect_search
    from analysis.search_report import print_search, write_search_report

    views = [_view_of(study, view) for study in studies]
    if view.baseline is not None and studies and all(own.baseline is None for own in views):
        check_baseline(studies[0], view.baseline)
    searches = [collect_search(results, name) for name in spaces]
    drawn = [Drawn(study, own) for study, own in zip(studies, views, strict=True)]
    together = "html" in formats and len(drawn) + len(searches) > 1
    rest = [name for name in formats if name != "html" or not together]
    for each in drawn:
        folder = None if out is None else out / each.study.name
        if rest:
            write_report(each, rest, folder)
        print_summary(each, rest, folder)
    for search in searches:
        if rest:
            write_search_report(search, view.energy)
        print_search(search, view.energy)
    if together:
        folder = results if out is None else out
        try:
            page = write_pages(drawn, searches, view.energy, folder)
        except OSError as error:
            raise unwritable(folder, error) from None
        print(f"\npage of all: {page}")


def _view_of(study: StudyResults, view: View) -> View:
    return view if view.baseline in study.groups else replace(view, baseline=None)


def _formats(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in ALL:
            raise RecordError(unknown(name, ALL, f"--format {name}: no such format"))
    return names


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = Parser(description=__doc__.split("\n", 1)[0], allow_abbrev=False)
    several: dict[str, Any] = {"action": "append", "default": [], "metavar": "NAME"}
    parser.add_argument("--grid", **several, help="name of a study; repeatable")
    parser.add_argument("--space", **several, help="name of a search; repeatable")
    parser.add_argument(
        "--results",
        type=Path,
        default=DEFAULT_RESULTS,
        help="results folder (default: %(default)s)",
    )
    add_energy(parser)
    parser.add_argument(
        "--baseline", metavar="LABEL", help="configuration that all others are compared with"
    )
    parser.add_argument(
        "--format",
        default=",".join(ALL),
        metavar="NAME,NAME",
        help="what to write (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="write there, not in the study")
    options = parser.parse_args(arguments)
    if not options.grid and not options.space:
        parser.error("which study? --grid NAME, or --space NAME of a search")
    if options.space and options.energy_constants:
        parser.error("--energy-constants: a search stands on the constants that are shipped")
    try:
        view = View(options.baseline, energy_choice(options))
        formats = _formats(options.format)
        grids = list(dict.fromkeys(map(_study_name, options.grid)))
        spaces = list(dict.fromkeys(options.space))
        studies = [collect(options.results, name) for name in grids]
        if len(studies) == 1 and not spaces:
            drawn = Drawn(studies[0], view)
            write_report(drawn, formats, options.out)
            print_summary(drawn, formats, options.out)
        else:
            _several(studies, spaces, options.results, view, formats, options.out)
    except (ConfigError, RecordError) as error:
        print_error(error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
