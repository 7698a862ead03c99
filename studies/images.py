"""Whether a result is one of the images that are there now: a cell's id does not know them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from msvit.data import options_of
from msvit.data.fingerprint import Fingerprint, describe_images
from msvit.options import DataError
from msvit.records.schema import RecordError
from msvit.records.store import read_record


class Trained(NamedTuple):
    """A finished cell: where its record is, its ``data`` section, and which images it has seen.

    Versions before this one did not tell (None), and their records count as they are.
    """

    folder: Path
    data: Mapping[str, Any]
    images: Fingerprint | None


def check_images(finished: Iterable[Trained], data_dir: Path | None) -> None:
    """Refuse to show results of other images than those that are found now.

    What is not found now is not compared: a finished study can be shown without its images.

    Raises:
        DataError: naming a record, what it was trained on and what is there.
    """
    known: dict[str, Fingerprint | None] = {}
    for cell in finished:
        if cell.images is None:
            continue
        key = json.dumps(cell.data, sort_keys=True)
        if key not in known:
            known[key] = options_of(cell.data).fingerprint(data_dir)
        now = known[key]
        if now is not None and now != cell.images:
            place = f"--data-dir {data_dir}" if data_dir else "without --data-dir"
            raise DataError(
                f"{cell.folder} was trained on other images of {cell.data['name']}: "
                f"{describe_images(cell.images)}; {place} has {describe_images(now)}. "
                "Choose another folder for results with --results, or give the images of then"
            )


def trained_in(results: Path, names: Iterable[str]) -> Iterator[Trained]:
    """All finished cells of the data sets ``names``; a record that cannot be read is none here."""
    for file in sorted(results.glob("cells/*/record.json")):
        try:
            record = read_record(results, file.parent.name)
        except RecordError:  # told where the record is used
            continue
        if record is not None and record["cell"]["data"]["name"] in names:
            yield Trained(file.parent, record["cell"]["data"], record.get("data"))
