"""A :class:`analysis.tables.Table` as Markdown, as LaTeX and for the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.tables import Entry, Table

if TYPE_CHECKING:
    import rich.console
    import rich.table


FORMATS = ("md", "csv", "tex")
"""What a table can be written as, by the ends of its files."""
_ROWS_OF_A_PAGE = 45
_LETTERS_OF_A_PAGE, _LETTERS_OF_A_COLUMN = 130, 66
"""What is broader is parted: made smaller, nobody could read it."""
_BETWEEN, _EDGES = 3, 4  # letters: between two columns; around the first one
_HEADER = 12  # letters of a line, or its longest word


def write_table(table: Table, folder: Path, stem: str, formats: Collection[str] = FORMATS) -> None:
    """Write ``<stem>.md``; ``.tex``, ``_column.tex`` (fewer columns); ``.csv``, unrounded."""
    texts = {
        "md": {f"{stem}.md": lambda: markdown(table)},
        "tex": {
            f"{stem}.tex": lambda: latex(table),
            f"{stem}_column.tex": lambda: latex(narrowed(table), wide=False),
        },
        "csv": {f"{stem}.csv": lambda: table.numbers.to_csv(index=False, lineterminator="\n")},
    }
    for form in formats:
        for name, text in texts[form].items():
            (folder / name).write_text(text(), encoding="utf-8")


def narrowed(table: Table) -> Table:
    """The columns that one column of a two-column page has room for; the notes stay."""
    if not table.narrow:
        return table
    kept = {header: fields for header, fields in table.columns.items() if header in table.narrow}
    return replace(table, columns=kept)


def parted(table: Table, room: int) -> list[Table]:
    """Tables of no more than ``room`` letters across, each with the first column and some others.

    All are about as broad. What has no room even beside the first column alone is there anyway.
    """
    first, *others = table.columns
    room -= width_of(table, first)
    widths = {header: _BETWEEN + width_of(table, header) for header in others}
    parts = _filled(widths, room)
    while len(parts) > 1 and room > 0 and len(_filled(widths, room - 1)) == len(parts):
        room -= 1
    columns = table.columns
    return [
        replace(table, columns={header: columns[header] for header in (first, *part)})
        for part in _filled(widths, room)
    ]


def _filled(widths: Mapping[str, int], room: int) -> list[list[str]]:
    """Names in their order, in groups of which none is broader than ``room`` but of one name."""
    groups: list[list[str]] = [[]]
    left = room
    for name, width in widths.items():
        if width > left and groups[-1]:
            groups.append([])
            left = room
        groups[-1].append(name)
        left -= width
    return groups


def width_of(table: Table, header: str) -> int:
    """Letters of the longest entry of a column, or of the longest line of its header."""
    fields = (f"{entry.text} {entry.detail}".strip() for entry in table.columns[header])
    lines = textwrap.wrap(header, _HEADER, break_long_words=False, break_on_hyphens=False)
    return max(map(len, (*lines, *fields)))


def console() -> rich.console.Console:
    """Where tables are printed."""
    from rich.console import Console

    found = Console(highlight=False, markup=False)
    if found.is_terminal:
        return found
    return Console(highlight=False, markup=False, width=120)  # files have no width


def markdown(table: Table) -> str:
    """The table and its notes as Markdown; the best values are bold."""

    def show(entry: Entry) -> str:
        text = f"**{entry.text}**" if entry.rank == 1 else entry.text
        return f"{text} {entry.detail}".strip().replace("|", "\\|")

    body = [list(table.headers), *([show(entry) for entry in row] for row in table.rows)]
    widths = [max(3, *(len(row[i]) for row in body)) for i in range(len(table.headers))]
    left = to_the_left(table)
    rules = [
        "-" * w if to_left else "-" * (w - 1) + ":" for w, to_left in zip(widths, left, strict=True)
    ]
    lines = [
        "| " + " | ".join(_aligned(row, widths, left)) + " |" for row in (body[0], rules, *body[1:])
    ]
    notes = "".join(f"\n{note}\n" for note in table.notes)
    return f"**{table.name}** · {table.caption}\n\n" + "\n".join(lines) + "\n" + notes


def to_the_left(table: Table) -> list[bool]:
    """Whether each column stands to the left: of words, as the first one is."""
    return [not place or header in table.left for place, header in enumerate(table.headers)]


def _aligned(row: Sequence[str], widths: Sequence[int], left: Sequence[bool]) -> list[str]:
    columns = zip(row, widths, left, strict=True)
    return [text.ljust(width) if to_left else text.rjust(width) for text, width, to_left in columns]


def latex(table: Table, wide: bool = True) -> str:
    """The table as LaTeX floats; needs ``\\usepackage{booktabs,graphicx}``.

    The best values are bold, the second best underlined; the notes stand under the rules. ``wide``
    goes over both columns of a two-column page. What is much broader than that goes on in another
    float with its other columns, and what is longer than a page from the next block of rows on.
    """
    parts = parted(table, _LETTERS_OF_A_PAGE if wide else _LETTERS_OF_A_COLUMN)
    pages = list(pairwise([*_pages(table), len(table.rows)]))
    floats = [(part, page) for page in pages for part in parts]
    last = len(floats) - 1
    return "\n".join(
        ["% needs \\usepackage{booktabs,graphicx}"]
        + [_float(*each, n == 0, n == last, wide) for n, each in enumerate(floats)]
    )


def _pages(table: Table) -> list[int]:
    """The rows with which floats begin."""
    starts = [0]
    ends = [*table.blocks[1:], len(table.rows)]
    for block, end in zip(table.blocks, ends, strict=False):
        if end - starts[-1] > _ROWS_OF_A_PAGE:
            starts.append(block)
    return starts


def _float(table: Table, page: tuple[int, int], first: bool, last: bool, wide: bool) -> str:
    caption = table.caption + (" Best in bold, second underlined." if table.ranked else "")
    caption += "" if first else " Continued."
    rows = []
    for place in range(*page):
        rows += [r"\midrule"] if place in table.blocks and place != page[0] else []
        rows.append(" & ".join(map(_latex_entry, table.rows[place])) + r" \\")
    # Units in a second row: the table has to fit a page.
    heads = zip(*(_split_unit(header) for header in table.headers), strict=True)
    columns = "".join("l" if to_left else "r" for to_left in to_the_left(table))
    name = "table*" if wide else "table"
    lines = [
        f"\\begin{{{name}}}[t]",
        r"\centering\footnotesize\setlength{\tabcolsep}{4pt}\setlength{\belowcaptionskip}{4pt}",
        f"\\caption{{{latex_text(caption)}}}",
        *([f"\\label{{tab:{_label(table.name)}}}"] if first else []),
        # No broader than there is room for.
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        f"\\begin{{tabular}}{{@{{}}{columns}@{{}}}}",
        r"\toprule",
        *(" & ".join(latex_text(part) for part in row) + r" \\" for row in heads),
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}}",
        *([r"\par\raggedright\scriptsize"] if last and table.notes else []),
        *(rf"\smallskip {latex_text(note)}\par" for note in table.notes if last),
        f"\\end{{{name}}}",
    ]
    return "\n".join(lines) + "\n"


def _latex_entry(entry: Entry) -> str:
    text = latex_text(entry.text)
    text = {1: f"\\textbf{{{text}}}", 2: f"\\underline{{{text}}}"}.get(entry.rank, text)
    return f"{text} {latex_text(entry.detail)}".strip()


_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "±": r"$\pm$",
    "†": r"$^\dagger$",
    "µ": r"$\mu$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "≤": r"$\le$",
    "≥": r"$\ge$",
    "−": "$-$",
    "→": r"$\to$",
    "—": "---",
    "–": "--",
}


def latex_text(text: str) -> str:
    """``text`` with everything escaped that LaTeX would take for a command."""
    return "".join(_LATEX.get(character, character) for character in text)


def _split_unit(header: str) -> tuple[str, str]:
    """``energy (µJ/image)`` as ``energy`` and ``(µJ/image)``."""
    name, bracket, unit = header.partition(" (")
    return name, f"{bracket.strip()}{unit}"


def _label(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name)


def terminal(table: Table) -> rich.console.RenderableType:
    """The table for a terminal, parted where that is too narrow; best bold, second underlined."""
    return _Parted(table)


@dataclass(frozen=True)
class _Parted:
    table: Table

    def __rich_console__(
        self, console: rich.console.Console, options: rich.console.ConsoleOptions
    ) -> Iterator[rich.table.Table]:
        for number, part in enumerate(parted(self.table, options.max_width - _EDGES)):
            yield _shown(part, titled=number == 0)


def _shown(table: Table, titled: bool) -> rich.table.Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable
    from rich.text import Text

    title = Text(table.caption) if titled else None
    shown = RichTable(box=SIMPLE_HEAD, title=title, title_justify="left")
    for header, left in zip(table.headers, to_the_left(table), strict=True):
        width = width_of(table, header)
        shown.add_column(Text(header), justify="left" if left else "right", width=width)
    for row in table.rows:
        styles = ["bold" if e.rank == 1 else "underline" if e.rank == 2 else "" for e in row]
        shown.add_row(
            *(
                Text.assemble((entry.text, style), f" {entry.detail}" if entry.detail else "")
                for entry, style in zip(row, styles, strict=True)
            )
        )
    return shown
