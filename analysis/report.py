"""Tables and figures of a study from its records, without training anything.

python analysis/report.py --grid scales [--results DIR] [--energy NAME|all]

Works at any moment of a study: what is not finished is shown as missing.
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

from collections.abc import Sequence
from pathlib import Path

from analysis.collect import StudyResults, collect
from analysis.formats import console, terminal, write_table
from analysis.tables import compare
from msvit.commands import DEFAULT_RESULTS, Parser, command
from msvit.options import ConfigError
from msvit.records.energy_choice import USUAL, EnergyChoice, add_energy, energy_choice
from msvit.records.schema import RecordError


def write_report(study: StudyResults, energy: EnergyChoice = USUAL) -> Path:
    """Write ``table.md``, ``table.csv``, ``table.tex`` and ``figures/`` of a study.

    Returns:
        The study's folder, ``<results>/studies/<grid>``.

    Raises:
        RecordError: if its folder cannot be written.
    """
    from analysis.figures import save_figures  # matplotlib takes a second to load

    try:
        write_table(compare(study, energy), study.folder, "table")
        save_figures(study, study.folder / "figures")
    except OSError as error:
        where = error.filename or study.folder
        raise RecordError(f"{where}: cannot be written ({error.strerror})") from None
    return study.folder


def print_summary(study: StudyResults, energy: EnergyChoice = USUAL) -> None:
    """Print the table of a study, its failed and missing cells, and where its files are."""
    table = compare(study, energy)
    out = console()
    out.print(terminal(table))
    for note in table.notes:
        out.print(note)
    for line in (*study.warnings, *_unfinished_lines(study)):
        out.print(line, soft_wrap=True)
    files = [path.name for path in sorted(study.folder.glob("table.*"))]
    files += ["figures/"] if (study.folder / "figures").is_dir() else []
    out.print(f"\n{study.folder}: {', '.join(files) or 'nothing written yet'}", soft_wrap=True)


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
    options = parser.parse_args(arguments)
    # A study is named by its grid file.
    grid = Path(options.grid).stem if options.grid.endswith((".yaml", ".yml")) else options.grid
    try:
        energy = energy_choice(options)
        study = collect(options.results, grid)
        write_report(study, energy)
        print_summary(study, energy)
    except (ConfigError, RecordError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
