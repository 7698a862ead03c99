"""The models in torch's own ``DistributedDataParallel``, whoever trains them."""

from __future__ import annotations

import pytest
import torch
import torch.distributed
from torch.nn.parallel import DistributedDataParallel

from msvit.models.options import OPTIONS
from tests.small import small_input, small_model


def gradients(model, x, wrapped=None):
    model.zero_grad()
    (wrapped or model)(x).square().mean().backward()
    return {name: weight.grad for name, weight in model.named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kernels"), [*((name, "") for name in OPTIONS), ("sdt", "off")])
def test_every_architecture_trains_in_plain_ddp(name, kernels, one_process, monkeypatch):
    monkeypatch.setenv("MSVIT_KERNELS", kernels)
    model = small_model(name, timesteps=1, image_size=16).train()
    x = small_input(model, 2, torch.float32)
    wrapped = DistributedDataParallel(model)
    for _ in range(3):  # from the second on, it complains of a gradient that did not come
        found = gradients(model, x, wrapped)
    assert None not in found.values()


def test_the_bias_that_a_norm_cancels_has_no_gradient_where_nobody_waits_for_it():
    model = small_model("spikformer", timesteps=1).train()
    found = gradients(model, small_input(model, 2, torch.float32))
    assert {name for name, grad in found.items() if grad is None}
