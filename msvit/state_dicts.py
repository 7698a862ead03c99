"""Files with tensors in them, and the state dict in them that is meant.

Training scripts save the weights together with whatever they need to go on: arguments, optimizer,
scores, an averaged copy. What is meant is found by looking: the mapping whose names fit a model
best, and the wrappers' part in front of the names. Nothing in a file is ever executed.
"""

from __future__ import annotations

import _codecs
import argparse
import collections
import datetime
import pathlib
import re
import types
import zipfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_DEPTH = 10  # of mappings inside mappings; one may hold itself
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Attributes under which torch's own wrappers hold what they wrap, at any place of a name."""
_PREFERRED = re.compile(r"(?:^|[._])(?:ema|best)(?:[._]|$)")


_BIT_GENERATORS = (
    *(("_mt19937", "MT19937"), ("_pcg64", "PCG64"), ("_pcg64", "PCG64DXSM")),
    *(("_philox", "Philox"), ("_sfc64", "SFC64")),
)
_OTHER_FORMATS = {
    b"version https://git-lfs": "a Git LFS pointer: git lfs pull brings the file itself",
    b"\x1f\x8b": "compressed by gzip: unpack it",
    b"BZh": "compressed by bzip2: unpack it",
    b"\xfd7zXZ": "compressed by xz: unpack it",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: unpack it",
    b"<": "a web page",
}
"""What files open with that are mistaken for checkpoints."""


class CheckpointError(ValueError):
    """A checkpoint that does not fit; the message names the file and what is wrong first."""


