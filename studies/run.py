"""Run a study: a grid of cells on Ray, then its tables and figures.

python studies/run.py --grid scales
python studies/run.py --grid my.yaml --set training.epochs=3 --seeds 5
python studies/run.py --status --watch

A cell that has a record is not run again. Exit code: 0 all cells done, 1 some cell failed,
2 something in the command, a file or the machine is not as it must be, 130 interrupted.
"""

from __future__ import annotations

import os
import signal
import sys

if not __package__:
    # As a script: this folder's modules are found as studies.*, wherever it is started.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    # Ctrl-C while modules load: there is nothing to save, and nothing to say.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import argparse
import shlex
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from analysis.observations import Observations, observe
from analysis.view import View
from msvit.cells import SECTIONS
from msvit.commands import Parser, command
from msvit.data import check_data, notes_on_data, prepare_data, sources_of_data
from msvit.options import ConfigError, DataError, unknown
from msvit.printing import logged_to, print_error
from msvit.recipes import list_recipes, read_recipe
from msvit.records.energy_choice import add_energy, energy_choice
from msvit.records.faults import is_of_surroundings
from msvit.records.schema import RecordError
from msvit.records.store import (
    Records,
    cell_folder,
    list_studies,
    read_failure,
    read_study,
    start_file,
    study_folder,
    write_study,
)
from studies.cluster import Place, RayLost
from studies.command_line import add_place, notes_on_precision, positive
from studies.configurations import check_data_dir
from studies.grids import list_grids, load_study
from studies.images import Trained, check_images
from studies.remeasure import remeasure
from studies.resources import notes_on_workers
from studies.study import Study, show_value


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        if options.list:
            _list()
            return 0
        if options.status or options.watch:
            return _status(options)
        if options.grid is None:
            message = "which grid? --grid NAME or --grid FILE.yaml; --list shows the names"
            raise ConfigError("", "", message)
        study = load_study(options.grid, options.set, options.seeds)
        check_data_dir(options.data_dir)
        if options.dry_run:
            _dry_run(study, options)
            return 0
        if options.remeasure:
            return remeasure(study, options.results, options.data_dir)
        return _run(study, options)
    except (ConfigError, DataError, RecordError, RayLost) as error:
        print_error(error)
        return 2


def _run(study: Study, options: argparse.Namespace) -> int:
    results = options.results
    view = _view(study, options)
    records = Records(results, observe)
    states = states_of(study, records)
    wanted = {"to do", "started", "hindered"} | ({"failed"} if options.retry_failed else set())
    entries = [c for c in study.cells if states[c.cell.id] in wanted]
    entries.sort(key=lambda entry: entry.cell.seed)  # soon one seed of every configuration
    _check_same(study, results)
    check_images(_trained_on(study, records), options.data_dir)
    data = [entry.cell.data for entry in entries]
    check_data(data, options.data_dir)
    for start in sorted({str(e.cell.training.get("start_from", "")) for e in entries} - {""}):
        start_file(results, start)
    write_study(results, study.manifest())
    print(f"{study.name}: {study.question}")
    print(f"{_size(study)}, {_counts(states)}; in {results}", flush=True)
    asked = {str(entry.cell.training["precision"]) for entry in entries}
    more = [*notes_on_data(data, options.data_dir), *notes_on_precision(asked, options)]
    more += notes_on_workers((entry.cell, entry.resources) for entry in entries)
    for note in (*study.notes, *more):
        print(f"note: {note}", flush=True)
    given: dict[str, Any] = {"data_dir": options.data_dir, "on_record": records.add}
    if options.tensorboard:
        from studies.tensorboard import Curves

        curves = Curves(study, records)
        curves.show_finished()
        given |= {"on_epoch": curves.epoch, "on_record": curves.record}
        print(f"curves: tensorboard --logdir {shlex.quote(str(curves.folder))}", flush=True)
    if entries:
        with logged_to(sys.stderr):
            prepare_data(data, options.data_dir)
        # Neither Ray nor the worker's modules are loaded where there is nothing to train.
        from studies.executor import run_cells
        from studies.progress import display_for

        place = Place(options.address, options.cpus_per_cell, options.gpus_per_cell)
        where = "on this machine" if place.address is None else f"at {place.address}"
        print(f"running {len(entries)} cells with Ray {where} ...", flush=True)
        display = display_for(entries, len(study.cells) - len(entries), len(study.cells))
        run_cells(entries, results, place, display, **given)
    return _report(study, records, view)


