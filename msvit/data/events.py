"""Events as data: what their options have in common, and frames that are made of recordings.

A frame counts the events of each pixel and polarity in a part of a recording; spikingjelly cuts
and counts. Frames are bytes: a count above 255 is kept as 255, and it is said how many there were.
They enter a network as counts, as in the published code. Made once for each way of cutting, into a
cache beside the recordings, which all processes map into memory.
"""

from __future__ import annotations

import hashlib
import json
import logging
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from pydantic import Field

from msvit.allotment import usable_cpus
from msvit.data.caches import cache_places, kept, mapped_bytes
from msvit.data.files import some
from msvit.data.fingerprint import Fingerprint, fingerprint
from msvit.data.options import DataOptions
from msvit.data.progress import progress
from msvit.files import replace_file, replacing
from msvit.options import DataError

if TYPE_CHECKING:
    import numpy as np

    from msvit.data.splits import Splits

_log = logging.getLogger("msvit")

COUNTS = 1 / 255
"""The ``std`` with which bytes become counts again: a pixel in [0, 1] stands for 0 to 255."""

_VALIDATION = 0.05  # of the recordings to train on; the published code holds out none

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

Events = Mapping[str, "np.ndarray"]
"""``t`` in microseconds, in order; ``x``, ``y`` in pixels from the top left; ``p``, 1 for ON."""


Frames = tuple[dict[str, "np.ndarray"], dict[str, "np.ndarray"], Fingerprint]
"""Split → frames uint8 ``[N, T, 2, H, W]``, → labels ``[N]``, and which recordings they are of."""


class EventOptions(DataOptions):
    """``frames_number`` frames a sample, which are the time steps of the model.

    Channel 0 counts OFF events, channel 1 ON events, as spikingjelly's frames do.
    """

    events: ClassVar[bool] = True
    in_channels: ClassVar[int] = 2

    frames_number: int = Field(10, ge=1, le=1024)

    @abstractmethod
    def load(self, data_dir: Path | None) -> Splits:
        """Make or read frames uint8 ``[N, T, 2, H, W]``."""


@dataclass(frozen=True)
class Recordings:
    """Which files hold the recordings of a data set, and how they are read.

    ``read`` gives the samples in a file, each with its label. Samples are counted without it.
    """

    root: Path
    files: Mapping[str, Sequence[Path]]  # split → files, in order
    read: Callable[[Path], list[tuple[int, Events]]]
    counts: Mapping[str, Sequence[int]]  # split → samples of each class
    by_class: bool = True
    """Whether files lie in folders of their class, in which there should be no others."""

    def foreign(self) -> list[str]:
        """What else lies there, by its name in ``root``."""
        from msvit.data.folders import entries

        if not self.by_class:
            return []
        own = {file for files in self.files.values() for file in files}
        return [
            str(Path(entry.path).relative_to(self.root))
            for folder in sorted({file.parent for file in own})
            for entry in entries(folder)
            if Path(entry.path) not in own
        ]


class RecordedOptions(EventOptions):
    """Recordings of an event camera.

    ``split_by`` names what all frames of a sample have as much of, by spikingjelly's words:
    ``number`` of events, or ``time``.
    """

    sensor: ClassVar[int]
    """Pixels per side of the camera."""

    classes: ClassVar[Sequence[str] | None] = None
    """What errors call them; None: by their numbers."""

    split_by: Literal["number", "time"] = "number"

    @abstractmethod
    def recordings(self, data_dir: Path | None) -> Recordings:
        """Where the files are; nothing of the events is read.

        Raises:
            DataError: where files are missing; the message says which, and where they are from.
        """

    def fitted(self, frames: np.ndarray) -> np.ndarray:
        """Frames ``[..., sensor, sensor]`` as ``image_size`` asks for them: squares added up."""
        return binned(frames, self.image_size)  # type: ignore[attr-defined]  # of every data set

    @property
    def scale(self) -> float:
        """What counts in the frames are divided by before a network sees them, for means."""
        size: int = self.image_size  # type: ignore[attr-defined]  # of every data set
        return (self.sensor / size) ** 2

    def check(self, data_dir: Path | None) -> None:
        self.recordings(data_dir)

    def counts(self, data_dir: Path | None) -> dict[str, list[int]] | None:
        if data_dir is None:
            return None
        counts = self.recordings(data_dir).counts
        return {split: list(classes) for split, classes in counts.items()}

    def left_out(self, data_dir: Path | None) -> str | None:
        if data_dir is None:
            return None
        found = self.recordings(data_dir)
        from msvit.data.folders import told

        left = told(found.root, found.foreign)
        return f"{found.root}: no recordings, and not read: {some(left, 3)}" if left else None

    def fingerprint(self, data_dir: Path | None) -> Fingerprint | None:
        return None if data_dir is None else self._frames(data_dir)[2]

    def source(self, data_dir: Path | None) -> str:
        return f"recordings in {self.recordings(data_dir).root}"

    def prepare(self, data_dir: Path | None) -> None:
        self._frames(data_dir)

    def load(self, data_dir: Path | None) -> Splits:
        import torch

        from msvit.data.splits import Images, Splits, split_train

        frames, labels, found = self._frames(data_dir)
        samples = {
            split: Images(torch.from_numpy(frames[split]), torch.from_numpy(labels[split]))
            for split in frames
        }
        parts = split_train(samples["train"], _VALIDATION, self.train_per_class, self.classes)
        std = COUNTS * self.scale
        return Splits(*parts, samples["test"], (0.0, 0.0), (std, std), found)

    def _frames(self, data_dir: Path | None) -> Frames:
        recordings = self.recordings(data_dir)
        size: Any = self.image_size  # type: ignore[attr-defined]  # of every data set
        how = {"frames": self.frames_number, "split_by": self.split_by, "size": size}

        def frames_in(file: Path) -> list[tuple[int, np.ndarray]]:
            return [(label, self._sample(file, events)) for label, events in recordings.read(file)]

        return frames_of(recordings, how, frames_in)

    def _sample(self, file: Path, events: Events) -> np.ndarray:
        try:
            frames = to_frames(events, self.frames_number, self.split_by, self.sensor)
        except ValueError as error:
            raise DataError(f"{file}: {error}") from None
        return self.fitted(frames)


