"""A training step as ``torch.compile`` makes it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def compiled(model: nn.Module, mode: str | None) -> Callable[[Tensor], Tensor]:
    """``model`` itself, or with ``mode`` its forward (and backward) pass as compiled by torch.

    Both share all weights and statistics. The whole model is one graph, in which torch fuses what
    lies between products; on a GPU, ``reduce-overhead`` records that graph once and replays it.

    Raises:
        torch._dynamo.exc.TorchDynamoException: at the first call, where no compiler is found, or
            the model cannot be traced as a whole.
    """
    if mode is None:
        return model
    run = torch.compile(model, mode=mode, fullgraph=True, dynamic=False)

    def step(images: Tensor) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()  # what the last step returned may be overwritten
        return run(images)

    return step
