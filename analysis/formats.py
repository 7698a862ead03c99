"""A :class:`analysis.tables.Table` as Markdown, as LaTeX and for the terminal."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
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
    goes over both columns of a two-column page. What is broader than that is made smaller, and
    what is longer than a page goes on in another float, from the next block of rows on.
    """
    pages = list(pairwise([*_pages(table), len(table.rows)]))
    return "\n".join(
        ["% needs \\usepackage{booktabs,graphicx}"]
        + [_float(table, pages, number, wide) for number in range(len(pages))]
    )


def _pages(table: Table) -> list[int]:
    """The rows with which floats begin."""
    starts = [0]
    ends = [*table.blocks[1:], len(table.rows)]
    for block, end in zip(table.blocks, ends, strict=False):
        if end - starts[-1] > _ROWS_OF_A_PAGE:
            starts.append(block)
    return starts


def _float(table: Table, pages: list[tuple[int, int]], number: int, wide: bool) -> str:
    first, last = number == 0, number == len(pages) - 1
    caption = table.caption + (" Best in bold, second underlined." if table.ranked else "")
    caption += "" if first else " Continued."
    rows = []
    for place in range(*pages[number]):
        rows += [r"\midrule"] if place in table.blocks and place != pages[number][0] else []
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


def terminal(table: Table) -> rich.table.Table:
    """The table for a terminal; best bold, second underlined."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(box=SIMPLE_HEAD, title=Text(table.caption), title_justify="left")
    for header, left in zip(table.headers, to_the_left(table), strict=True):
        shown.add_column(Text(header), justify="left" if left else "right", no_wrap=left)
    for row in table.rows:
        styles = ["bold" if e.rank == 1 else "underline" if e.rank == 2 else "" for e in row]
        shown.add_row(
            *(
                Text.assemble((entry.text, style), f" {entry.detail}" if entry.detail else "")
                for entry, style in zip(row, styles, strict=True)
            )
        )
    return shown
