"""Search a space of configurations that are accurate and frugal: Optuna proposes, Ray Tune runs.

python studies/hpo.py --space scales --trials 50
python studies/hpo.py --space scales --best 3 --grid-out best.yaml

A trial is a cell, or one per seed, of the same store as the grids': what has a record is not
trained again. Killed and started again, a search goes on with its trials. Exit code: 0 the
budget is used up, 1 some trial has to be tried again, 2 something in the command, a file or the
machine is not as it must be, 130 interrupted.
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
import contextlib
import fcntl
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from msvit.cells import SCHEMA
from msvit.commands import DEFAULT_RESULTS, Parser, command
from msvit.data import check_data, notes_on_data, prepare_data
from msvit.options import ConfigError, DataError
from msvit.printing import logged_to, print_error
from msvit.records.energy_choice import add_energy, energy_choice
from msvit.records.schema import RecordError
from msvit.records.store import read_search, search_folder, start_file, write_search
from studies.cluster import Place, RayLost
from studies.command_line import add_place, notes_on_precision, positive
from studies.configurations import check_data_dir
from studies.images import check_images, trained_in
from studies.search.space import (
    PRUNERS,
    SAMPLERS,
    Space,
    list_spaces,
    load_space,
    possible_share,
)


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        if options.list:
            _list()
            return 0
        if options.space is None:
            message = "which space? --space NAME or FILE.yaml; --list shows the names"
            raise ConfigError("", "", message)
        if options.grid_out is not None and options.best is None:
            options.best = 1
        changes = {key: getattr(options, key) for key in ("trials", "minutes", "sampler", "pruner")}
        space = load_space(options.space, name=options.name, **changes)
        check_data_dir(options.data_dir)
        if options.dry_run:
            _dry_run(space)
            return 0
        if options.best is not None:
            return _best(space, options)
        return _run(space, options)
    except (ConfigError, DataError, RecordError, RayLost) as error:
        print_error(error)
        return 2


def _run(space: Space, options: argparse.Namespace) -> int:
    folder = search_folder(options.results, space.name)
    check_images(trained_in(options.results, space.data), options.data_dir)
    with _alone(folder / "lock", space.name):
        # Optuna takes half a second to load, Ray two: not for a wrong command.
        from msvit.records.optuna_storage import locate, mend_journal
        from studies.search.ledger import Ledger

        storage = _storage(options, space.name)
        place = locate(storage, folder)
        if "://" not in place and mend_journal(Path(place)):
            print(f"{place}: the last line was not finished and is left out (whole file: .bak)")
        ledger = Ledger.open(space, place, options.seed)
        write_search(options.results, manifest(space, storage))
        left = ledger.left()
        if left:
            check_data(space.data_sections, options.data_dir)
            if start := space.base["training"].get("start_from"):
                start_file(options.results, start)
        print(f"{space.name}: {space.question}")
        share, problem = possible_share(space)
        if share < 0.9:
            print(f"note: about {1 - share:.0%} of the space cannot be built, such as: {problem}")
        sections = space.data_sections if left else []
        more = notes_on_data(sections, options.data_dir)
        for note in (*more, *notes_on_precision(space.precisions, options)):
            print(f"note: {note}")
        print(f"{ledger.budget} trials, {ledger.budget - left} over; {_aims(space)}; in {folder}")
        hindered = 0
        if left:
            from studies.search.tuner import search

            with logged_to(sys.stderr):
                prepare_data(sections, options.data_dir)
            machines = Place(options.address, options.cpus_per_cell, options.gpus_per_cell)
            where = "on this machine" if machines.address is None else f"at {machines.address}"
            print(f"running up to {left} trials with Ray {where} ...", flush=True)
            try:
                given = (options.results, machines, options.data_dir, _say)
                hindered = search(space, ledger, *given)
            except KeyboardInterrupt:
                _report(space, options)
                raise
        _report(space, options)
    if hindered:
        print(f"{hindered} trials failed by their surroundings; the same command runs them again")
    return 1 if hindered else 0


def _storage(options: argparse.Namespace, name: str) -> str:
    """What was given, where an earlier run has the study, or a journal in the search's folder."""
    if not (search_folder(options.results, name) / "search.json").exists():
        return options.storage or "study.journal"
    known = read_search(options.results, name)["storage"]
    if options.storage not in (None, known):
        raise ConfigError(
            f"--storage {options.storage}",
            "",
            f"the search {name!r} has its study in {known}; --name begins another one",
        )
    return known


