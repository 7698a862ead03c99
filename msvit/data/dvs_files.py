"""Events of the 128×128 cameras as files hold them: as recorded, or as spikingjelly keeps them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from msvit.data.events import Events
from msvit.data.files import one_line
from msvit.options import DataError

if TYPE_CHECKING:
    import numpy as np

PREPARED = "events_np"
"""The folder that spikingjelly makes of recordings: an .npz file with t, x, y and p for each."""


def read_events(file: Path) -> Events:
    """The events in ``file``: an .npz of spikingjelly's, or an .aedat as CIFAR10-DVS has it.

    Raises:
        DataError: for a file that is neither.
    """
    import numpy as np
    from spikingjelly.datasets import cifar10_dvs

    try:
        if file.suffix == ".npz":
            with np.load(file) as arrays:
                return {key: arrays[key] for key in ("t", "x", "y", "p")}
        # Not public there, but the one that turns the picture as the published networks saw it.
        return in_signed(cifar10_dvs._load_origin_data(file))
    except Exception as error:  # of zip, of numpy, of spikingjelly
        raise DataError(f"{file}: no recording that can be read ({one_line(error)})") from error


def in_signed(events: dict[str, Any]) -> dict[str, np.ndarray]:
    """Without the big-endian unsigned numbers of the file, which wrap around below 0."""
    import numpy as np

    return {key: np.asarray(values).astype(np.int64) for key, values in events.items()}
