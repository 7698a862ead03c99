"""A :class:`analysis.tables.Table` as Markdown, as LaTeX and for the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from analysis.tables import Entry, Table

if TYPE_CHECKING:
    import rich.console
    import rich.table


def write_table(table: Table, folder: Path, stem: str) -> None:
    """Write ``<stem>.md`` and ``.tex``, and ``.csv`` with the numbers unrounded."""
    (folder / f"{stem}.md").write_text(markdown(table), encoding="utf-8")
    (folder / f"{stem}.tex").write_text(latex(table), encoding="utf-8")
    table.numbers.to_csv(folder / f"{stem}.csv", index=False)


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
    rules = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = ["| " + " | ".join(_aligned(row, widths)) + " |" for row in (body[0], rules, *body[1:])]
    notes = "".join(f"\n{note}\n" for note in table.notes)
    return f"**{table.name}** · {table.caption}\n\n" + "\n".join(lines) + "\n" + notes


def _aligned(row: list[str], widths: list[int]) -> list[str]:
    first, *rest = zip(row, widths, strict=True)
    return [first[0].ljust(first[1]), *(text.rjust(width) for text, width in rest)]


def latex(table: Table) -> str:
    """The table as a LaTeX float; needs ``\\usepackage{booktabs}``.

    The best values are bold, the second best underlined; the notes stand under the rules.
    """

    def show(entry: Entry) -> str:
        text = latex_text(entry.text)
        text = {1: f"\\textbf{{{text}}}", 2: f"\\underline{{{text}}}"}.get(entry.rank, text)
        return f"{text} {latex_text(entry.detail)}".strip()

    rows = [" & ".join(show(entry) for entry in row) + r" \\" for row in table.rows]
    # Units in a second row: the table has to fit a page.
    heads = zip(*(_split_unit(header) for header in table.headers), strict=True)
    caption = table.caption + (" Best in bold, second underlined." if table.ranked else "")
    lines = [
        "% needs \\usepackage{booktabs}",
        r"\begin{table}[t]",
        r"\centering\footnotesize\setlength{\tabcolsep}{4pt}\setlength{\belowcaptionskip}{4pt}",
        f"\\caption{{{latex_text(caption)}}}",
        f"\\label{{tab:{_label(table.name)}}}",
        f"\\begin{{tabular}}{{@{{}}l{'r' * (len(table.headers) - 1)}@{{}}}}",
        r"\toprule",
        *(" & ".join(latex_text(part) for part in row) + r" \\" for row in heads),
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}",
        r"\par\raggedright",
        *(rf"\smallskip {latex_text(note)}\par" for note in table.notes),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


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
    for position, header in enumerate(table.headers):
        shown.add_column(
            Text(header), justify="right" if position else "left", no_wrap=not position
        )
    for row in table.rows:
        styles = ["bold" if e.rank == 1 else "underline" if e.rank == 2 else "" for e in row]
        shown.add_row(
            *(
                Text.assemble((entry.text, style), f" {entry.detail}" if entry.detail else "")
                for entry, style in zip(row, styles, strict=True)
            )
        )
    return shown