def _report(space: Space, options: argparse.Namespace) -> None:
    from analysis.search import collect_search
    from analysis.search_report import print_search, write_search_report

    energy = energy_choice(options)
    search = collect_search(options.results, space.name)
    write_search_report(search, energy)
    print()
    print_search(search, energy)


def _best(space: Space, options: argparse.Namespace) -> int:
    """Print the best trials; with --grid-out, write them as a grid file."""
    from analysis.search import collect_search
    from analysis.search_report import print_trials
    from studies.search.best_grid import best_trials, write_grid

    search = collect_search(options.results, space.name)
    if changed := space.changes(read_search(options.results, space.name)):
        message = f"{', '.join(changed)} changed since the search was run"
        raise ConfigError(space.file, "", message)
    numbers = best_trials(search, options.best)
    if options.grid_out is not None:
        write_grid(space, search, numbers, options.grid_out)
    print_trials(search, numbers, energy_choice(options))
    if (path := options.grid_out) is not None:
        run = ["python", "studies/run.py", "--grid", str(path)]
        if options.results != DEFAULT_RESULTS:
            run += ["--results", str(options.results)]
        print(f"written: {path}. To run it: {shlex.join(run)}")
    return 0


def manifest(space: Space, storage: str) -> dict[str, Any]:
    """What ``search.json`` says (:mod:`msvit.records.schema`)."""
    return {
        "schema": SCHEMA,
        "name": space.name,
        "question": space.question,
        "space_file": space.file,
        "storage": storage,
        "trials": space.trials,
        "sampler": space.sampler,
        "pruner": asdict(space.pruner),
        "data": ", ".join(space.data),
        **space.meaning(),
    }


def _aims(space: Space) -> str:
    aims = [f"{direction} {name}" for name, direction in space.objectives.items()]
    return ", ".join([*aims, *map(str, space.constraints)])


def _list() -> None:
    for name in list_spaces():
        space = load_space(name)
        print(f"{name:12} {space.trials:3} trials  {space.question}")


def _dry_run(space: Space) -> None:
    print(f"{space.name}: {space.question}")
    print(f"{space.trials} trials of {len(space.seeds)} seeds; {_aims(space)}")
    print(f"sampler {space.sampler}; pruner {space.pruner.name}")
    for key, described in space.meaning()["parameters"].items():
        print(f"  {key:24} {described}")
    for start in space.start_with:
        print(f"start with: {', '.join(f'{key}={value}' for key, value in start.items())}")


@contextlib.contextmanager
def _alone(path: Path, name: str) -> Iterator[None]:
    """Hold the search's lock: two drivers would each propose the whole budget."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise ConfigError(str(path), "", f"cannot be written ({error.strerror})") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = f"another process is running the search {name!r}; --name begins another one"
            raise ConfigError(str(path), "", message) from None
        except OSError:
            pass  # a file system without locks
        yield


def _place(text: str) -> str:
    if "://" not in text:
        return str(Path(text).resolve())
    if ":" in text.partition("://")[2].partition("@")[0] and "@" in text:
        raise argparse.ArgumentTypeError(
            "a password would be written into search.json; leave it to the environment "
            "(PGPASSWORD, ~/.pgpass, ~/.my.cnf)"
        )
    return text


def _say(text: str) -> None:
    print(text, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        description="Search a space of configurations: Optuna proposes, Ray Tune runs.",
        epilog="Exit code: 0 budget used up, 1 some trial is to be tried again, 2 wrong input, "
        "130 interrupted.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--space", metavar="NAME|FILE.yaml", help="the space to search")
    add("--list", action="store_true", help="show the spaces that come with the harness, and stop")
    add("--dry-run", action="store_true", help="show the space as it was understood, and stop")
    add(
        "--trials",
        type=int,
        metavar="N",
        help="budget of the whole study, resumed or not",
    )
    add("--minutes", type=float, metavar="M", help="begin no trial later than this in one run")
    add("--sampler", metavar="NAME", help=", ".join(SAMPLERS))
    add("--pruner", metavar="NAME", help=", ".join(PRUNERS))
    add("--seed", type=int, default=0, metavar="N", help="of the sampler (default: 0)")
    add("--name", metavar="NAME", help="of the search (default: the space's)")
    add(
        "--storage",
        type=_place,
        metavar="FILE|URL",
        help="of the Optuna study (default: a journal file beside the results)",
    )
    add("--best", type=positive(int), metavar="N", help="show the N best trials, and stop")
    add("--grid-out", type=Path, metavar="FILE.yaml", help="with --best: write them as a grid")
    add_place(parser, "trial")
    add_energy(parser, constants=False)
    return parser


if __name__ == "__main__":
    sys.exit(main())
