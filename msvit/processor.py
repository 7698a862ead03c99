"""What the system says of the processor. Torch-free."""

from __future__ import annotations

from functools import cache
from pathlib import Path


@cache
def description() -> str:
    """``/proc/cpuinfo``'s words on the first processor, empty where there is no such file."""
    try:
        return Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return ""


def has_any(*instructions: str) -> bool:
    """Whether one of these instruction sets, as Linux calls them, is there."""
    return not set(instructions).isdisjoint(description().split())


def multiplies_matrices() -> bool:
    """Whether units of its own multiply matrices in bfloat16 (AMX), far faster than vectors do."""
    return has_any("amx_bf16")
