"""Weights to begin a training with: another cell's, or those of a file."""

from __future__ import annotations

import logging
from pathlib import Path

from torch import nn

from msvit.checkpoints import CheckpointError, load_official
from msvit.records.store import start_file

_log = logging.getLogger("msvit")


def load_start(model: nn.Module, start_from: str, results: Path) -> None:
    """Load what ``training.start_from`` names into ``model``; the log says what was taken.

    Where it has other classes, the classifier stays as it is. Neither time steps nor the size of
    images are part of the weights, so both may differ.

    Raises:
        DataError: where there is no such cell or file.
        CheckpointError: where it cannot be read, or is of another model.
    """
    file = start_file(results, start_from)
    try:
        load_official(model, file)
    except CheckpointError as error:
        try:
            load_official(model, file, head=False)
        except CheckpointError:
            reason = " ".join(str(error).splitlines())
            raise CheckpointError(f"training.start_from {start_from}: {reason}") from None
        _log.info("%s has other classes: the classifier begins anew", start_from)
