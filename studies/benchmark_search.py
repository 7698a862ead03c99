"""Is the sampler better than chance? The same space, the same budget, several repetitions.

python studies/benchmark_search.py --space scales --trials 20 --repeats 5

Runs the search with the space's sampler and with random search, from different seeds, and
compares the share of objective space that each one's trials dominate after every trial. All runs
share one store: a cell that two of them propose is trained once, so only trials are compared, not
hours.
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
import subprocess
from collections.abc import Sequence
from pathlib import Path

from msvit.commands import DEFAULT_RESULTS, Parser, command
from msvit.options import ConfigError
from msvit.printing import print_error
from msvit.records.schema import RecordError
from studies.command_line import positive
from studies.search.space import Space, load_space

CHANCE = "random"


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        space = load_space(options.space, trials=options.trials, sampler=options.sampler)
        if len(space.objectives) != 2:
            raise ConfigError(options.space, "", "two objectives are needed for this comparison")
        if options.repeats < 2:
            raise ConfigError("--repeats", "", "two at least; one has no spread")
        if space.sampler == CHANCE:
            raise ConfigError(options.space, "", "random search cannot be compared with itself")
        _run(space, options)
        return 0
    except (ConfigError, RecordError, subprocess.CalledProcessError) as error:
        print_error(error)
        return 2


def _run(space: Space, options: argparse.Namespace) -> None:
    for repeat in range(options.repeats):
        # In turn: whatever changes on the machine meets both.
        for sampler in (space.sampler, CHANCE):
            print(f"--- {sampler}, repetition {repeat + 1} of {options.repeats}", flush=True)
            search = [sys.executable, str(Path(__file__).with_name("hpo.py"))]
            search += ["--space", options.space, "--name", _name(space, sampler, repeat)]
            search += ["--sampler", sampler, "--trials", str(space.trials)]
            search += ["--seed", str(repeat), "--results", str(options.results)]
            if options.data_dir is not None:
                search += ["--data-dir", str(options.data_dir)]
            subprocess.run(search, check=True)
    from studies.search.comparison import report

    names = {
        sampler: [_name(space, sampler, repeat) for repeat in range(options.repeats)]
        for sampler in (space.sampler, CHANCE)
    }
    report(options.results, space, names, options.out or options.results / "searches" / "benchmark")


def _name(space: Space, sampler: str, repeat: int) -> str:
    return f"{space.name}-{sampler}-{repeat}"


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--space", default="scales", metavar="NAME|FILE.yaml", help="default: %(default)s")
    add("--sampler", metavar="NAME", help="compared with random search (default: the space's)")
    add("--trials", type=positive(int), default=20, metavar="N", help="of each (default: 20)")
    add("--repeats", type=positive(int), default=5, metavar="N", help="of each (default: 5)")
    add("--results", type=Path, default=DEFAULT_RESULTS, metavar="DIR")
    add("--data-dir", type=Path, metavar="DIR")
    add("--out", type=Path, metavar="DIR", help="default: RESULTS/searches/benchmark")
    return parser


if __name__ == "__main__":
    sys.exit(main())
