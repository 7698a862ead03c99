"""Recordings of event cameras, written in the formats in which the data sets come."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

Events = dict[str, np.ndarray]


def some_events(count: int, sensor: int, seed: int = 0, step: int = 100) -> Events:
    """``count`` events on ``sensor`` × ``sensor`` pixels, up to ``step`` microseconds apart."""
    random = np.random.default_rng(seed)
    return {
        "t": np.cumsum(random.integers(1, step, count)),
        "x": random.integers(0, sensor, count),
        "y": random.integers(0, sensor, count),
        "p": random.integers(0, 2, count),
    }


def write_atis(file: Path, events: Events) -> None:
    """As N-MNIST: x, y, then polarity (1 bit) and time (23 bits)."""
    t, x, y, p = (events[key].astype(np.uint32) for key in "txyp")
    columns = [x, y, p << 7 | t >> 16, t >> 8 & 255, t & 255]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(np.stack(columns, 1).astype(np.uint8).tobytes())


def write_aedat2(file: Path, events: Events) -> None:
    """As CIFAR10-DVS: big-endian pairs of address and time; the camera stood on its side."""
    t, x, y, p = (events[key].astype(np.uint32) for key in "txyp")
    address = (127 - y) << 1 | (127 - x) << 8 | (1 - p)
    file.parent.mkdir(parents=True, exist_ok=True)
    pairs = np.stack([address, t], 1).astype(">u4")
    file.write_bytes(b"#!AER-DAT2.0\r\n# a comment\r\n" + pairs.tobytes())


def write_aedat3(file: Path, events: Events, packet: int = 500) -> None:
    """As DVS128 Gesture: little-endian packets of polarity events below a head of text."""
    t, x, y, p = (events[key].astype(np.uint32) for key in "txyp")
    pairs = np.stack([x << 17 | y << 2 | p << 1 | 1, t], 1).astype("<u4")
    file.parent.mkdir(parents=True, exist_ok=True)
    content = b"#!AER-DAT3.1\r\n#!END-HEADER\r\n"
    for start in range(0, len(pairs), packet):
        part = pairs[start : start + packet]
        size = len(part)
        content += struct.pack("<HHIIIIII", 1, 0, 8, 4, 0, size, size, size) + part.tobytes()
    file.write_bytes(content)


def write_npz(file: Path, events: Events) -> None:
    """As spikingjelly keeps the recordings of any data set."""
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, **events)
