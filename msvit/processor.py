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


def multiplies_bf16() -> bool:
    """Whether torch has vector code for products in bfloat16 here.

    It needs instructions for them, or AVX-512 to do without. Elsewhere they are computed number by
    number, on one thread: a training step takes minutes. Where the system tells nothing, they
    are taken to be there.
    """
    if not description():
        return True
    return multiplies_matrices() or has_any("avx512bw", "avx_ne_convert", "bf16")


def multiplies_bf16_faster() -> bool:
    """Whether products in bfloat16 take less time than those in float32.

    Instructions alone do not tell. AMD's for vectors multiply twice as much in bfloat16 as in
    float32 (measured); those of an Intel that hides its AMX from a virtual machine half as much
    (measured), so that none of Intel's is trusted without AMX. Arm's has instructions that multiply
    matrices in bfloat16; it was not measured.
    """
    if multiplies_matrices():
        return True
    return has_any("bf16") or (has_any("AuthenticAMD") and has_any("avx512_bf16"))  # Arm, AMD
