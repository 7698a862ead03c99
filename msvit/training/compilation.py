"""A training step as ``torch.compile`` makes it."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor, nn

from msvit import kernels
from msvit.options import ConfigError

_SKIPPED = "cudagraph_skips"  # as Inductor counts them


def compiled(model: nn.Module, mode: str | None) -> Callable[[Tensor], Tensor]:
    """``model`` itself, or with ``mode`` its forward (and backward) pass as compiled by torch.

    Both share all weights and statistics. The whole model is one graph (on a GPU with
    spikingjelly's Triton kernels as its usual neurons), which ``reduce-overhead`` has recorded once
    there and replayed, where torch can.

    Raises:
        ConfigError: on a CPU without a C++ compiler.
        torch._dynamo.exc.TorchDynamoException: at the first call, where the model cannot be traced
            as a whole.
    """
    if mode is None:
        return model
    from torch._inductor import config  # loaded only where it is needed

    if "TORCHINDUCTOR_COMPILE_THREADS" not in os.environ:
        config.compile_threads = torch.get_num_threads()  # other cells have the other CPUs
    if not torch.cuda.is_available() and kernels.cpp_compiler() is None:
        message = "no C++ compiler was found; training.compile=null does without"
        raise ConfigError("training", "compile", message)
    run = torch.compile(model, mode=mode, fullgraph=True, dynamic=False)

    def step(images: Tensor) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()  # what the last step returned may be overwritten
        return run(images)

    return step


def describe(mode: str, device: torch.device) -> str:
    """What has run, for the record: after training, torch knows whether it has replayed graphs."""
    from torch._dynamo.utils import counters

    words = mode
    if mode == "reduce-overhead" and (device.type == "cpu" or counters["inductor"][_SKIPPED]):
        words += ", without CUDA graphs"
    return f"torch.compile ({words})"
