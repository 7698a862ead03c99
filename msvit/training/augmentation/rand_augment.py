"""RandAugment on a batch on the device: timm draws, the operations run on all its images at once.

Cubuk et al. 2020, arXiv 1909.13719. Operations and magnitudes of every image are those that timm
draws for one, from the global generators of ``random`` and ``numpy``. Images that get the same
operation get it together; it goes to the device in two copies a batch, and nothing waits for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from timm.data.auto_augment import rand_augment_transform
from torch import Tensor
from torchvision.transforms.v2 import functional

from msvit import workers
from msvit.recipes.rand_augment import OPERATIONS, RandAugmentSettings
from msvit.runtime import to_device
from msvit.training.augmentation import operations

Drawn = list[tuple[str, tuple[Any, ...]]]
"""The operations that one image gets, in order, with their arguments."""

_NUMBERS = 6  # that say what an operation does: those of a matrix

_ALONE: dict[str, Callable[[Tensor], Tensor]] = {
    "AutoContrast": functional.autocontrast,
    "Equalize": functional.equalize,
    "Invert": functional.invert,
}
_WITH_ARGUMENT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Posterize": operations.posterize,
    "Solarize": operations.solarize,
    "SolarizeAdd": operations.solarize_add,
    "Color": operations.adjust_color,
    "Contrast": operations.adjust_contrast,
    "Brightness": operations.adjust_brightness,
    "Sharpness": operations.adjust_sharpness,
}
_AFFINE = "affine"


class RandAugment:
    """uint8 images ``[B, C, H, W]`` (1 or 3 channels) → the same, augmented.

    ``mean`` is that of pixels in [0, 1], per channel: what moves in has this colour.
    """

    def __init__(
        self, text: str, mean: Sequence[float], device: torch.device, turns: int = 1
    ) -> None:
        """``turns`` as of :func:`msvit.workers.own`."""
        self._turns = turns
        settings = RandAugmentSettings.parse(text)
        only = OPERATIONS.get(settings.operations)
        self._timm = rand_augment_transform(
            settings.for_timm, {}, transforms=list(only) if only else None
        )
        for operation in self._timm.ops:
            operation.aug_fn = partial(_noted, operation.name)
        fill = [min(255, round(255 * x)) for x in mean]
        self._fill = torch.tensor(fill, dtype=torch.uint8, device=device)

    def __call__(self, images: Tensor) -> Tensor:
        drawn = [self.draw() for _ in range(len(images) * workers.count())]
        return self.apply(images, workers.own_of(drawn, self._turns))

    def draw(self) -> Drawn:
        """For one image."""
        return self._timm([])

    def apply(self, images: Tensor, drawn: Sequence[Drawn]) -> Tensor:
        """``images`` with what was drawn for each of them."""
        height, width = images.shape[-2:]
        groups = []
        for turn in range(max(map(len, drawn), default=0)):
            together: dict[str, tuple[list[int], list[tuple[float, ...]]]] = {}
            for image, own in enumerate(drawn):
                if turn < len(own):
                    kind, numbers = _in_numbers(*own[turn], width, height)
                    group = together.setdefault(kind, ([], []))
                    group[0].append(image)
                    group[1].append((*numbers, *[0.0] * (_NUMBERS - len(numbers))))
            groups += [(kind, *own) for kind, own in sorted(together.items())]
        if not groups:
            return images
        device, lengths = images.device, [len(own) for _, own, _ in groups]
        of_all = torch.tensor([image for _, own, _ in groups for image in own])
        rows = torch.tensor([row for _, _, own in groups for row in own], dtype=torch.float64)
        members, arguments = to_device(of_all, device), to_device(rows, device)
        result = images.clone()
        parts = zip(groups, members.split(lengths), arguments.split(lengths), strict=True)
        for (kind, _, _), at, numbers in parts:
            result.index_copy_(0, at, self._operate(kind, result.index_select(0, at), numbers))
        return result

    def _operate(self, kind: str, images: Tensor, numbers: Tensor) -> Tensor:
        if kind == _AFFINE:
            return operations.affine(images, numbers, self._fill)
        if kind in _ALONE:
            return _ALONE[kind](images)
        return _WITH_ARGUMENT[kind](images, numbers[:, 0])


def _noted(name: str, drawn: Drawn, *arguments: Any, **_: Any) -> Drawn:
    """Stands in timm's operations for what they do to an image."""
    return [*drawn, (name, arguments)]


def _in_numbers(
    name: str, arguments: tuple[Any, ...], width: int, height: int
) -> tuple[str, tuple[float, ...]]:
    """What to call on the images of a batch, and its numbers for one of them."""
    match name:
        case "Rotate":
            return _AFFINE, operations.rotation(arguments[0], width, height)
        case "ShearX":
            return _AFFINE, (1.0, arguments[0], 0.0, 0.0, 1.0, 0.0)
        case "ShearY":
            return _AFFINE, (1.0, 0.0, 0.0, arguments[0], 1.0, 0.0)
        case "TranslateXRel":
            return _AFFINE, (1.0, 0.0, arguments[0] * width, 0.0, 1.0, 0.0)
        case "TranslateYRel":
            return _AFFINE, (1.0, 0.0, 0.0, 0.0, 1.0, arguments[0] * height)
    return name.removesuffix("Increasing"), tuple(map(float, arguments))
