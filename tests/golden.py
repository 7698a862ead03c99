"""Reference outputs of the official implementations, outside the repository.

They are found through ``MSVIT_GOLDEN``. Unset, tests that need them skip and say so; set, a
missing file is a failure.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch


def load_golden(name: str) -> dict:
    folder = os.environ.get("MSVIT_GOLDEN")
    if not folder:
        pytest.skip("MSVIT_GOLDEN is not set: no reference outputs to compare with")
    return torch.load(Path(folder) / f"{name}.pt", weights_only=True)
