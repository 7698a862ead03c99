"""Images of any kind that Pillow opens, in red, green and blue of 8 bits."""

from __future__ import annotations

import numpy as np
from PIL import Image

from msvit.options import DataError


def red_green_blue(image: Image.Image) -> Image.Image:
    """An opened ``image`` in mode RGB.

    16 bits are scaled to 8, palettes, grey and CMYK converted, all by Pillow's rules.

    Raises:
        DataError: for what can be seen through, or has pixels that 8 bits cannot hold.
    """
    mode = image.mode
    if mode.startswith("I;16") or (mode == "I" and image.format == "PNG"):
        grey = (np.asarray(image).astype(np.uint32) + 128) // 257  # 65535 is white
        return Image.fromarray(np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2))
    if mode in ("I", "F"):
        raise DataError(f"pixels of 32 bits (mode {mode}); save it with 8 bits")
    if can_be_seen_through(image):
        raise DataError("can be seen through; save it without transparency")
    return image.convert("RGB")


def can_be_seen_through(image: Image.Image) -> bool:
    """Whether a pixel of it has transparency, of any of Pillow's kinds."""
    may_be = image.mode in ("LA", "PA", "RGBa", "RGBA") or "transparency" in image.info
    return may_be and bool(np.asarray(image.convert("RGBA"))[..., 3].min() < 255)
