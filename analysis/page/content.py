"""What a page shows, ready to be written down: texts, fields, pictures; no frames."""

from __future__ import annotations

from dataclasses import dataclass, field

from analysis.formats import to_the_left
from analysis.tables import NOTHING, Entry, Table

LARGEST_CSV = 200_000  # characters; what is longer is a file beside the page


@dataclass(frozen=True)
class Field:
    """One field of a table; ``key`` is what it is sorted by, empty where there is nothing."""

    text: str
    detail: str = ""
    rank: int = 0
    key: float | str = ""
    repeated: bool = False  # the same as in the row above


@dataclass(frozen=True)
class Grid:
    """A sortable table; ``left`` says of each column whether it is of words."""

    name: str
    caption: str
    headers: tuple[str, ...]
    left: tuple[bool, ...]
    rows: tuple[tuple[Field, ...], ...]
    notes: tuple[str, ...]
    csv: str
    ranked: bool


@dataclass(frozen=True)
class Picture:
    """A figure: ``source`` is a data URI, ``csv`` what it was drawn from, if that is known."""

    name: str
    title: str
    text: str
    source: str
    csv: str = ""


@dataclass(frozen=True)
class Inside:
    """What one cell holds inside: sentences and pictures."""

    label: str
    id: str
    said: tuple[str, ...]
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Run:
    """A cell or trial: how it ended, what it was told, what it said last."""

    label: str
    id: str
    state: str
    result: str = ""
    problem: str = ""
    settings: tuple[tuple[str, str], ...] = ()
    log: str = ""
    cut: bool = False  # whether the log has more lines than shown


@dataclass(frozen=True)
class Part:
    """One study or search.

    Attributes:
        kind: ``study`` or ``search``.
        name, question: of it.
        states: how many of its cells or trials are in each state, those that are done first.
        planned: how many there are to be.
        answer: sentences, the main one first.
        warnings: lines on files that could not be used.
        grids, pictures, runs: in reading order.
        shared: settings that all runs have in common.
        places: how many cells were trained on and with what: common to all, then what differs.
        commands: that make the same again.
        left_out: figures that the page had no room for.
        insides: of cells that were looked into; ``insides_left_out`` are their other figures.
    """

    kind: str
    name: str
    question: str
    states: tuple[tuple[str, int], ...]
    planned: int
    answer: tuple[str, ...]
    warnings: tuple[str, ...]
    grids: tuple[Grid, ...]
    pictures: tuple[Picture, ...]
    runs: tuple[Run, ...]
    shared: tuple[tuple[str, str], ...] = ()
    places: tuple[tuple[int, tuple[tuple[str, str], ...]], ...] = ()
    commands: tuple[str, ...] = ()
    left_out: tuple[str, ...] = field(default=())
    insides: tuple[Inside, ...] = ()
    insides_left_out: tuple[str, ...] = ()

    @property
    def done(self) -> int:
        return sum(count for state, count in self.states if state in ("finished", "complete"))


def grid_of(stem: str, table: Table, said: tuple[str, ...] = ()) -> Grid:
    """A table for a page, without the notes that have been ``said`` elsewhere on it."""
    numbers = table.numbers.to_csv(index=False, lineterminator="\n")
    rows: list[tuple[Field, ...]] = []
    for entries in table.rows:
        fields = [_field(entry) for entry in entries]
        # A label that stands for several rows is in each: the reader may sort them apart.
        if rows and table.blocks and not entries[0].text:
            above = rows[-1][0]
            fields[0] = Field(above.text, key=above.key, repeated=True)
        rows.append(tuple(fields))
    return Grid(
        name=stem,
        caption=table.caption,
        headers=table.headers,
        left=tuple(to_the_left(table)),
        rows=tuple(rows),
        notes=tuple(note for note in table.notes if note not in said),
        csv=numbers if len(numbers) <= LARGEST_CSV else "",
        ranked=table.ranked,
    )


def _field(entry: Entry) -> Field:
    return Field(entry.text, entry.detail, entry.rank, sort_key(entry.text))


def sort_key(text: str) -> float | str:
    """What a field is sorted by: its number, such as 0.001 of ``<0.001`` and 2 of ``2/3``.

    Other text sorts as text, and a field without a value is empty.
    """
    if text in ("", NOTHING):
        return ""
    number = text.replace("−", "-").lstrip("<").partition("/")[0]
    try:
        return float(number)
    except ValueError:
        return text
