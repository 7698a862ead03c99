"""Tables and figures of a study from its records, without training anything.

python analysis/report.py --grid scales [--baseline qkformer] [--energy NAME|all] [--out DIR]

Works at any moment of a study: what is not finished is shown as missing. With a baseline, named
before looking, every other configuration is compared with it.
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
from pathlib import Path

from analysis.collect import StudyResults, collect
from analysis.formats import FORMATS, console, terminal, write_table
from analysis.study_tables import TABLES, study_tables
from analysis.view import USUAL, View
from msvit.commands import DEFAULT_RESULTS, Parser, command
from msvit.options import ConfigError, unknown
from msvit.records.energy_choice import add_energy, energy_choice
from msvit.records.schema import RecordError

PRINTED = ("table", "differences", "effects", "twins")
"""The tables that a terminal shows; the others are long."""


def _frames(study: StudyResults, folder: Path, view: View) -> None:
    from analysis.frames import write_frames

    write_frames(study, folder / "frames")


def _figures(study: StudyResults, folder: Path, view: View) -> None:
    from analysis.figures import save_figures  # matplotlib takes a second to load

    save_figures(study, folder / "figures", view.baseline)


WRITERS: dict[str, Callable[[StudyResults, Path, View], None]] = {
    "parquet": _frames,
    "figures": _figures,
}
"""What a report holds beside its tables: written into a folder."""

ALL = (*FORMATS, *WRITERS)


def write_report(
    study: StudyResults,
    view: View = USUAL,
    formats: Collection[str] = ALL,
    out: Path | None = None,
) -> Path:
    """Write the tables, ``frames/`` and ``figures/`` of a study, or those of ``formats``.

    Returns:
        The folder: ``out``, or the study's own, ``<results>/studies/<grid>``.

    Raises:
        RecordError: if the folder cannot be written, or the baseline is no configuration.
    """
    folder = study.folder if out is None else out
    tables = study_tables(study, view)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for stem, table in tables.items():
            write_table(table, folder, stem, [name for name in formats if name in FORMATS])
        for name in formats:
            if name in WRITERS:
                WRITERS[name](study, folder, view)
        if out is None:
            _remove_old(folder, TABLES.keys() - tables)
    except OSError as error:
        where = error.filename or folder
        raise RecordError(f"{where}: cannot be written ({error.strerror})") from None
    return folder


def _remove_old(folder: Path, stems: Iterable[str]) -> None:
    """Tables that earlier reports had and this one has not, such as of another baseline."""
    for stem in stems:
        for end in (".md", ".csv", ".tex", "_column.tex"):
            (folder / f"{stem}{end}").unlink(missing_ok=True)


def print_summary(study: StudyResults, view: View = USUAL, out: Path | None = None) -> None:
    """Print the main tables of a study, its failed and missing cells, and where its files are."""
    shown = console()
    drawn = study_tables(study, view)
    for name in PRINTED:
        if name in drawn:
            shown.print(terminal(drawn[name]))
            for note in drawn[name].notes:
                shown.print(note)
    for line in (*study.warnings, *_unfinished_lines(study)):
        shown.print(line, soft_wrap=True)
    folder = study.folder if out is None else out
    files = [path.name for stem in drawn for path in sorted(folder.glob(f"{stem}.*"))]
    files += [f"{name}/" for name in ("frames", "figures") if (folder / name).is_dir()]
    shown.print(f"\n{folder}: {', '.join(files) or 'nothing written yet'}", soft_wrap=True)


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
    parser.add_argument("--grid", required=True, help="name of the study")
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
    # A study is named by its grid file.
    grid = Path(options.grid).stem if options.grid.endswith((".yaml", ".yml")) else options.grid
    try:
        view = View(options.baseline, energy_choice(options))
        formats = _formats(options.format)
        study = collect(options.results, grid)
        write_report(study, view, formats, options.out)
        print_summary(study, view, options.out)
    except (ConfigError, RecordError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
