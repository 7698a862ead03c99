"""The compiled spiking units against torch's BatchNorm and spikingjelly's neurons."""

from __future__ import annotations

import copy
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from msvit import kernels
from msvit.kernels import NeuronSpec, build, plain
from msvit.kernels.spec import SURROGATES

pytestmark = pytest.mark.skipif(
    build.library("float") is None, reason="this machine has no C++ compiler"
)
property_test = settings(max_examples=60, deadline=None, derandomize=True)

SPECS = st.builds(
    NeuronSpec,
    kind=st.sampled_from(["if", "lif", "plif"]),
    tau=st.sampled_from([1.0, 1.5, 2.0, 3.0]),
    decay_input=st.booleans(),
    threshold=st.sampled_from([0.5, 1.0]),
    v_reset=st.sampled_from([None, 0.0, -0.3]),
    surrogate=st.sampled_from(SURROGATES),
    alpha=st.sampled_from([2.0, 4.0]),
    detach_reset=st.booleans(),
)
LIF = NeuronSpec("lif", detach_reset=True)


class Case(NamedTuple):
    y: Tensor  # [T, R, C], time stride 0 if static
    norm: nn.BatchNorm1d
    spec: NeuronSpec
    plif_w: Tensor | None
    shortcut: Tensor | None
    offset: Tensor | None
    grad_out: Tensor


@st.composite
def cases(draw, dtype=torch.float64, least_rows=1) -> Case:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    steps, rows = draw(st.integers(1, 9)), draw(st.integers(least_rows, 70))
    shape = (steps, rows + (steps * rows == 1), draw(st.integers(1, 75)))

    def normal(*sizes):
        return torch.randn(*sizes, generator=generator, dtype=torch.float64).to(dtype)

    static = draw(st.booleans())
    y = normal(1, *shape[1:]).expand(shape) if static else normal(*shape)
    norm = nn.BatchNorm1d(shape[-1], momentum=draw(st.sampled_from([0.1, 0.9, None])))
    norm = norm.to(dtype if dtype == torch.float64 else torch.float32)
    with torch.no_grad():
        for vector in (norm.weight, norm.bias, norm.running_mean):
            vector.copy_(normal(shape[-1]))
        norm.running_var.copy_(normal(shape[-1]) ** 2 + 0.1)
    norm.train(draw(st.booleans()))
    spec = draw(SPECS)
    plif_w = torch.tensor(0.4, dtype=norm.weight.dtype) if spec.kind == "plif" else None
    shortcut = normal(*shape) if draw(st.booleans()) else None
    offset = normal(shape[-1]).to(norm.weight) if draw(st.booleans()) else None
    return Case(2 * y + 0.5, norm, spec, plif_w, shortcut, offset, normal(*shape))


def outcome(unit, case: Case) -> dict[str, Tensor]:
    """Output, gradients and running statistics of ``unit(y, norm, spec, plif_w, ...)``."""
    # A static input stays one step in memory, and its gradient is that step's.
    static = case.y.stride(0) == 0 and len(case.y) > 1
    source = (case.y[:1] if static else case.y).clone().requires_grad_()
    norm = copy.deepcopy(case.norm)
    plif_w = case.plif_w.clone().requires_grad_() if case.plif_w is not None else None
    shortcut = case.shortcut.clone().requires_grad_() if case.shortcut is not None else None
    out = unit(source.expand(case.y.shape), norm, case.spec, plif_w, shortcut, case.offset)
    out.backward(case.grad_out)
    found = {
        "out": out.detach(),
        "y": source.grad,
        "weight": norm.weight.grad,
        "bias": norm.bias.grad,
        "running_mean": norm.running_mean,
        "running_var": norm.running_var,
        "batches": norm.num_batches_tracked,
        "plif_w": plif_w.grad if plif_w is not None else None,
        "shortcut": shortcut.grad if shortcut is not None else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    """Every value within ``tolerance`` of its tensor's largest one."""
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        assert ours[name].dtype == expected.dtype, name
        scale = expected.abs().max().clamp_min(1e-3)
        error = (ours[name].double() - expected.double()).abs().max() / scale
        assert error <= tolerance, f"{name}: {error:.1e}"


def norm_neuron(module):
    return module.norm_neuron


def neuron(module):
    return lambda y, norm, spec, plif_w, *_: module.neuron(y, spec, plif_w)


def norm_add(module):
    return lambda y, norm, spec, plif_w, *rest: module.norm_add(y, norm, *rest)


@pytest.mark.parametrize("unit", [norm_neuron, neuron, norm_add])
@property_test
@given(case=cases())
def test_units_equal_torch_and_spikingjelly_in_float64(unit, case):
    ours, theirs = outcome(unit(kernels), case), outcome(unit(plain), case)
    if unit is not norm_add and case.shortcut is None:
        assert torch.equal(ours["out"], theirs["out"])
    assert_close(ours, theirs, 1e-10)


@property_test
@given(case=cases(dtype=torch.float32, least_rows=20))  # gradients of few values cancel
def test_float32_differs_by_rounding_only(case):
    ours, theirs = outcome(kernels.norm_neuron, case), outcome(plain.norm_neuron, case)
    # A potential within rounding of the threshold may fire on one side only.
    flipped = (ours["out"] - theirs["out"]).abs() > 0.5
    assert flipped.double().mean() < 1e-3
    if not flipped.any():
        assert_close(ours, theirs, 2e-4)


def test_neuron_alone_equals_spikingjelly_bit_by_bit_in_float32():
    x = torch.randn(6, 5, 37) * 3
    for tau in (2.0, 3.0):
        spec = NeuronSpec("lif", tau=tau)
        assert torch.equal(kernels.neuron(x, spec), plain.neuron(x, spec))
