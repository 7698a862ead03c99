"""The best trials of a search as a grid, to be run again with fresh seeds (and more epochs).

The seeds of the search stay out: the best of many runs was partly lucky, and a mean that holds the
very run that won would be, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis.search import Search
from msvit.cells import SECTIONS
from msvit.options import ConfigError
from msvit.yaml_files import write_yaml
from studies.configurations import check_name, merged, seeds_of
from studies.grids import load_study
from studies.search.space import Space

SEEDS = 3
HEAD = "# The best trials of the search"


def best_trials(search: Search, number: int) -> list[int]:
    """Numbers of the ``number`` best trials: front by front, best primary objective first.

    Raises:
        ConfigError: where no trial is complete and feasible.
    """
    if search.ranked.empty:
        message = f"the search {search.name!r} has no complete trial that counts"
        raise ConfigError("--best", "", message)
    return [int(trial) for trial in search.ranked["number"][:number]]


def write_grid(space: Space, search: Search, numbers: list[int], path: Path) -> None:
    """Write trials as a grid of ``SEEDS`` seeds, none of which the search has used.

    Raises:
        ConfigError: where the file's name cannot name a study, or it cannot be written.
    """
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"--grid-out {path}", "", "a name that ends in .yaml is needed")
    check_name(path.stem, f"--grid-out {path}: the file's name names the study")
    try:
        ours = not path.exists() or path.read_bytes().startswith(HEAD.encode())
    except OSError as error:
        raise ConfigError(f"--grid-out {path}", "", f"{error.strerror}") from None
    if not ours:
        message = "the file is there and was not written by a search"
        raise ConfigError(f"--grid-out {path}", "", message)
    base = {section: space.base[section] for section in ("data", "training")}
    content = {
        "question": f"How good are the best of the search {search.name}, over fresh seeds?",
        "base": base,
        "include": [_entry(space, search, number) for number in numbers],
        "seeds": seeds_of(_fresh(space.seeds), f"--grid-out {path}"),
    }
    head = f"{HEAD} {search.name}: {', '.join(map(str, numbers))}\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(head + write_yaml(content), encoding="utf-8")
    except OSError as error:
        message = f"cannot be written ({error.strerror})"
        raise ConfigError(f"--grid-out {path}", "", message) from None
    load_study(str(path))


def _fresh(used: Sequence[int]) -> list[int]:
    """``SEEDS`` seeds above all that are ``used``: ``--seeds`` counts on from the smallest here."""
    return [max(used) + 1 + index for index in range(SEEDS)]


def _entry(space: Space, search: Search, number: int) -> dict[str, Any]:
    """One configuration; its model is written out, since a base of another would be inherited."""
    own = space.own(search.study.get_trials(deepcopy=False)[number].params)
    whole = merged(space.base, own, space.file)
    entry: dict[str, Any] = {"label": f"trial {number}", "model": whole["model"]}
    for section in SECTIONS:
        if section != "model" and (set_here := own.get(section)):
            entry[section] = set_here
    return entry
