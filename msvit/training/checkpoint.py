"""Checkpoints that are complete or absent, and noticed when they are neither."""

from __future__ import annotations

import logging
import os
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from msvit.files import replace_file

_log = logging.getLogger("msvit")


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Replace ``path`` atomically by ``state`` (tensors, numbers, strings, lists, dicts).

    Raises:
        OSError: if the folder cannot be written.
    """
    replace_file(path, lambda file: torch.save(state, file))


def load_checkpoint(path: Path, cell: str, keys: Collection[str]) -> dict[str, Any] | None:
    """What :func:`save_checkpoint` wrote for this ``cell`` (its id), or None to start anew.

    A file that is damaged, belongs to another cell or lacks one of the ``keys``, as that of
    another version may, is renamed, with a line in the log.
    """
    if not path.exists():
        return None
    try:
        _verify(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        lacks = [key for key in keys if key not in state]
        if state["cell"] == cell and not lacks:
            return state
        problem = f"lacks {', '.join(lacks)}" if lacks else f"is of cell {state['cell']}"
    except Exception as error:
        problem = f"is damaged ({error})"
    aside = path.with_suffix(".damaged.pt")
    os.replace(path, aside)
    _log.warning("%s %s: kept as %s, training starts again", path, problem, aside.name)
    return None


def _verify(path: Path) -> None:
    """torch.load does not compare checksums; zipfile does."""
    with zipfile.ZipFile(path) as archive:
        broken = archive.testzip()
    if broken is not None:
        raise ValueError(f"wrong checksum of {broken}")
