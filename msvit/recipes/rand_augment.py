"""The text that says which RandAugment is meant, in timm's language and one form.

``rand-m9-n1-mstd0.4-inc1``: of the operations, ``n`` (2) are drawn for every image and each happens
with probability ``p`` (0.5) at magnitude ``m`` (10), to which normal noise of deviation ``mstd``
(0; above 100: uniform from 0 to ``m``) is added, up to ``mmax`` (10); with ``inc1`` all of them
grow stronger with the magnitude. ``tsnn`` draws from the five of :data:`OPERATIONS` alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

OPERATIONS = {"snn": ("Equalize", "Rotate", "ShearX", "TranslateXRel", "TranslateYRel")}
"""Sets of operations by name, beside timm's usual fifteen: what Spikformer and Max-Former draw from
on CIFAR (``cifar10/aa_snn.py`` and ``cifar10-100/aa_snn.py`` in their repositories)."""

_SECTION = re.compile(r"(mstd|mmax|inc|m|n|p)([0-9]+(?:\.[0-9]+)?)|(t)([a-z]+)")
_USUAL = {"m": 10.0, "n": 2.0, "p": 0.5, "mstd": 0.0, "mmax": 10.0, "inc": 0.0}


@dataclass(frozen=True)
class RandAugmentSettings:
    """What a text says; ``str`` of it is the one form of all texts that say the same."""

    numbers: dict[str, float]
    operations: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """
        Raises:
            ValueError: for a text that says something else, or nothing possible.
        """
        first, *sections = text.split("-")
        numbers, operations = dict(_USUAL), ""
        seen = set()
        for section in sections:
            match = _SECTION.fullmatch(section)
            key = (match[1] or match[3]) if match else ""
            if first != "rand" or match is None or key in seen:
                raise ValueError(_refusal(text))
            seen.add(key)
            if key == "t":
                operations = match[4]
            else:
                numbers[key] = float(match[2])
        if first != "rand":
            raise ValueError(_refusal(text))
        if operations and operations not in OPERATIONS:
            names = ", ".join(f"t{name}" for name in OPERATIONS)
            raise ValueError(f"{text!r}: no such set of operations is known here ({names})")
        whole = all(numbers[key].is_integer() for key in ("m", "n", "mmax", "inc"))
        if not whole or not 1 <= numbers["n"] <= 15 or not 0 < numbers["p"] <= 1:
            message = "m, n (1 to 15), mmax and inc (0 or 1) are whole numbers, p is above 0 to 1"
            raise ValueError(f"{text!r}: {message}")
        if numbers["inc"] > 1 or not 1 <= numbers["mmax"] <= 30 or numbers["m"] > numbers["mmax"]:
            raise ValueError(f"{text!r}: m is at most mmax (10, if not given), inc is 0 or 1")
        return cls(numbers, operations)

    @property
    def for_timm(self) -> str:
        """The text without the name of our own set of operations."""
        shown = {k: v for k, v in self.numbers.items() if k == "m" or v != _USUAL[k]}
        return "-".join(["rand", *(f"{key}{value:g}" for key, value in shown.items())])

    def __str__(self) -> str:
        return self.for_timm + (f"-t{self.operations}" if self.operations else "")


def _refusal(text: str) -> str:
    return (
        f"{text!r}: write it as timm does, rand-m9-n1-mstd0.4-inc1 (magnitude m, operations an "
        "image n, p, mstd, mmax, inc; tsnn for the operations of Spikformer on CIFAR)"
    )