def to_frames(events: Events, number: int, split_by: str, sensor: int) -> np.ndarray:
    """Counts of ``events`` in ``number`` frames, int ``[number, 2, sensor, sensor]``.

    Raises:
        ValueError: for what are no events on the sensor, and where there are too few of them.
    """
    import numpy as np
    from spikingjelly.datasets import utils

    events = _checked(events, sensor)
    time = events["t"]
    if len(time) < number:
        raise ValueError(f"{len(time)} events, too few for {number} frames")
    if split_by == "time" and (back := np.flatnonzero(np.diff(time) < 0)).size:
        raise ValueError(f"event {back[0] + 1} is before event {back[0]}: times are not in order")
    if split_by == "time" and time[-1] - time[0] < number:
        raise ValueError(f"events within {time[-1] - time[0]} µs, too short for {number} frames")
    if split_by == "number":
        counts = utils.integrate_events_by_fixed_frames_number(
            events, split_by, number, sensor, sensor
        )
        return counts.astype(np.int64)
    # spikingjelly's own division by time stops at a part without events; its edges are the same.
    step = (time[-1] - time[0]) // number
    edges = np.searchsorted(time, time[0] + step * np.arange(1, number))
    bounds = zip([0, *edges], [*edges, len(time)], strict=True)
    x, y, p = (events[key] for key in "xyp")
    frames = [
        utils.integrate_events_segment_to_frame(x, y, p, sensor, sensor, first, last)
        for first, last in bounds
    ]
    return np.stack(frames).astype(np.int64)


def _checked(events: Events, sensor: int) -> dict[str, np.ndarray]:
    """``events`` as whole numbers, int64; raises a ValueError for what cannot be events."""
    import numpy as np

    arrays = {key: np.asarray(events[key]) for key in "txyp"}
    shapes = {key: values.shape for key, values in arrays.items()}
    if len(set(shapes.values())) > 1 or len(shapes["t"]) != 1:
        found = ", ".join(f"{key} {shape}" for key, shape in shapes.items())
        raise ValueError(f"one t, x, y and p an event are needed, and their shapes are {found}")
    ends = {"x": sensor, "y": sensor, "p": 2}
    for key, values in arrays.items():
        if values.dtype.kind not in "buif":
            raise ValueError(f"{key} holds no numbers ({values.dtype})")
        good = np.isfinite(values)
        if key in ends:
            good &= (values >= 0) & (values < ends[key]) & (values == np.floor(values))
        if not good.all():
            wrong = values[~good][0].item()
            raise ValueError(
                f"an event at {key} = {wrong}, on {sensor} × {sensor} pixels"
                if key in "xy"
                else f"an event with {key} = {wrong}" + (", expected 0 or 1" if key == "p" else "")
            )
    return {key: values.astype(np.int64) for key, values in arrays.items()}


def as_bytes(counts: np.ndarray) -> np.ndarray:
    """Counts as bytes; above 255, 255."""
    import numpy as np

    return np.minimum(counts, 255).astype(np.uint8)


