"""Figures as pictures inside of a page: vectors that need neither fonts nor files."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping

import matplotlib as mpl
from matplotlib.figure import Figure

from analysis.canvas import style
from analysis.page.content import LARGEST_CSV, Picture

_LARGEST_VECTOR = 200_000
"""Bytes. What has more pieces is smaller as an image, and no browser draws it at once."""
MOST_PICTURES = 3_500_000
"""Characters of all pictures of a page together: a page stays small enough to be sent by mail."""


def pictures_of(
    figures: Mapping[str, Figure], data: Mapping[str, str], share: float = 1
) -> tuple[list[Picture], list[str]]:
    """Figures by name, with the CSV ``data`` of those that have some.

    Returns:
        The pictures, in the order of the figures, and the names of those that there is no room for
        on this ``share`` of a page's.
    """
    room = share * MOST_PICTURES
    pictures: list[Picture] = []
    left_out: list[str] = []
    for name, figure in figures.items():
        text = _title(figure)
        first = str(figure.get_label()) or text.partition("\n")[0] or name.replace("_", " ")
        # Figures of a study say its name; those of one configuration say that one.
        title = first.partition(": ")[2] or f"{name.partition('_')[0]}: {first}"
        csv = data.get(name, "")
        csv = csv if len(csv) <= LARGEST_CSV else ""
        picture = Picture(name, title, text, _source(figure), csv)
        room -= len(picture.source) + len(picture.csv)
        if room < 0:
            left_out.append(name)
        else:
            pictures.append(picture)
    return pictures, left_out


def room_left(pictures: Iterable[Picture], share: float = 1) -> float:
    """What ``pictures`` leave of the room for pictures, in characters."""
    return share * MOST_PICTURES - sum(len(p.source) + len(p.csv) for p in pictures)


def _source(figure: Figure) -> str:
    # The same records give the same bytes: no date, and names of pieces that are not random.
    with style(), mpl.rc_context({"svg.hashsalt": "msvit", "svg.fonttype": "path"}):
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        vector = _saved(figure, "svg", {"Date": None})
        if len(vector) <= _LARGEST_VECTOR:
            return data_uri("image/svg+xml", vector)
        return data_uri("image/png", _saved(figure, "png", None))


def _saved(figure: Figure, form: str, metadata: dict[str, None] | None) -> bytes:
    target = io.BytesIO()
    figure.savefig(target, format=form, metadata=metadata)
    return target.getvalue()


def data_uri(kind: str, content: bytes) -> str:
    """A file as an address that holds it."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _title(figure: Figure) -> str:
    """What stands above a figure: for who does not see it, and as its caption."""
    titles: Iterable[str] = [figure.get_suptitle(), *(a.get_title("left") for a in figure.axes)]
    return next((title for title in titles if title), "")