class _Left:
    """Stands for what is of no use here, whatever it is made of."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _harmless() -> list[Any]:
    """Globals, by name, that only hold or make plain values: those of arguments and scores."""
    old, new = "numpy.core.multiarray", "numpy._core.multiarray"
    core: Any = np._core if hasattr(np, "_core") else np.core
    multiarray = core.multiarray
    numbers = [
        dtype
        for name, dtype in vars(np.dtypes).items()
        if name.endswith("DType") and name not in ("ObjectDType", "VoidDType")
    ]
    paths = [
        (pathlib.PurePosixPath, f"{module}.{name}")
        for module in ("pathlib", "pathlib._local")
        for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    ]
    settings = [  # dictionaries whose items are attributes as well
        "yacs.config.CfgNode",
        "easydict.EasyDict",
        "pytorch_lightning.utilities.parsing.AttributeDict",
        "lightning_fabric.utilities.data.AttributeDict",
        "lightning.fabric.utilities.data.AttributeDict",
    ]
    generators = [  # numpy's, of random numbers
        "numpy.random._pickle.__generator_ctor",
        "numpy.random._pickle.__randomstate_ctor",
        "numpy.random._pickle.__bit_generator_ctor",
        "numpy.random.bit_generator.SeedSequence",
        "numpy.random.bit_generator.__pyx_unpickle_SeedSequence",
        *(f"numpy.random.{module}.{name}" for module, name in _BIT_GENERATORS),
    ]
    return [
        argparse.Namespace,
        types.SimpleNamespace,
        *(slice, range, frozenset, dict, list),
        *(datetime.datetime, datetime.date, datetime.time, datetime.timedelta, datetime.timezone),
        (lambda *_: [], "collections.deque"),
        (lambda *_: collections.OrderedDict(), "collections.defaultdict"),
        (_codecs.encode, "_codecs.encode"),  # bytes, in old pickles
        *((multiarray.scalar, f"{module}.scalar") for module in (old, new)),
        *((multiarray._reconstruct, f"{module}._reconstruct") for module in (old, new)),
        np.ndarray,
        np.dtype,
        *numbers,
        *paths,
        *((collections.OrderedDict, name) for name in settings),
        *((_Left, name) for name in generators),
    ]


def read_checkpoint(path: Path) -> Any:
    """What a file of torch or safetensors holds, tensors on the CPU.

    Read with ``weights_only=True``, so that a hostile file cannot run code.

    Raises:
        CheckpointError: if the file cannot be read as plain data.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: {'a folder, not' if path.is_dir() else 'no such'} file")
    try:
        if _is_safetensors(path):
            from safetensors.torch import load_file

            return load_file(path)
        with torch.serialization.safe_globals(_harmless()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # truncated, foreign or hostile: pickle raises anything
        message = str(error)
        if code := re.search(r"GLOBAL (\S+)", message):
            raise CheckpointError(
                f"{path}: not plain data, reading it would run {code[1]}; have the code that "
                "wrote it save model.state_dict() instead"
            ) from None
        lines = message.rpartition("WeightsUnpickler error:")[2].strip().splitlines()
        reason = lines[0].partition(". ")[0] if lines else repr(error)
        if reason.startswith("Unsupported operand"):
            reason = "written neither by torch.save nor as safetensors"
        raise CheckpointError(
            f"{path}: not a checkpoint of plain tensors ({_other_format(path) or reason})"
        ) from None


def _other_format(path: Path) -> str | None:
    with path.open("rb") as file:
        start = file.read(max(map(len, _OTHER_FORMATS)))
    if not start:
        return "empty"
    if start.startswith(b"PK") and not zipfile.is_zipfile(path):
        return "cut short, its end is missing"
    return next((told for mark, told in _OTHER_FORMATS.items() if start.startswith(mark)), None)


def _is_safetensors(path: Path) -> bool:
    """The format opens with the length of a JSON header, in eight bytes."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


@dataclass(frozen=True)
class StateDict:
    """A state dict found in a checkpoint, its names without what wrappers put before them."""

    where: str
    """Its place, such as ``state_dict_ema``; empty where it is all there is."""
    tensors: Mapping[str, Tensor]
    found: int
    """How many of the names that were looked for it has."""
    left: list[str]
    """What stands beside it in the checkpoint, by place and name."""

    @property
    def preferred(self) -> bool:
        """Averaged over training, or the best by validation: of two, what scores were given for."""
        return _PREFERRED.search(self.where) is not None


def find_state_dicts(content: Any, names: Collection[str]) -> list[StateDict]:
    """All in ``content`` (mappings, lists, tensors) that have any of the ``names``."""
    found = []
    for place, mapping in _mappings(content):
        tensors = {str(k): v for k, v in mapping.items() if isinstance(v, Tensor)}
        tensors = _without_wrappers(tensors, names)
        for prefix, count in _prefixes(tensors, names).items():
            inside = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            others = [k for k in tensors if not k.startswith(prefix)]
            where = _joined(*place, prefix.rstrip("."))
            left = _beside(content, place) + [_joined(*place, key) for key in others]
            found.append(StateDict(where, inside, count, left))
    return found


def tensor_names(content: Any, kind: type = Tensor) -> list[str]:
    """Names of the tensors (or another kind) in that mapping of ``content`` that has most."""
    names = [[str(k) for k, v in m.items() if isinstance(v, kind)] for _, m in _mappings(content)]
    return max(names, key=len, default=[])


def _mappings(content: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[tuple, Mapping]]:
    """Every mapping in ``content``, itself included, with the keys that lead there."""
    if isinstance(content, Mapping):
        yield place, content
    if len(place) < _DEPTH:
        for key, value in _items(content):
            yield from _mappings(value, (*place, key))


def _items(content: Any) -> list[tuple[Any, Any]]:
    if isinstance(content, Mapping):
        return list(content.items())
    return list(enumerate(content)) if isinstance(content, list | tuple) else []


def _beside(content: Any, place: tuple[Any, ...]) -> list[str]:
    """What is not on the way to ``place``, and what in it is no tensor."""
    beside = []
    for depth, key in enumerate(place):
        beside += [_joined(*place[:depth], other) for other, _ in _items(content) if other != key]
        content = content[key]
    beside += [_joined(*place, k) for k, v in _items(content) if not isinstance(v, Tensor)]
    return beside


def _joined(*parts: Any) -> str:
    return ".".join(str(part) for part in parts if part != "")


def _without_wrappers(tensors: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    def bare(name: str) -> str:
        if name in names:
            return name
        return ".".join(part for part in name.split(".") if part not in _WRAPPERS)

    unwrapped = {bare(name): tensor for name, tensor in tensors.items()}
    return unwrapped if len(unwrapped) == len(tensors) else dict(tensors)


def _prefixes(tensors: Mapping[str, Tensor], names: Collection[str]) -> dict[str, int]:
    """What stands before ``names``, with how many of them: the most frequent, and its equals."""
    counts: collections.Counter[str] = collections.Counter()
    for key in tensors:
        start = 0
        while True:
            if key[start:] in names:
                counts[key[:start]] += 1
            dot = key.find(".", start)
            if dot < 0:
                break
            start = dot + 1
    most = max(counts.values(), default=0)
    return {prefix: count for prefix, count in counts.items() if 2 * count > most}
