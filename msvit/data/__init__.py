"""Data sets: a registry of option sets, each of which knows how to load its images.

Importing this needs no torch: grids are checked before anything expensive starts. To add a
data set, write a :class:`~msvit.data.options.DataOptions` subclass in a file of its own and
list it in :data:`DATASETS`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msvit.data.cifar import Cifar10Options, Cifar100Options
from msvit.data.cifar10dvs import Cifar10DvsOptions
from msvit.data.digits import DigitsOptions
from msvit.data.dvs128 import Dvs128Options
from msvit.data.fashion_mnist import FashionMnistOptions
from msvit.data.fingerprint import describe_counts, fingerprint
from msvit.data.image_folder import ImageFolderOptions
from msvit.data.imagenet import ImageNetOptions
from msvit.data.nmnist import NmnistOptions
from msvit.data.options import DataOptions
from msvit.data.scale_textures import ScaleTexturesOptions
from msvit.data.simulated_events import SimulatedEventsOptions
from msvit.data.tiny_imagenet import TinyImageNetOptions
from msvit.options import ConfigError, DataError, unknown

if TYPE_CHECKING:
    from msvit.data.splits import Splits

DATASETS: dict[str, type[DataOptions]] = {
    options.name: options
    for options in (
        *(DigitsOptions, FashionMnistOptions, Cifar10Options, Cifar100Options),
        *(ImageNetOptions, TinyImageNetOptions, ImageFolderOptions),
        *(NmnistOptions, Cifar10DvsOptions, Dvs128Options),
        *(SimulatedEventsOptions, ScaleTexturesOptions),
    )
}
"""The registry: name → options, whose class says what the images are."""


def list_datasets() -> list[str]:
    """Names that ``data.name`` of a cell may have."""
    return sorted(DATASETS)


def data_options(name: str, options: Mapping[str, Any], where: str) -> DataOptions:
    """Options of data set ``name`` with every default filled in.

    ``where`` opens error messages, such as ``"scales.yaml: base.data"``.

    Raises:
        ConfigError: for an unknown data set or option, or an impossible value.
    """
    if name not in DATASETS:
        raise ConfigError(where, "name", unknown(name, DATASETS, f"unknown data set {name!r}"))
    return DATASETS[name].parse(options, where)


def options_of(section: Mapping[str, Any]) -> DataOptions:
    """Options of a cell's ``data`` section, which has ``name`` among them.

    Raises:
        ConfigError: for an unknown data set or option, or an impossible value.
    """
    options = {key: value for key, value in section.items() if key != "name"}
    return data_options(section["name"], options, "data")


def check_data(data: Iterable[Mapping[str, Any]], data_dir: Path | None) -> None:
    """Whether the images of cells are there: their ``data`` sections, ``name`` among the options.

    Raises:
        DataError: where files are missing or cannot be opened; the message names them.
    """
    for options in _each(data):
        options.check(data_dir)


def prepare_data(data: Iterable[Mapping[str, Any]], data_dir: Path | None) -> None:
    """Have the images of cells decoded, where that is done once: before the cells, not by one.

    Raises:
        DataError: where files are missing or broken; the message names them.
    """
    for options in _each(data):
        options.prepare(data_dir)


def sources_of_data(data: Iterable[Mapping[str, Any]], data_dir: Path | None) -> list[str]:
    """What would be read for cells: a line for each data set that lies in files, with counts."""
    found = []
    for options in _each(data):
        try:
            if (source := options.source(data_dir)) is None:
                continue
            counts = options.counts(data_dir)
        except DataError as error:
            found.append(f"{options.name}: {error}")
            continue
        images = "not counted yet" if counts is None else describe_counts(counts)
        found.append(f"{options.name}: {source}, {images}")
    return list(dict.fromkeys(found))


def notes_on_data(data: Iterable[Mapping[str, Any]], data_dir: Path | None) -> list[str]:
    """What to know of the images of cells first: all there is, and what their name says?"""
    found = []
    for options in _each(data):
        counts = options.counts(data_dir)
        unlike = options.unlike_published(counts) if counts is not None else None
        for note in (options.remark, unlike, options.left_out(data_dir)):
            if note is not None and note not in found:
                found.append(note)
    return found


def _each(data: Iterable[Mapping[str, Any]]) -> Iterator[DataOptions]:
    """The options of every data set of some cells' ``data`` sections, each once."""
    seen: list[Mapping[str, Any]] = []
    for section in data:
        if section not in seen:
            seen.append(section)
            yield options_of(section)


def load_splits(options: DataOptions, data_dir: Path | None = None) -> Splits:
    """The train, validation and test images of a data set.

    Raises:
        DataError: where files are missing or broken; the message names them.
    """
    splits = options.load(data_dir)
    if splits.fingerprint is not None:
        return splits
    parts = {name: getattr(splits, name) for name in ("train", "validation", "test")}
    sets = {name: images.arrays() for name, images in parts.items()}
    return replace(splits, fingerprint=fingerprint(sets))
