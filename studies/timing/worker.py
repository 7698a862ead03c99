"""One measurement in a process of its own: what ``studies/speed.py`` starts again and again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from spikingjelly.activation_based.functional import reset_net
from torch import nn
from torch.autograd import DeviceType
from torch.nn.functional import cross_entropy

from msvit import create_model, kernels, processor
from msvit.layers.norm import BatchNorm
from msvit.metrics.operations import OperationCounter
from msvit.precision import Precision, bf16_is_faster, choose_precision
from msvit.runtime import peak_memory_gb, prepare_process, reset_peak_memory, training_device
from studies.plain_models import plain_model
from studies.timing.cases import COMPILED, PRECISIONS
from studies.timing.probes import count_work, measure_peaks, wait_for

_MOST_STEPS = 50
_WARM_UP = 3  # a graph is compiled in its first run, recorded in its second


def run(task: dict[str, Any]) -> dict[str, Any]:
    """Do a task of :mod:`studies.timing.cases` and return what was found (plain JSON types)."""
    torch.manual_seed(0)
    return {"limits": _limits, "step": _time_steps, "profile": _profile}[task["kind"]](task)


def _limits(task: dict[str, Any]) -> dict[str, Any]:
    """Peaks of the machine at the task's threads, and the work of its models."""
    from msvit.training.environment import (
        device_name,
        processor_name,
    )  # the package takes seconds to load

    prepare_process()
    device = training_device()
    gpu = device.type == "cuda"
    found: dict[str, Any] = {"processor": device_name(device) if gpu else processor_name()}
    found |= {"gpu": gpu, "amx": not gpu and processor.multiplies_matrices(), "peaks": {}}
    found["bf16_faster"] = bf16_is_faster(device)
    # Compiled here, not while a step is timed.
    found["kernels"] = all(kernels.available(device, d) for d in (torch.float32, torch.bfloat16))
    for precision in PRECISIONS if gpu or processor.multiplies_bf16() else ("fp32",):
        found[precision] = choose_precision(precision, device).label
        found["peaks"][precision] = asdict(measure_peaks(precision, device, task["quick"]))
    found["work"] = {m: asdict(count_work(m, task["options"])) for m in task["models"]}
    return found


def _time_steps(task: dict[str, Any]) -> dict[str, Any]:
    device = training_device()
    model, step = _prepare(task, device)
    # Compiles, packs weights, fills the allocator.
    for _ in range(1 if task["variant"] != COMPILED and device.type == "cpu" else _WARM_UP):
        step()
    wait_for(device)
    if device.type == "cuda":
        reset_peak_memory(device)  # what compiling and recording took is not what a step takes
    seconds: list[float] = []
    while len(seconds) < task["least"] or (
        sum(seconds) < task["budget"] and len(seconds) < _MOST_STEPS
    ):
        start = time.perf_counter()
        step()
        wait_for(device)
        seconds.append(time.perf_counter() - start)
    found = {"seconds": seconds, "peak_gb": peak_memory_gb(device)}
    if task["variant"] == "ours":
        found["input_rate"] = _input_rate(model, step, task["batch"])
    return found


def _input_rate(model: nn.Module, step: Callable[[], None], images: int) -> float:
    """Spikes that come in per multiply-accumulate of a dense product, over one step.

    Analog inputs (the image) are left out.
    """
    counter = OperationCounter()
    handles = counter.attach(model)
    step()
    for handle in handles:
        handle.remove()
    rows = [row for row in counter.rows(images) if row["input"] != "analog"]
    return sum(row["acs"] for row in rows) / sum(row["dense_macs"] for row in rows)


def _profile(task: dict[str, Any]) -> dict[str, Any]:
    """Operators of one step with the seconds of each, without those that it calls."""
    device = training_device()
    _, step = _prepare(task, device)
    for _ in range(2):
        step()
    wait_for(device)
    activity = torch.profiler.ProfilerActivity
    gpu = device.type == "cuda"
    with torch.profiler.profile(
        activities=[activity.CPU, activity.CUDA] if gpu else [activity.CPU]
    ) as profiler:
        step()
        wait_for(device)
    # On a GPU an operator's time is that of the kernels that it starts.
    operators = [e for e in profiler.key_averages() if e.device_type == DeviceType.CPU]
    times = (e.self_device_time_total if gpu else e.self_cpu_time_total for e in operators)
    events = [(e.key, us / 1e6) for e, us in zip(operators, times, strict=True)]
    return {"operators": sorted(events, key=lambda event: -event[1])}


def _prepare(task: dict[str, Any], device: torch.device) -> tuple[nn.Module, Callable[[], None]]:
    """The model of the case, and a function that does one step.

    Ours runs as training does: allocator, threads and matmul setting of :mod:`msvit`. The
    plain model runs in torch's defaults, as the official scripts leave them.
    """
    ours = task["variant"] != "plain"
    if ours:
        prepare_process()
        precision = choose_precision(task["precision"], device)
        model: nn.Module = create_model(task["registry"], **task["options"])
    else:
        torch.set_num_threads(task["threads"])
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[task["precision"]]
        precision = Precision(dtype, task["precision"], task["precision"])
        model = plain_model(task["registry"], **task["options"])
    options = {"in_channels": 3, "image_size": 32} | task["options"]
    size = options["image_size"]
    images = torch.randn(task["batch"], options["in_channels"], size, size).to(device)
    labels = torch.randint(10, (task["batch"],)).to(device)
    _bias_norms(model, task["norm_bias"])
    model.to(device)
    if task["mode"] == "infer":
        return model, _inference_step(model, images, precision, ours)
    forward: Callable[[torch.Tensor], torch.Tensor] = model
    if task["variant"] == COMPILED:
        from msvit.training.compilation import compiled

        forward = compiled(model, "reduce-overhead")
    return model, _training_step(model, forward, images, labels, precision, ours)


def _bias_norms(model: nn.Module, bias: float) -> None:
    for module in model.modules():
        if bias and hasattr(module, "running_var"):
            nn.init.constant_(module.get_parameter("bias"), bias)


@torch.no_grad()
def _learn_statistics(model: nn.Module, images: torch.Tensor) -> None:
    """Running statistics of ``images``: neurons fire in eval mode as they do in training."""
    for module in model.modules():
        if isinstance(module, BatchNorm | nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = 1.0
    model.train()(images)


def _training_step(
    model: nn.Module,
    forward: Callable[[torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    labels: torch.Tensor,
    precision: Precision,
    ours: bool,
) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    model.train()

    def step() -> None:
        with precision.autocast(images.device):
            logits = forward(images)
        logits = logits.float().mean(0) if ours else logits.float()
        loss = cross_entropy(logits, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if not ours:
            reset_net(model)
        loss.item()

    return step


def _inference_step(
    model: nn.Module,
    images: torch.Tensor,
    precision: Precision,
    ours: bool,
) -> Callable[[], None]:
    _learn_statistics(model, images)
    if not ours:
        reset_net(model)
    model.eval()

    @torch.no_grad()
    def step() -> None:
        with precision.autocast(images.device):
            logits = model(images)
        (logits.float().mean(0) if ours else logits.float()).argmax(-1).tolist()
        if not ours:
            reset_net(model)

    return step