def _view(study: Study, options: argparse.Namespace) -> View:
    groups = {entry.group for entry in study.cells}
    if (baseline := options.baseline) is not None and baseline not in groups:
        message = unknown(baseline, groups, "no such configuration")
        raise ConfigError(f"--baseline {baseline}", "", message)
    return View(baseline, energy_choice(options))


def _trained_on(study: Study, records: Records[Observations]) -> Iterator[Trained]:
    """The finished cells, and which images they have seen."""
    for entry in study.cells:
        observed = records.get(entry.cell.id)
        if observed is not None:
            yield Trained(
                cell_folder(records.results, entry.cell.id), entry.cell.data, observed.images
            )


def _check_same(study: Study, results: Path) -> None:
    """A grid of the same name from another folder must not take a study's place."""
    try:
        known = read_study(results, study.name)
    except RecordError:  # none yet, or none that anybody could read
        return
    same_cells = {c["id"] for c in known["cells"]} == {c.cell.id for c in study.cells}
    # Files of earlier versions were written down as they were given.
    moved = Path(known["grid_file"]).resolve() != Path(study.grid_file).resolve()
    if moved and not same_cells:
        raise ConfigError(
            study.grid_file,
            "",
            f"{study_folder(results, study.name)} holds another study of this name, of "
            f"{known['grid_file']}; give the file another name, or --results another folder",
        )


def _report(study: Study, records: Records[Observations], view: View) -> int:
    """Tables, figures and the summary; the exit code tells whether all cells are done."""
    from analysis.collect import collect
    from analysis.drawn import Drawn
    from analysis.report import ALL, print_summary, write_report

    states = states_of(study, records)
    drawn = Drawn(collect(records.results, study.name, records), view)
    # Before there is a number, only the page has something to tell: why there is none.
    write_report(drawn, ALL if "done" in states.values() else ("html",))
    print()
    print_summary(drawn)
    again = {
        "failed": "failed; --retry-failed runs them again",
        "hindered": "failed by their surroundings; the same command runs them again",
    }
    for state, text in again.items():
        if count := list(states.values()).count(state):
            print(f"{count} of {len(study.cells)} cells {text}")
    return 0 if set(states.values()) == {"done"} else 1


def _status(options: argparse.Namespace) -> int:
    """What other processes are doing: of one study, or of all in the results folder."""
    from studies.status import show, watch

    results = options.results
    if options.grid is not None:
        study = load_study(options.grid, options.set, options.seeds)
        cells = {study.name: [(c.cell.id, c.label) for c in study.cells]}
    elif options.set or options.seeds:
        raise ConfigError("", "", "--set and --seeds are those of a study: --grid NAME")
    else:
        names = list_studies(results)
        if not names:
            raise RecordError(f"{results}: no study in this folder yet")
        manifests = [read_study(results, name) for name in names]
        cells = {m["name"]: [(c["id"], c["label"]) for c in m["cells"]] for m in manifests}
    (watch if options.watch else show)(cells, results)
    return 0


def _list() -> None:
    for name in list_grids():
        study = load_study(name)
        print(f"{name:12} {len(study.cells):3} cells  {study.question}")
    print("\nrecipes, --set training.recipe=NAME, and where they are from")
    for name in list_recipes():
        print(f"{name:28}  {read_recipe(name).source}")


