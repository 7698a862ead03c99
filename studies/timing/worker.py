"""One measurement on a CPU, in a process of its own: started again and again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from spikingjelly.activation_based.functional import reset_net
from torch import nn
from torch.nn.functional import cross_entropy

from msvit import create_model, kernels, processor
from msvit.layers.norm import BatchNorm
from msvit.metrics.operations import OperationCounter
from msvit.precision import Precision, bf16_is_faster, choose_precision
from msvit.runtime import peak_memory_gb, prepare_process
from studies.plain_models import plain_model
from studies.timing.cases import PRECISIONS
from studies.timing.probes import count_work, measure_peaks

_CPU = torch.device("cpu")
_MOST_STEPS = 50


def run(task: dict[str, Any]) -> dict[str, Any]:
    """Do a task of :mod:`studies.timing.cases` and return what was found (plain JSON types)."""
    torch.manual_seed(0)
    return {"limits": _limits, "step": _time_steps, "profile": _profile}[task["kind"]](task)


def _limits(task: dict[str, Any]) -> dict[str, Any]:
    """Peaks of the machine at the task's threads, and the work of its models."""
    from msvit.training.environment import processor_name  # the package takes seconds to load

    prepare_process()
    found: dict[str, Any] = {"processor": processor_name(), "peaks": {}}
    found |= {"amx": processor.multiplies_matrices(), "bf16_faster": bf16_is_faster(_CPU)}
    # Compiled here, not while a step is timed.
    found["kernels"] = all(kernels.available(_CPU, d) for d in (torch.float32, torch.bfloat16))
    for precision in PRECISIONS if processor.multiplies_bf16() else ("fp32",):
        found[precision] = choose_precision(precision, _CPU).label
        found["peaks"][precision] = asdict(measure_peaks(precision, _CPU, task["quick"]))
    found["work"] = {m: asdict(count_work(m, task["options"])) for m in task["models"]}
    return found


def _time_steps(task: dict[str, Any]) -> dict[str, Any]:
    model, step = _prepare(task)
    step()  # compiles, packs weights, fills the allocator
    seconds: list[float] = []
    while len(seconds) < task["least"] or (
        sum(seconds) < task["budget"] and len(seconds) < _MOST_STEPS
    ):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    found = {"seconds": seconds, "peak_gb": peak_memory_gb(_CPU)}
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
    _, step = _prepare(task)
    for _ in range(2):
        step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        step()
    events = [(e.key, e.self_cpu_time_total / 1e6) for e in profiler.key_averages()]
    return {"operators": sorted(events, key=lambda event: -event[1])}


def _prepare(task: dict[str, Any]) -> tuple[nn.Module, Callable[[], None]]:
    """The model of the case, and a function that does one step.

    Ours runs as training does: allocator, threads and matmul setting of :mod:`msvit`. The
    plain model runs in torch's defaults, as the official scripts leave them.
    """
    ours = task["variant"] != "plain"
    if ours:
        prepare_process()
        precision = choose_precision(task["precision"], _CPU)
        model: nn.Module = create_model(task["registry"], **task["options"])
    else:
        torch.set_num_threads(task["threads"])
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[task["precision"]]
        precision = Precision(dtype, task["precision"], task["precision"])
        model = plain_model(task["registry"], **task["options"])
    options = {"in_channels": 3, "image_size": 32} | task["options"]
    size = options["image_size"]
    images = torch.randn(task["batch"], options["in_channels"], size, size)
    labels = torch.randint(10, (task["batch"],))
    _bias_norms(model, task["norm_bias"])
    make = _inference_step if task["mode"] == "infer" else _training_step
    return model, make(model, images, labels, precision, ours)


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
    images: torch.Tensor,
    labels: torch.Tensor,
    precision: Precision,
    ours: bool,
) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    model.train()

    def step() -> None:
        with precision.autocast(images.device):
            logits = model(images)
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
    labels: torch.Tensor,
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
