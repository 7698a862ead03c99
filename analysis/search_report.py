"""Table and figures of a search from its Optuna study, without training anything.

python analysis/search_report.py --space scales [--results DIR] [--energy NAME|all]
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
from typing import Any

import pandas as pd

from analysis.formats import console, terminal, write_table
from analysis.page import PAGE
from analysis.search import Search, collect_search
from analysis.tables import NOTHING, Entry, Table, entries
from msvit.commands import DEFAULT_RESULTS, Parser, command
from msvit.options import ConfigError
from msvit.printing import print_error
from msvit.records.energy_choice import USUAL, EnergyChoice, add_energy, energy_choice
from msvit.records.measures import all_measures
from msvit.records.schema import RecordError
from msvit.records.store import unwritable


def write_search_report(search: Search, energy: EnergyChoice = USUAL) -> Path:
    """Write ``trials.md``, ``.csv`` and ``.tex``, ``front.*``, ``figures/`` and ``report.html``.

    Returns:
        The search's folder, ``<results>/searches/<name>``.

    Raises:
        RecordError: if its folder cannot be written.
    """
    # matplotlib takes a second to load
    from analysis.canvas import write_figures
    from analysis.page.render import write_page
    from analysis.page.search import search_part
    from analysis.search_figures import draw_search_figures

    front = trial_table(search, list(search.front["number"]), energy=energy)
    try:
        for stem, table in (("trials", trial_table(search, energy=energy)), ("front", front)):
            write_table(table, search.folder, stem)
        figures = draw_search_figures(search)
        write_figures(figures, search.folder / "figures")
        write_page([search_part(search, figures, energy)], search.folder)
    except OSError as error:
        raise unwritable(Path(error.filename or search.folder), error) from None
    return search.folder


def print_search(search: Search, energy: EnergyChoice = USUAL) -> None:
    """Print the front of a search, its failed trials, and where its files are."""
    front = list(search.front["number"])
    print_trials(search, front, energy)
    for trial in search.trials[search.trials["state"] == "failed"].itertuples():
        print(f"failed: trial {trial.number}: {trial.problem.splitlines()[0]}")
    files = [path.name for path in sorted(search.folder.glob("*.md"))]
    print(f"\n{search.folder}: {', '.join([*files, 'figures/'])}")
    if (page := search.folder / PAGE).is_file():
        print(f"page: {page}")


def print_trials(search: Search, numbers: Sequence[int], energy: EnergyChoice = USUAL) -> None:
    """Print a table of these trials, and what was chosen in each."""
    table = trial_table(search, numbers, short=True, energy=energy)
    out = console()
    out.print(terminal(table))
    for number in numbers:
        row = search.trials.iloc[number]
        chosen = ((_option(key), _value(row[key])) for key in search.parameters)
        text = " ".join(f"{name}={value}" for name, value in chosen if value != NOTHING)
        out.print(f"trial {number}: {text}")
    out.print()
    for note in table.notes:
        out.print(note)


def trial_table(
    search: Search,
    numbers: Sequence[int] | None = None,
    short: bool = False,
    energy: EnergyChoice = USUAL,
) -> Table:
    """One row per trial: all of them, the front first, or those of ``numbers`` in their order.

    ``short`` leaves out what was chosen, which a terminal has no room for.
    """
    trials = search.trials.set_index("number", drop=False).rename_axis(None)
    if numbers is None:
        rising = search.objectives[search.primary] == "minimize"
        ordered = trials.assign(_value=trials[search.primary] * (1 if rising else -1))
        shown = ordered.sort_values(["rank", "_value", "number"]).drop(columns="_value")
    else:
        shown = trials.loc[list(numbers)]
    always = ("accuracy", "test_accuracy", *energy.measures, "firing_rate", "parameters")
    columns = {
        "trial": [Entry(str(row.number), rank=int(row.rank == 0)) for row in shown.itertuples()],
        "state": [Entry(_state(row)) for row in shown.itertuples()],
        **({} if short else _parameters(shown, search)),
        **dict(_column(trials, shown, name) for name in dict.fromkeys((*always, *search.aims))),
    }
    return Table(
        name=search.name,
        caption=search.question,
        numbers=shown.reset_index(drop=True),
        columns=columns,
        notes=tuple(_notes(search, energy)),
    )


def _column(trials: pd.DataFrame, shown: pd.DataFrame, name: str) -> tuple[str, list[Entry]]:
    """Heading and fields of one measure, in a unit that fits all trials."""
    measure = all_measures()[name]
    unit = measure.unit(trials[name].astype(float))
    values = shown[name].astype(float) * measure.units[unit]
    return measure.column(unit), entries(values, measure.decimals)


def _parameters(shown: pd.DataFrame, search: Search) -> dict[str, list[Entry]]:
    return {_option(key): [Entry(_value(v)) for v in shown[key]] for key in search.parameters}


def _notes(search: Search, energy: EnergyChoice) -> list[str]:
    counts = search.trials["state"].value_counts()
    shown = ", ".join(f"{count} {state}" for state, count in counts.items()) or "no trial yet"
    aims = [f"{aim} {name}" for name, aim in search.objectives.items()]
    aims += [text.replace("<=", "≤").replace(">=", "≥") for text in search.constraints]
    notes = [
        f"{search.budget} trials planned: {shown}. Aims: {', '.join(aims)}.",
        "Chosen by validation accuracy, never by test accuracy; energy and firing rate are counted "
        "on the test images. The best of many runs is partly luck: --best N --grid-out FILE makes "
        "a grid of the best, to be run with more seeds.",
    ]
    if len(search.complete):
        notes.append(f"Bold: on the Pareto front. {energy.note()}")
    return notes


def _state(row: Any) -> str:
    if row.state == "stopped":
        return f"stopped at {row.epochs}"
    if not pd.isna(row.same_as):
        return f"same as {row.same_as:.0f}"
    if row.state == "complete" and not row.feasible:
        return "complete, not allowed"
    return f"{row.state}, given" if row.given else row.state


def _option(key: str) -> str:
    return key.partition(".")[2].replace("_", " ")


def _value(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if value is None or (isinstance(value, float) and pd.isna(value)):
        return NOTHING
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = Parser(description=__doc__.split("\n", 1)[0], allow_abbrev=False)
    parser.add_argument("--space", required=True, help="name of the search")
    parser.add_argument(
        "--results",
        type=Path,
        default=DEFAULT_RESULTS,
        help="results folder (default: %(default)s)",
    )
    add_energy(parser, constants=False)
    options = parser.parse_args(arguments)
    try:
        energy = energy_choice(options)
        search = collect_search(options.results, options.space)
        write_search_report(search, energy)
        print_search(search, energy)
    except (ConfigError, RecordError) as error:
        print_error(error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