def _dry_run(study: Study, options: argparse.Namespace) -> None:
    """Print every resolved cell: what all share once, then what each configuration adds."""
    results = options.results
    records = Records(results, observe)
    states = states_of(study, records)
    check_images(_trained_on(study, records), options.data_dir)
    configurations = {c.group: c.cell.as_dict() for c in study.cells}
    resources = {c.group: c.resources for c in study.cells}
    print(f"{study.name}: {study.question}")
    print(f"{_size(study)}, {_counts(states)}; in {results}")
    for source in sources_of_data((entry.cell.data for entry in study.cells), options.data_dir):
        print(f"data: {source}")
    for note in study.notes:
        print(f"note: {note}")
    shared = _shared(list(configurations.values()))
    print("\nall configurations")
    _print_sections(shared)
    for group, cell in configurations.items():
        print(f"\n{group}")
        own = {
            section: {k: v for k, v in cell[section].items() if k not in shared[section]}
            for section in SECTIONS
        }
        _print_sections(own)
        if on := resources[group].model_dump(exclude_none=True):
            print("  resources " + " ".join(f"{key}={show_value(v)}" for key, v in on.items()))
        for entry in study.cells:
            if entry.group == group:
                print(f"  {entry.cell.id}  seed {entry.cell.seed}  {states[entry.cell.id]}")


def _shared(cells: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The options, by section, on which all cells agree."""
    first, *others = cells
    return {
        section: {
            key: value
            for key, value in first[section].items()
            if all(key in cell[section] and cell[section][key] == value for cell in others)
        }
        for section in SECTIONS
    }


def _print_sections(sections: dict[str, dict[str, Any]]) -> None:
    for section, options in sections.items():
        if options:
            text = " ".join(f"{key}={show_value(value)}" for key, value in options.items())
            first, others = f"  {section:9}", " " * 11
            print(
                textwrap.fill(
                    text,
                    100,
                    initial_indent=first,
                    subsequent_indent=others,
                    break_long_words=False,
                )
            )


def states_of(study: Study, records: Records[Observations]) -> dict[str, str]:
    """Cell id → done, failed, hindered (data, disk, memory, device), started or to do."""
    return {entry.cell.id: _state(entry.cell.id, records) for entry in study.cells}


def _state(cell_id: str, records: Records[Observations]) -> str:
    if records.get(cell_id) is not None:
        return "done"
    results = records.results
    if (failure := read_failure(results, cell_id)) is not None:
        return "hindered" if is_of_surroundings(failure) else "failed"
    return "started" if (cell_folder(results, cell_id) / "checkpoint.pt").exists() else "to do"


def _size(study: Study) -> str:
    configurations = len({entry.group for entry in study.cells})
    seeds = len({entry.cell.seed for entry in study.cells})
    return f"{len(study.cells)} cells ({configurations} configurations × {seeds} seeds)"


def _counts(states: dict[str, str]) -> str:
    values = list(states.values())
    failed = values.count("failed") + values.count("hindered")
    return f"{values.count('done')} done" + (f", {failed} failed" if failed else "")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        description="Run a study: a grid of cells on Ray, then its tables and figures.",
        epilog="Exit code: 0 all cells done, 1 some cell failed, 2 wrong input, 130 interrupted.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--grid", metavar="NAME|FILE.yaml", help="the study to run")
    add("--list", action="store_true", help="show the grids and recipes that there are, and stop")
    add("--dry-run", action="store_true", help="show the resolved cells and their ids, and stop")
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override an option everywhere, such as training.epochs=3; repeatable",
    )
    add("--seeds", type=positive(int), metavar="N", help="run N seeds, from the grid's smallest on")
    add(
        "--status",
        action="store_true",
        help="show how far the study is, or all studies without --grid, and stop; for another "
        "terminal than the one that runs it",
    )
    add("--watch", action="store_true", help="--status again and again, until nothing is left")
    add(
        "--tensorboard",
        action="store_true",
        help="also write results/tensorboard/<study>, one run for each cell, while they train",
    )
    add("--baseline", metavar="LABEL", help="configuration that all others are compared with")
    add("--retry-failed", action="store_true", help="run cells again that failed earlier")
    add(
        "--remeasure",
        action="store_true",
        help="count operations again, from the kept weights, for records that lack what this "
        "version counts, and stop; nothing is trained",
    )
    add_place(parser, "cell")
    add_energy(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
