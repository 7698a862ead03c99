"""Compile C++ at first use and keep the library in the user's cache folder.

A library is named by a hash of source, flags, compiler and processor, written under another name
and renamed when complete, so that any number of processes may start at once. What cannot be
compiled or kept costs one log line, never an error: the plain path takes over. What the sources
share with Python (surrogates and their numbers, fields of a neuron) reaches them as definitions.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

from msvit import processor
from msvit.files import cache_folder
from msvit.neuron_kinds import SURROGATES

logger = logging.getLogger(__name__)

FOLDER = Path(__file__).parent
SOURCES = sorted((*FOLDER.glob("*.cpp"), *FOLDER.glob("*.h")))
# No -ffast-math: a NaN has to be seen in the loss, and sums are to keep their order.
FLAGS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
NATIVE = ("-march=native",)
OPENMP = ("-fopenmp",)
STORAGE = {torch.float32: "float", torch.float64: "double", torch.bfloat16: "bf16"}
# Of a neuron, in the order in which passes.py hands them over: integers, then doubles.
NEURON_FLAGS = ("leaks", "decay_input", "divides", "hard_reset", "detach_reset", "surrogate")
NEURON_NUMBERS = ("tau", "decay", "threshold", "alpha")


@cache
def units(dtype: torch.dtype) -> ctypes.CDLL | None:
    """The compiled passes for activations of ``dtype``, None if impossible."""
    if dtype not in STORAGE:
        return None
    flags = (
        "-std=c++17",
        f"-DSTORAGE={STORAGE[dtype]}",
        f"-DSURROGATES={','.join(SURROGATES).upper()}",
        f"-DNEURON_FLAGS={','.join(NEURON_FLAGS)}",
        f"-DNEURON_NUMBERS={','.join(NEURON_NUMBERS)}",
    )
    name = f"units-{STORAGE[dtype]}"
    return _library("units.cpp", name, flags, "spiking units run on the plain path")


@cache
def sparse_products(dtype: torch.dtype) -> ctypes.CDLL | None:
    """The compiled products of spikes for activations of ``dtype``, None if impossible."""
    if dtype not in STORAGE:
        return None
    # Its one hot loop is unrolled by a pragma: -O3 takes longer and gains nothing.
    flags = ("-O2", "-std=c++17", f"-DSTORAGE={STORAGE[dtype]}")
    name = f"products-{STORAGE[dtype]}"
    return _library("sparse_products.cpp", name, flags, "spikes are multiplied densely")


@cache
def allocator() -> ctypes.CDLL | None:
    """The compiled memory allocator, None if impossible."""
    torch_folder = Path(torch.__file__).parent
    flags = ("-std=c++20", f"-I{torch_folder / 'include'}", f"-L{torch_folder / 'lib'}", "-lc10")
    name = f"allocator-torch-{torch.__version__}"
    return _library(
        "allocator.cpp", name, flags, "freed memory is not used again as well as it might"
    )


def _library(source: str, name: str, flags: tuple[str, ...], without: str) -> ctypes.CDLL | None:
    program = compiler()
    if program is None:
        warn_once("spiking units run on the plain path: no C++ compiler found")
        return None
    try:
        return _load(program, source, name, flags)
    except (OSError, subprocess.SubprocessError) as error:
        warn_once(f"{without}: {error}")
        return None


@cache
def compiler() -> str | None:
    """Path of the C++ compiler: ``$CXX``, or the system's."""
    names = (os.environ.get("CXX"), "c++", "g++", "clang++")
    return next((path for name in names if name and (path := shutil.which(name))), None)


@cache  # one line, not one for every storage type
def warn_once(message: str) -> None:
    logger.warning(message)


def _load(program: str, source: str, name: str, flags: tuple[str, ...]) -> ctypes.CDLL:
    name = f"{name}-{_key(program, flags)}.so"
    try:
        folder = cache_folder()
    except RuntimeError as error:  # nobody's home
        logger.info("no folder to keep compiled kernels in (%s)", error)
        return _compiled_aside(program, source, name, flags)
    kept = folder / name
    if kept.exists():
        try:
            return ctypes.CDLL(str(kept))
        except OSError:
            logger.info("%s is damaged and is compiled again", kept)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = _compile(program, source, flags, Path(scratch) / name)
            os.replace(made, kept)
        return ctypes.CDLL(str(kept))
    except OSError as error:
        logger.info("%s cannot keep compiled kernels (%s)", folder, error)
    return _compiled_aside(program, source, name, flags)


def _compiled_aside(program: str, source: str, name: str, flags: tuple[str, ...]) -> ctypes.CDLL:
    # A loaded library outlives its file.
    with tempfile.TemporaryDirectory() as scratch:
        return ctypes.CDLL(str(_compile(program, source, flags, Path(scratch) / name)))


def _compile(program: str, source: str, flags: tuple[str, ...], target: Path) -> Path:
    # Apple's compiler has no OpenMP, some have no "native": less speed, same results.
    for optional in ((*NATIVE, *OPENMP), NATIVE, OPENMP, ()):
        command = [program, *FLAGS, *optional, str(FOLDER / source), *flags, "-o", str(target)]
        if optional[-1:] == OPENMP:
            command += _openmp_runtime()
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if done.returncode == 0:
            return target
    errors = [line for line in done.stderr.splitlines() if "error" in line]
    raise subprocess.SubprocessError(f"{program} failed: {(errors or ['no message'])[0]}")


def _openmp_runtime() -> list[str]:
    """Link to the OpenMP runtime that torch has loaded.

    Its name differs from the system's in torch's wheels. Two runtimes in one process would keep
    two pools of threads that wait for work on the same cores.
    """
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return []
    loaded = {line.split(maxsplit=5)[-1] for line in maps.splitlines() if "libgomp" in line}
    return ["-Wl,--as-needed", *sorted(loaded)] if len(loaded) == 1 else []


def _key(program: str, flags: tuple[str, ...]) -> str:
    version = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=60)
    parts = (
        *(path.read_text() for path in SOURCES),
        program,
        version.stdout,
        _processor(),
    )
    parts += (*flags, *FLAGS, *NATIVE, *OPENMP, *_openmp_runtime())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    """Everything that decides what ``-march=native`` means."""
    first = processor.description().splitlines()
    if not first:
        return f"{platform.machine()} {platform.processor()}"
    kept = ("model name", "flags", "Features", "CPU part", "CPU implementer")
    return "\n".join(line for line in first if line.startswith(kept)) + platform.machine()
