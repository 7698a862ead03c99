"""Events that an event camera would see of still images before which it moves: simulated.

The camera goes once around a triangle in three straight saccades, as the one that recorded N-MNIST
did (Orchard et al. 2015, Frontiers in Neuroscience 9:437), each image's triangle turned by an angle
of its own. A pixel fires whenever the logarithm of its intensity has gone up (ON) or down (OFF) by
the threshold since it last fired (Lichtsteiner et al. 2008, IEEE JSSC 43:566). Thresholds are exact
and there is no noise: what follows from these data holds for simulated events only.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field, model_validator

from msvit.data.events import COUNTS, EventOptions
from msvit.data.fingerprint import Fingerprint
from msvit.data.options import DataOptions
from msvit.options import DataError, later, unknown

if TYPE_CHECKING:
    import torch

    from msvit.data.splits import Images, Samples, Splits

_DARK = 0.1
"""Added to intensities in [0, 1]: what a pixel sees of nothing, so that logarithms exist."""

_STEP = 0.25  # pixels that the camera moves at most between two looks
_GREY = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)
_CHUNK = 256  # images at a time; what comes out does not depend on it


def still_images() -> dict[str, type[DataOptions]]:
    """Data sets before which the camera can move: of images, which may fit into memory."""
    from msvit.data import DATASETS  # the registry, of which this is a part

    return {
        name: options
        for name, options in DATASETS.items()
        if not options.events and getattr(options, "streams", None) is not True
    }


class SimulatedEventsOptions(EventOptions):
    """The images of data set ``images``, divided as there, before a camera that moves.

    ``image_size`` is theirs, where they have the option, and ``image_classes`` the number of their
    classes, where they do not say it themselves. ``threshold`` is the change of
    log intensity that fires a pixel, ``amplitude`` the distance in pixels of the triangle's corners
    from its centre. ``frames_number`` frames take equal times.
    """

    name: ClassVar[str] = "simulated_events"
    mean: ClassVar[tuple[float, ...]] = (0.0, 0.0)
    std: ClassVar[tuple[float, ...]] = (COUNTS, COUNTS)
    remark: ClassVar[str] = (
        "simulated_events are simulated, not recorded: still images before which an ideal event "
        "camera moves"
    )

    images: str = "digits"
    image_classes: int | None = later(None, ge=2, le=65_536)
    image_size: int = Field(16, ge=8, le=1024)
    threshold: float = Field(0.2, gt=0, le=10)
    amplitude: float = Field(2.0, gt=0, le=32)

    @model_validator(mode="before")
    @classmethod
    def _size_of_stills(cls, values: Any) -> Any:
        """Images without the option have one size; others one that is usual."""
        name = values.get("images", "digits") if isinstance(values, dict) else None
        known = still_images().get(name) if isinstance(name, str) else None
        if known is None or "image_size" in values:
            return values
        field = known.model_fields.get("image_size")
        usual = field.get_default() if field else known.image_size  # type: ignore[attr-defined]
        return {**values, "image_size": usual}

    @model_validator(mode="after")
    def _stills_take_it(self) -> Self:
        stills = still_images()
        if self.images not in stills:
            message = unknown(self.images, stills, f"no still images {self.images!r}")
            raise ValueError(f"images: {message}")
        if self.image_classes is not None and "num_classes" not in stills[self.images].model_fields:
            raise ValueError(f"image_classes: {self.images} has as many classes as it has")
        size = self._stills.image_size  # type: ignore[attr-defined]
        if self.image_size != size:
            raise ValueError(f"image_size: that of {self.images} is {size}")
        return self

    @property
    def _stills(self) -> DataOptions:
        kind = still_images()[self.images]
        options = {"train_per_class": self.train_per_class, "image_size": self.image_size}
        if self.image_classes is not None:
            options["num_classes"] = self.image_classes
        own = {key: value for key, value in options.items() if key in kind.model_fields}
        return kind.parse(own, "data")

    @property
    def num_classes(self) -> int:  # type: ignore[override]  # theirs
        return self._stills.num_classes

    def check(self, data_dir: Path | None) -> None:
        self._stills.check(data_dir)

    def counts(self, data_dir: Path | None) -> dict[str, list[int]] | None:
        return self._stills.counts(data_dir)

    def unlike_published(  # type: ignore[override]  # which images they are is an option
        self, counts: Mapping[str, Sequence[int]]
    ) -> str | None:
        return self._stills.unlike_published(counts)

    def left_out(self, data_dir: Path | None) -> str | None:
        return self._stills.left_out(data_dir)

    def source(self, data_dir: Path | None) -> str | None:
        return self._stills.source(data_dir)

    def prepare(self, data_dir: Path | None) -> None:
        self._stills.prepare(data_dir)

    def fingerprint(self, data_dir: Path | None) -> Fingerprint | None:
        return self._stills.fingerprint(data_dir)

    def load(self, data_dir: Path | None) -> Splits:
        from msvit.data.splits import Splits

        stills = self._stills.load(data_dir)
        parts = (stills.train, stills.validation, stills.test)
        train, validation, test = (self._seen(part) for part in parts)
        return Splits(train, validation, test, self.mean, self.std, stills.fingerprint)

    def _seen(self, images: Samples) -> Images:
        import torch

        from msvit.data.splits import Images

        if not isinstance(images, Images):
            raise DataError(f"{self.images}: too many images to be held in memory for a camera")
        frames = torch.empty(
            (len(images), self.frames_number, 2, *images.images.shape[-2:]), dtype=torch.uint8
        )
        for start in range(0, len(images), _CHUNK):
            part = slice(start, start + _CHUNK)
            light = grey(images.images[part])
            angles = angles_of(images.images[part])
            counts = camera(light, angles, self.frames_number, self.threshold, self.amplitude)
            frames[part] = counts.clamp(max=255).to(torch.uint8)
        return Images(frames, images.labels)


def angles_of(images: torch.Tensor) -> torch.Tensor:
    """An angle for each of ``images``, of which its bytes are the seed: float32 ``[N]``.

    It is the same whatever other images there are.
    """
    import torch

    draws = [zlib.crc32(image.numpy().tobytes()) / 2**32 for image in images]
    return torch.tensor(draws) * (2 * math.pi)


def grey(images: torch.Tensor) -> torch.Tensor:
    """Intensity in [0, 1], ``[N, H, W]``, of bytes ``[N, C, H, W]``, grey or in colours."""
    import torch

    light = images.float() / 255
    if light.shape[1] == 1:
        return light[:, 0]
    return (light * torch.tensor(_GREY).view(1, 3, 1, 1)).sum(1)


def camera(
    light: torch.Tensor, angles: torch.Tensor, frames: int, threshold: float, amplitude: float
) -> torch.Tensor:
    """Events of intensities ``[N, H, W]`` (0 to 1), counted: int64 ``[N, frames, 2, H, W]``.

    ``angles`` ``[N]`` turn the triangle around which the camera moves; the picture goes on at its
    edges as it ends there. Channel 1 counts ON, channel 0 OFF: in each pixel, threshold × (all ON -
    all OFF) is the change of log intensity from begin to end, to less than one threshold.
    """
    import torch

    side = math.sqrt(3) * amplitude
    looks = max(1, math.ceil(3 * side / frames / _STEP))  # in each frame
    corners = angles[:, None] + torch.arange(4) * (2 * math.pi / 3)
    corners = amplitude * torch.stack([corners.cos(), corners.sin()], -1)  # [N, 4, 2]

    def seen(time: float) -> torch.Tensor:
        """Log intensity before the camera at ``time``, 0 to 1."""
        leg = min(int(3 * time), 2)
        part = 3 * time - leg
        place = (1 - part) * corners[:, leg] + part * corners[:, leg + 1]
        return (moved(light, place) + _DARK).log()

    fired_at = seen(0.0)
    counts = torch.zeros((len(light), frames, 2, *light.shape[1:]), dtype=torch.int64)
    for look in range(1, frames * looks + 1):
        change = (seen(look / (frames * looks)) - fired_at) / threshold
        fired = change.trunc()
        fired_at += fired * threshold
        frame = counts[:, (look - 1) // looks]
        frame[:, 1] += fired.clamp(min=0).long()
        frame[:, 0] += (-fired).clamp(min=0).long()
    return counts


def moved(light: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """``light`` ``[N, H, W]`` seen from ``place`` ``[N, 2]`` (x, y in pixels), bilinear."""
    import torch
    from torch.nn.functional import grid_sample

    height, width = light.shape[1:]
    x = torch.arange(width) - (width - 1) / 2 + place[:, :1]
    y = torch.arange(height) - (height - 1) / 2 + place[:, 1:]
    grid = torch.stack(
        [
            (x * (2 / width))[:, None, :].expand(-1, height, -1),
            (y * (2 / height))[:, :, None].expand(-1, -1, width),
        ],
        -1,
    )
    whole = grid_sample(light[:, None], grid, padding_mode="border", align_corners=False)
    return whole[:, 0]
