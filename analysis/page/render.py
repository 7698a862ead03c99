"""The HTML file of a page: template, style and script beside this module, all put into one file.

Labels, questions and logs are text that anybody may have written. Everything is escaped, and the
page's own policy lets no script run but ours and nothing be loaded from anywhere.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from analysis.canvas import slug
from analysis.page import PAGE
from analysis.page.content import Part

FOLDER = Path(__file__).parent


def write_page(parts: Sequence[Part], folder: Path) -> Path:
    """Write ``report.html`` with these studies and searches; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / PAGE
    path.write_text(page(parts), encoding="utf-8")
    return path


def page(parts: Sequence[Part]) -> str:
    """The text of the file."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["anchor"] = slug
    style, script = (_own(name) for name in ("page.css", "page.js"))
    return environment.get_template("page.html.j2").render(
        parts=parts,
        title=" · ".join(part.name for part in parts),
        style=Markup(style),
        script=Markup(script),
        script_hash=_hash(script),
    )


def _own(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"
