"""Measures cases one after the other in one process: a GPU's context takes longer than a case.

Reads a task per line, JSON, and answers each with a line.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from typing import Any

import torch
from spikingjelly.activation_based.functional import reset_net
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.nn.functional import cross_entropy

from msvit import create_model, kernels
from msvit.precision import Precision, choose_precision
from msvit.recipes import TrainingOptions
from msvit.runtime import prepare_process, reset_peak_memory, training_device
from msvit.training.batches import Normalise
from msvit.training.environment import device_name, processor_name
from msvit.training.graph import WARM_UP
from msvit.training.optimization import Rates, make_optimizer
from msvit.training.step import Scores, TrainingStep, choose_recorder
from studies.plain_models import plain_model
from studies.timing.gpu_cases import EAGER, PLAIN
from studies.timing.probes import copy_bandwidth, count_work, product_peak, wait_for

_ROUNDS = 3
_MOST_STEPS = 100


def serve() -> None:
    """Answer tasks until the input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints is no answer
    prepare_process()
    for line in sys.stdin:
        task = json.loads(line)
        try:
            found = {"limits": _limits, "case": _case}[task.pop("kind")](task)
        except Exception as error:  # the next case may well go
            found = {"problem": f"{type(error).__name__}: {str(error).strip()[:300]}"}
        print(json.dumps(found), file=answers, flush=True)
        _forget()


def _limits(task: dict[str, Any]) -> dict[str, Any]:
    """Measured peaks of the device: products in GFLOP/s by precision, a copy in GB/s."""
    device, quick = training_device(), task["quick"]
    found: dict[str, Any] = {"device": device_name(device), "torch": torch.__version__}
    found |= {"processor": processor_name(), "products": {}, "labels": {}}
    for precision in ("bf16", "tf32", "fp32"):
        found["labels"][precision] = choose_precision(precision, device).label
        found["products"][precision] = product_peak(precision, device, quick)
    return found | {"copy": copy_bandwidth(device, quick)}


def _case(task: dict[str, Any]) -> dict[str, Any]:
    """Seconds of a step in every round, peak memory, what ran, and the kernels of one step."""
    device = training_device()
    torch.manual_seed(0)
    precision = choose_precision(task["precision"], device)
    plain = task["variant"] == PLAIN
    make = plain_model if plain else create_model
    model = make(task["model"], **task["options"]).to(device)
    reset_peak_memory(device)
    shape = (task["batch"], task["channels"], task["image_size"], task["image_size"])
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    labels = torch.randint(0, 10, (task["batch"],), device=device)
    normalise = Normalise((0.5,) * shape[1], (0.25,) * shape[1], device)
    prepare = _plain_step if plain else _our_step
    step, how = prepare(task, model, images, labels, normalise, precision)
    began = time.perf_counter()
    for _ in range(WARM_UP + 2):  # compiles, fills the allocator, records
        step()
    wait_for(device)
    found: dict[str, Any] = {"warm_up": time.perf_counter() - began}
    found["seconds"] = _time_rounds(step, task["seconds"], device)
    if device.type == "cuda":
        found["peak_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
        found["held_gb"] = torch.cuda.max_memory_reserved(device) / 1e9
    found["how"] = how()
    if not plain:
        found["kernels"] = kernels.describe(model, device, precision.dtype)
    if task["profile"]:
        found["profile"] = _profile(step, device)
    found["work"] = _work(task["model"], json.dumps(task["options"]))
    return found


@cache
def _work(model: str, options: str) -> dict[str, Any]:
    return asdict(count_work(model, json.loads(options), training_device()))


def _time_rounds(step: Callable[[], object], seconds: float, device: torch.device) -> list[float]:
    """Seconds per step of several rounds of as many steps as take so long altogether."""
    start = time.perf_counter()
    step()
    wait_for(device)
    once = time.perf_counter() - start
    steps = max(1, min(_MOST_STEPS, int(seconds / _ROUNDS / once)))
    found = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        for _ in range(steps):
            step()
        wait_for(device)
        found.append((time.perf_counter() - start) / steps)
    return sorted(found)


def _our_step(
    task: dict[str, Any],
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    normalise: Normalise,
    precision: Precision,
) -> tuple[Callable[[], object], Callable[[], str]]:
    """A step as training does it, and how it ran."""
    recorder, eager = choose_recorder(precision, images.device)
    if task["variant"] == EAGER:
        recorder = None
    if task["mode"] == "infer":
        scores = Scores(model.eval(), normalise, precision, recorder)
        return lambda: _without_gradient(scores, images, labels), lambda: scores.how
    options = TrainingOptions.parse({}, "training")
    optimizer = make_optimizer(model, options, images.device)
    rates = Rates(optimizer, options, 1000, images.device)
    step = TrainingStep(model.train(), options, optimizer, normalise, precision, recorder, eager)

    def run() -> None:
        rates.set(0)
        step(images, labels)

    return run, lambda: step.how


@torch.no_grad()
def _without_gradient(scores: Scores, images: Tensor, labels: Tensor) -> None:
    scores(images, labels)


def _plain_step(
    task: dict[str, Any],
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    normalise: Normalise,
    precision: Precision,
) -> tuple[Callable[[], object], Callable[[], str]]:
    """The same work as a user of spikingjelly writes it."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    training = task["mode"] == "train"
    model.train(training)

    def run() -> None:
        with torch.set_grad_enabled(training), precision.autocast(images.device):
            logits = model(normalise(images))
            loss = cross_entropy(logits.float(), labels)
        if training:
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        reset_net(model)

    return run, lambda: "eager"


def _profile(step: Callable[[], object], device: torch.device) -> list[tuple[str, int, float]]:
    """Kernels of one step: name, launches, seconds; of operators on a CPU."""
    activity = torch.profiler.ProfilerActivity
    gpu = device.type == "cuda"
    activities = [activity.CPU, activity.CUDA] if gpu else [activity.CPU]
    with torch.profiler.profile(activities=activities) as profiler:
        step()
        wait_for(device)
    wanted = DeviceType.CUDA if gpu else DeviceType.CPU
    events = [e for e in profiler.key_averages() if e.device_type == wanted]
    times = [e.self_device_time_total if gpu else e.self_cpu_time_total for e in events]
    found = [(e.key, e.count, us / 1e6) for e, us in zip(events, times, strict=True)]
    return sorted(found, key=lambda kernel: -kernel[2])


def _forget() -> None:
    """Give back what the last case took of the device; ends the process if that is broken."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    serve()