def resized(frames: np.ndarray, size: int) -> np.ndarray:
    """Frames ``[..., H, H]`` cut out of the middle, or with pixels that see nothing around them."""
    import numpy as np

    missing = size - frames.shape[-1]
    if missing < 0:
        start = -missing // 2
        return frames[..., start : start + size, start : start + size]
    before = missing // 2
    around = (before, missing - before)
    return np.pad(frames, [(0, 0)] * (frames.ndim - 2) + [around, around])


def binned(frames: np.ndarray, size: int) -> np.ndarray:
    """Counts of squares of pixels, ``[..., H, H]`` → ``[..., size, size]``."""
    factor = frames.shape[-1] // size
    shape = (*frames.shape[:-2], size, factor, size, factor)
    return frames.reshape(shape).sum((-3, -1))


def frames_of(
    recordings: Recordings,
    how: Mapping[str, Any],
    frames_in: Callable[[Path], list[tuple[int, np.ndarray]]],
) -> Frames:
    """From where they are kept, or made now by ``frames_in``; ``how`` tells one way from others.

    Raises:
        DataError: for recordings that cannot be used, and where there is no place to keep frames.
    """
    files = [file for part in recordings.files.values() for file in part]
    places = cache_places(recordings.root, files, "frames", json.dumps(how, sort_keys=True))

    def make(place: Path) -> Frames:
        _log.info("making frames of %s once, into %s", recordings.root, place.parent)
        _make(recordings, frames_in, place)
        if (made := _read(place)) is None:
            raise DataError(f"{place}: frames were made, and are gone")
        return made

    found = kept(places, _read, make)
    if found is None:
        tried = " nor in ".join(str(place.parent) for place in places)
        raise DataError(f"{recordings.root}: its frames cannot be kept, neither in {tried}")
    return found


def _read(place: Path) -> Frames | None:
    import numpy as np

    try:
        facts = json.loads(place.with_suffix(".json").read_text(encoding="utf-8"))
        frames = np.load(place.with_suffix(".npy"), mmap_mode="c")  # one copy for all processes
        labels = {s: np.array(numbers, np.int64) for s, numbers in facts["labels"].items()}
        ends = np.cumsum([0, *(len(numbers) for numbers in labels.values())])
        parts = zip(labels, ends[:-1], ends[1:], strict=True)
        found: Fingerprint = {"counts": facts["counts"], "digest": facts["digest"]}
        return {split: frames[start:end] for split, start, end in parts}, labels, found
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        _log.warning("%s is broken (%s): making frames again", place, error)
        return None


def _make(
    recordings: Recordings,
    frames_in: Callable[[Path], list[tuple[int, np.ndarray]]],
    place: Path,
) -> None:
    """Write frames, sample by sample, and then what is known of them."""
    import numpy as np

    labels: dict[str, list[int]] = {split: [] for split in recordings.files}
    digests: dict[str, list[bytes]] = {split: [] for split in recordings.files}
    samples = sum(sum(classes) for classes in recordings.counts.values())
    array: np.memmap | None = None
    clipped = at = 0

    def work(file: Path) -> tuple[list[tuple[int, np.ndarray]], bytes]:
        try:
            return frames_in(file), hashlib.sha256(file.read_bytes()).digest()
        except OSError as error:  # not of the cache
            raise DataError(f"{file}: cannot be read ({error.strerror})") from error

    with (
        replacing(place.with_suffix(".npy")) as kept_in,
        progress(f"frames of {recordings.root}", samples, "samples") as tell,
    ):
        for split, files in recordings.files.items():
            for found, digest in in_order(work, files):
                for label, counts in found:
                    if array is None:
                        array = mapped_bytes(kept_in, (samples, *counts.shape))
                    clipped += int((counts > 255).sum())
                    array[at] = as_bytes(counts)
                    at += 1
                    labels[split].append(label)
                    digests[split].append(digest)
                tell(len(found))
        if array is None:
            raise DataError(f"{recordings.root}: no recordings")
        array.flush()
    if clipped:
        _log.warning("%s: %d counts above 255 are kept as 255", recordings.root, clipped)
    sets = {
        split: (np.frombuffer(b"".join(digests[split]), np.uint8), np.array(labels[split]))
        for split in labels
    }
    content = json.dumps({**fingerprint(sets), "labels": labels}).encode()
    replace_file(place.with_suffix(".json"), lambda file: file.write(content))


def in_order(work: Callable[[_Item], _Result], items: Sequence[_Item]) -> Iterator[_Result]:
    """``work`` done by as many threads as there are cores, few items ahead of the results."""
    threads = usable_cpus()
    waiting: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > 4 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
