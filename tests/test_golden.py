"""Each architecture equals its official implementation, in float64.

Official weights go through ``load_official``; logits (eval and training mode), the firing
rate of every neuron layer and the gradient norm of every parameter must come out the same.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from msvit import create_model, load_official
from msvit.neurons import Spikes
from tests.golden import load_golden

QK = {"heads": 8, "batch_coupled": True}
CASES = {
    "msvit_cifar10": ("msvit_cifar10", QK),
    "msvit_cifar100": ("msvit_cifar100", QK),
    "qkformer_cifar10": ("qkformer_cifar10", QK),
    "msvit_imagenet": ("msvit_10_384", QK | {"heads": 4, "depths": (1, 2, 2)}),
    "qkformer_imagenet": ("qkformer_10_384", QK | {"heads": 4, "depths": (1, 2, 2)}),
    "qkformer_dvs128": ("qkformer_cifar10dvs", QK | {"num_classes": 11, "heads": 16}),
    "spikformer_cifar10": ("spikformer_cifar10", {"heads": 4, "depths": (2,)}),
    "spikformer_imagenet": ("spikformer_8_384", {"heads": 4, "depths": (2,)}),
    "spikingformer_cifar10": ("spikingformer_cifar10", {"heads": 4, "depths": (2,)}),
    "spikingformer_imagenet": ("spikingformer_8_384", {"heads": 4, "depths": (2,)}),
    "sdt_cifar10": ("sdt_cifar10", {}),
    "sdt_imagenet": ("sdt_8_384", {"depths": (2,)}),
    "metaspikformer_imagenet": ("metaspikeformer_31m", {}),
    "spikingresformer_cifar10": (
        "spikingresformer_cifar10",
        {"first_dim": 16, "heads": 4, "group_size": 16, "depths": (1, 1, 1)},
    ),
    "maxformer_cifar10": ("maxformer_cifar10", {}),
}


@pytest.fixture(params=["fused", "plain"], autouse=True)
def path(request, monkeypatch):
    """Both ways of computing a unit: compiled passes, and torch with spikingjelly."""
    if request.param == "plain":
        monkeypatch.setenv("MSVIT_KERNELS", "off")


def build(case: str):
    """The golden record, our model with the official weights, and its input."""
    golden = load_golden(case)
    name, options = CASES[case]
    shape = golden["config"]["shape"]
    options = {"dim": golden["config"]["d"], "timesteps": golden["config"]["T"]} | options
    model = create_model(name, image_size=shape[-1], **options).double()
    report = load_official(model, golden["state_dict"])
    assert not report.missing
    assert not report.unexpected
    x = golden["input"]
    return golden, model, x.transpose(0, 1) if x.ndim == 5 else x


def record_rates(model: torch.nn.Module) -> dict[str, float]:
    """Fill the returned dictionary, by official neuron name, during the next forward."""
    names = model.official_map().neurons
    rates: dict[str, float] = {}

    def hook(official: list[str], module: Spikes, _inputs: tuple, spikes: torch.Tensor) -> None:
        for name, part in zip(official, spikes.chunk(len(official), dim=-1), strict=True):
            rates[name] = part.double().mean().item()

    for path, module in model.named_modules():
        if isinstance(module, Spikes):
            official = names[path.removesuffix(".spikes")]
            module.register_forward_hook(lambda m, i, o, official=official: hook(official, m, i, o))
    return rates


@pytest.mark.parametrize("case", CASES)
def test_evaluation_equals_the_official_code(case):
    golden, model, x = build(case)
    rates = record_rates(model)
    with torch.no_grad():
        logits = model.eval()(x)
    expected = golden["eval_logits"]
    got = logits if expected.ndim == 3 else logits.mean(0)
    torch.testing.assert_close(got, expected, atol=1e-9, rtol=0)
    assert rates.keys() == golden["firing_rates"].keys()
    for name, rate in golden["firing_rates"].items():
        assert rates[name] == pytest.approx(rate, abs=1e-12), name


@pytest.mark.parametrize("case", CASES)
def test_training_equals_the_official_code(case):
    golden, model, x = build(case)
    logits = model.train()(x)
    expected = golden["train_logits"]
    got = logits if expected.ndim == 3 else logits.mean(0)
    torch.testing.assert_close(got, expected, atol=1e-9, rtol=0)
    loss = F.cross_entropy(logits.mean(0), golden["train_target"])
    loss.backward()
    assert loss.item() == pytest.approx(float(golden["train_loss"]), abs=1e-9)
    compared = compare_gradients(model, golden["grad_norms"])
    # Everything official that is not a bias in front of a BatchNorm must have been compared.
    uncompared = golden["grad_norms"].keys() - compared
    assert all(n.endswith("bias") or golden["grad_norms"][n] is None for n in uncompared)


def compare_gradients(model: torch.nn.Module, official: dict) -> set[str]:
    """Compare the norms of all our gradients; return the official names compared."""
    names = model.official_map()
    compared = set()
    for target, parameter in model.named_parameters():
        parts = names.sources(target)
        if parameter.grad is None:
            assert target.endswith("conv.bias"), f"{target} has no gradient"
            continue
        for name, gradient in zip(parts, parameter.grad.chunk(len(parts)), strict=True):
            assert gradient.norm().item() == pytest.approx(float(official[name]), rel=1e-7), name
            compared.add(name)
    return compared
