"""The compiled spiking units against torch's BatchNorm and spikingjelly's neurons."""

from __future__ import annotations

import copy
import inspect
import json
import logging
import multiprocessing
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, get_type_hints
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from msvit import kernels, processor
from msvit.kernels import NeuronSpec, reference
from msvit.kernels.cpu import build, passes, spike_bytes
from msvit.kernels.spec import Backend
from msvit.neuron_kinds import SURROGATES
from msvit.options import ConfigError

# In a process of its own (see the end), these tests run the Triton kernels in Triton's interpreter.
INTERPRETED = os.environ.get("MSVIT_KERNELS") == "triton"
pytestmark = pytest.mark.skipif(
    not INTERPRETED and build.compiler() is None, reason="this machine has no C++ compiler"
)
property_test = settings(
    max_examples=5 if INTERPRETED else 30, deadline=None, derandomize=True, database=None
)

SPECS = st.builds(
    NeuronSpec,
    kind=st.sampled_from(["if", "lif", "plif"]),
    tau=st.sampled_from([1.0, 1.5, 2.0, 3.0]),
    decay_input=st.booleans(),
    threshold=st.sampled_from([0.5, 1.0]),
    hard_reset=st.booleans(),
    surrogate=st.sampled_from(SURROGATES),
    surrogate_alpha=st.sampled_from([2.0, 4.0]),
    detach_reset=st.booleans(),
)
LIF = NeuronSpec("lif")


class Case(NamedTuple):
    y: Tensor  # [T, B, H, W, C], time stride 0 if static
    norm: nn.BatchNorm1d
    spec: NeuronSpec
    plif_w: Tensor | None
    shortcut: bool
    offset: Tensor | None
    seed: int


@st.composite
def cases(draw, dtype=torch.float64, least_rows=1) -> Case:
    seed = draw(st.integers(0, 2**16))
    generator = torch.Generator().manual_seed(seed)
    # Interpreted, a program takes as long as a kernel: at most two blocks of channels.
    steps, channels = draw(st.integers(1, 9)), draw(st.integers(1, 20 if INTERPRETED else 75))
    images, height, width = (draw(st.integers(least_rows, least_rows + 4)) for _ in range(3))
    if steps * images * height * width == 1:
        steps = 2  # one value has no variance
    shape = (steps, images, height, width, channels)

    def normal(*sizes):
        return torch.randn(*sizes, generator=generator, dtype=torch.float64).to(dtype)

    static = draw(st.booleans())
    y = 2 * normal(1 if static else steps, *shape[1:]) + 0.5
    norm = nn.BatchNorm1d(channels, momentum=draw(st.sampled_from([0.1, 0.9, None])))
    norm = norm.to(torch.promote_types(dtype, torch.float32))
    with torch.no_grad():
        for vector in (norm.weight, norm.bias, norm.running_mean):
            vector.copy_(normal(channels))
        norm.running_var.copy_(normal(channels) ** 2 + 0.1)
        norm.weight[0] = 0  # all of its channel is equal, in pooling as well
    norm.train(draw(st.booleans()))
    spec = draw(SPECS)
    plif_w = torch.tensor(0.4, dtype=norm.weight.dtype) if spec.kind == "plif" else None
    offset = normal(channels).to(norm.weight) if draw(st.booleans()) else None
    return Case(y.expand(shape), norm, spec, plif_w, draw(st.booleans()), offset, seed)


def outcome(unit, case: Case) -> dict[str, Tensor]:
    """Output, gradients and running statistics of ``unit(y, norm, spec, plif_w, ...)``."""
    # A static input stays one step in memory, and its gradient is that step's.
    static = case.y.stride(0) == 0 and len(case.y) > 1
    source = (case.y[:1] if static else case.y).clone().requires_grad_()
    y, norm = source.expand(case.y.shape), copy.deepcopy(case.norm)
    plif_w = case.plif_w.clone().requires_grad_() if case.plif_w is not None else None
    generator = torch.Generator().manual_seed(case.seed)
    with torch.no_grad():
        shape = unit(y, copy.deepcopy(norm), case.spec, plif_w, None, case.offset).shape

    def like_out() -> Tensor:
        return torch.randn(shape, generator=generator, dtype=y.dtype).to(y.device)

    shortcut = like_out().requires_grad_() if case.shortcut else None
    out = unit(y, norm, case.spec, plif_w, shortcut, case.offset)
    out.backward(like_out())
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
    """Every value within ``tolerance`` of its tensor's largest one (0.1 if that is tiny)."""
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        assert ours[name].dtype == expected.dtype, name
        assert ours[name].shape == expected.shape, name
        scale = expected.double().abs().max().clamp_min(0.1)
        error = (ours[name].double() - expected.double()).abs().max() / scale
        assert error <= tolerance, f"{name}: {error:.1e}"


def norm_neuron(module):
    return module.norm_neuron


def norm_pool_neuron(module):
    return lambda *args: module.norm_neuron(*args, pool=True)


def neuron(module):
    return lambda y, norm, spec, plif_w, *_: module.neuron(y, spec, plif_w)


def norm_add(module):
    return lambda y, norm, spec, plif_w, *rest: module.norm_add(y, norm, *rest)


def norm_pool_add(module):
    return lambda y, norm, spec, plif_w, *rest: module.norm_add(y, norm, *rest, pool=True)


UNITS = [norm_neuron, norm_pool_neuron, neuron, norm_add, norm_pool_add]


@pytest.mark.parametrize("unit", UNITS)
@property_test
@given(case=cases())
def test_units_equal_torch_and_spikingjelly_in_float64(unit, case):
    if unit is neuron:
        case = case._replace(shortcut=False)
    ours, theirs = outcome(unit(kernels), case), outcome(unit(reference), case)
    if unit in (norm_neuron, norm_pool_neuron, neuron) and not case.shortcut:
        assert torch.equal(ours["out"], theirs["out"])
    assert_close(ours, theirs, 1e-10)


@pytest.mark.parametrize("unit", [norm_neuron, norm_pool_neuron])
@property_test
@given(case=cases(dtype=torch.float32, least_rows=3))  # the gradients of few values cancel
def test_float32_differs_by_rounding_only(unit, case):
    ours, theirs = outcome(unit(kernels), case), outcome(unit(reference), case)
    # A potential within rounding of the threshold may fire on one side only.
    flipped = (ours["out"] - theirs["out"]).abs() > 0.5
    assert flipped.double().mean() < 1e-3
    if not flipped.any():
        assert_close(ours, theirs, 2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("unit", [norm_neuron, norm_pool_neuron])
@property_test
@given(case=cases(dtype=torch.bfloat16, least_rows=3))
def test_bfloat16_rounds_what_is_stored_and_nothing_else(unit, case):
    ours, theirs = outcome(unit(kernels), case), outcome(unit(reference), case)
    flipped = (ours["out"] - theirs["out"]).abs() > 0.5
    assert flipped.double().mean() < 1e-3
    if not flipped.any():
        assert_close(ours, theirs, 2e-2)


def test_neuron_alone_equals_spikingjelly_bit_by_bit_in_float32():
    x = torch.randn(6, 5, 37) * 3
    for tau in (2.0, 3.0):
        spec = NeuronSpec("lif", tau=tau)
        assert torch.equal(kernels.neuron(x, spec), reference.neuron(x, spec))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@property_test
@given(
    size=st.tuples(*(st.integers(1, 9),) * 2),
    channels=st.integers(1, 20 if INTERPRETED else 70),
    seed=st.integers(0, 99),
)
def test_max_pool_breaks_ties_like_torch(dtype, size, channels, seed):
    generator = torch.Generator().manual_seed(seed)
    spikes = torch.randint(2, (2, 2, *size, channels), generator=generator).to(dtype)
    found = []
    for module in (kernels, reference):
        x = spikes.clone().requires_grad_()
        out = module.max_pool(x)
        out.backward(torch.arange(out.numel()).remainder(7).view(out.shape).to(dtype))
        found.append((out, x.grad))
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)


@property_test
@given(
    dtype=st.sampled_from([torch.float64, torch.bfloat16]),
    steps=st.integers(1, 6),
    tokens=st.integers(1, 9),
    heads=st.integers(1, 20),
    head_words=st.integers(1, 9),
    parts=st.integers(1, 3),
    wides=st.integers(0, 2),
    spec=SPECS,
    seed=st.integers(0, 99),
)
def test_token_attention_equals_the_reference(
    dtype, steps, tokens, heads, head_words, parts, wides, spec, seed
):
    if parts == 1 and wides == 0:
        wides = 1  # somebody has to vote
    generator = torch.Generator().manual_seed(seed)
    channels = heads * head_words * (8 // dtype.itemsize)
    lengths = [parts * channels] + [channels] * wides
    spikes = [
        torch.randint(2, (steps, 2, tokens, n), generator=generator).to(dtype) for n in lengths
    ]
    grad_out = torch.randn(steps, 2, tokens, channels, generator=generator).to(dtype)
    found = []
    for module in (kernels, reference):
        joined, *wide = (s.clone().requires_grad_() for s in spikes)
        plif_w = torch.tensor(0.4, dtype=torch.promote_types(dtype, torch.float32))
        plif_w = plif_w.requires_grad_() if spec.kind == "plif" else None
        out, mask = module.token_attention(joined, parts, wide, spec, heads, plif_w)
        out.backward(grad_out)
        grads = {f"grad{i}": x.grad for i, x in enumerate((joined, *wide))}
        if plif_w is not None:
            grads["plif_w"] = plif_w.grad
        found.append({"out": out.detach(), "mask": mask, **grads})
    ours, theirs = found
    assert torch.equal(ours["out"], theirs["out"])
    assert torch.equal(ours["mask"], theirs["mask"])
    assert not ours["mask"].requires_grad
    assert_close(ours, theirs, 1e-10 if dtype == torch.float64 else 2e-2)


@pytest.mark.parametrize(("dtype", "head"), [(torch.float32, 3), (torch.bfloat16, 3)])
def test_heads_that_are_no_whole_words_are_attended_to_as_well(dtype, head):
    generator = torch.Generator().manual_seed(0)
    heads, spec = 3, NeuronSpec()
    joined = torch.randint(2, (4, 2, 5, 2 * heads * head), generator=generator).to(dtype)
    ours = kernels.token_attention(joined, 2, [], spec, heads)
    theirs = reference.token_attention(joined, 2, [], spec, heads)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert ours[1].any()


def test_every_step_is_one_in_memory_and_so_is_its_gradient():
    x = torch.randn(1, 3, 4, requires_grad=True)
    spread = kernels.every_step(x, 3)
    assert spread.shape == (3, 3, 4)
    assert spread.data_ptr() == x.data_ptr()
    assert kernels.every_step(x.detach(), 3).stride(0) == 0
    for grad_out in (torch.randn(1, 3, 4).expand(3, 3, 4), torch.randn(3, 3, 4)):
        (grad,) = torch.autograd.grad(spread, x, grad_out, retain_graph=True)
        torch.testing.assert_close(grad, grad_out.sum(0, keepdim=True))


@pytest.mark.parametrize(("steps", "static"), [(11, False), (16, True)])
def test_many_time_steps_equal_the_reference(steps, static):
    """More than registers hold, in chunks (the last of which is not full, with 11)."""
    torch.manual_seed(0)
    spec, w = NeuronSpec("plif", detach_reset=False), torch.tensor(0.4, dtype=torch.float64)
    y, norm = torch.randn(steps, 2, 3, 3, 5, dtype=torch.float64), nn.BatchNorm1d(5).double()
    fed = y[:1].expand_as(y) if static else y
    case = Case(fed, norm, spec, w, shortcut=True, offset=None, seed=0)
    assert_close(*(outcome(norm_neuron(m), case) for m in (kernels, reference)), 1e-10)
    spikes = torch.randint(2, (steps, 2, 3, 3, 18)).double()
    grad_out = torch.randn(steps, 2, 3, 3, 6, dtype=torch.float64)
    found = []
    for module in (kernels, reference):
        joined, wide = spikes[..., :12].clone().requires_grad_(), spikes[..., 12:].clone()
        own_w = w.clone().requires_grad_()
        out, mask = module.token_attention(joined, 2, [wide], spec, 3, own_w)
        out.backward(grad_out)
        found.append({"out": out.detach(), "mask": mask, "joined": joined.grad, "w": own_w.grad})
    assert_close(*found, 1e-10)


def train_step(y: Tensor, norm: nn.BatchNorm1d, spec: NeuronSpec = LIF) -> tuple[Tensor, Tensor]:
    y = y.clone().requires_grad_()
    spikes = kernels.norm_neuron(y, norm, spec)
    (grad,) = torch.autograd.grad((spikes * torch.linspace(-1, 1, y.shape[-1])).sum(), y)
    return spikes, grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_are_passed_on(dtype, bad):
    y = torch.randn(4, 50, 40)
    y[2, 17, 5] = bad
    norm = nn.BatchNorm1d(40)
    _, grad = train_step(y.to(dtype), norm)
    assert grad[..., 5].isnan().all()
    assert grad[..., :5].isfinite().all()
    assert not norm.running_mean[5].isfinite()
    membrane = kernels.norm_add(y.to(dtype), nn.BatchNorm1d(40))
    assert membrane[..., 5].isnan().all()
    # As in spikingjelly, an infinite potential fires once and is lost.
    x = torch.tensor([[bad], [5.0]], dtype=dtype)
    assert torch.equal(kernels.neuron(x, LIF), reference.neuron(x, LIF))


@pytest.mark.parametrize("far", [0, 1, 2, 3])
def test_an_outlier_does_not_cost_the_variance_its_digits(far):
    y = torch.randn(1, 4000, 24) * 1e-3 + 10
    y[0, far * 1000 - (far == 3)] = 5.0  # a corner beside the padding, and where pivots stand
    exact = y.double().var((0, 1), unbiased=True)
    norm = nn.BatchNorm1d(24, momentum=1.0)
    kernels.norm_neuron(y, norm, LIF)
    assert torch.allclose(norm.running_var.double(), exact, rtol=2e-6)


@pytest.mark.parametrize(
    "odd",
    [
        "channels",
        "shortcut row",
        "shortcut channel",
        "offset dtype",
        "strided weight",
        "wide dtype",
    ],
)
def test_operands_of_another_shape_or_type_are_left_to_torch(odd):
    """Added as torch adds them, or refused in torch's words; memory is never misread."""
    torch.manual_seed(0)
    y, norm, shortcut, offset = torch.randn(4, 50, 64), nn.BatchNorm1d(64), None, None
    if odd == "wide dtype":
        joined = torch.rand(4, 50, 128).round().bfloat16()
        wide = [torch.rand(4, 50, 64).round()]
        found, expected = (
            m.token_attention(joined, 2, wide, LIF, 8)[0].float() for m in (kernels, reference)
        )
        assert torch.equal(found, expected)
        return
    if odd == "channels":
        with pytest.raises(RuntimeError, match="running_mean should contain 64 elements"):
            kernels.norm_neuron(y, nn.BatchNorm1d(32), LIF)
        return
    if odd.startswith("shortcut"):
        shortcut = torch.randn(4, 1, 64) if odd == "shortcut row" else torch.randn(4, 50, 1)
    if odd == "offset dtype":
        offset = torch.randn(64).bfloat16()
    if odd == "strided weight":
        norm.weight = nn.Parameter(torch.rand(64, 2)[:, 0])
    twin = copy.deepcopy(norm)
    found = kernels.norm_neuron(y, norm, LIF, shortcut=shortcut, offset=offset)
    expected = reference.norm_neuron(y, twin, LIF, shortcut=shortcut, offset=offset)
    assert torch.equal(found, expected)
    assert torch.equal(norm.running_mean, twin.running_mean)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_threads_same_bits(dtype):
    y = torch.randn(4, 3000, 48).to(dtype)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = []
        for _ in range(4):
            norm = nn.BatchNorm1d(48)
            found.append((*train_step(y, norm), norm.running_mean, norm.running_var))
    finally:
        torch.set_num_threads(threads)
    for repeat in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], repeat, strict=True))


def test_parameters_stay_float32_under_autocast():
    linear, norm = nn.Linear(8, 24, bias=False), nn.BatchNorm1d(24)
    shortcut = torch.randn(4, 30, 24, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = linear(torch.randn(4, 30, 8))
        out = kernels.norm_neuron(y, norm, LIF, shortcut=shortcut)
        assert out.dtype == torch.bfloat16
        loss = out.float().square().mean()
    loss.backward()
    for parameter in (linear.weight, norm.weight, shortcut):
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.abs().sum() > 0


def test_training_keeps_y_and_four_vectors_and_inference_nothing():
    y, norm, kept = torch.randn(4, 64, 32, requires_grad=True), nn.BatchNorm1d(32), []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        kernels.norm_neuron(y, norm, LIF)
        assert sum(t.nbytes for t in kept if t is not y) == 4 * 32 * 4
        kept.clear()
        with torch.no_grad():
            kernels.norm_neuron(y, norm.eval(), LIF)
        assert not kept


def test_one_value_per_channel_is_refused_like_torch_does():
    y = torch.randn(1, 1, 8)
    for module in (kernels, reference):
        with pytest.raises(ValueError, match="more than"):
            module.norm_neuron(y, nn.BatchNorm1d(8), LIF)


def test_workers_share_the_statistics_of_a_sync_batchnorm(tmp_path):
    y = torch.randn(3, 7, 12, dtype=torch.float64)  # worker 0 has 2 rows, worker 1 has 5
    gain = torch.linspace(-1, 1, 12, dtype=torch.float64)

    def step(rows: Tensor, norm: nn.Module) -> list[Tensor]:
        rows = rows.clone().requires_grad_()
        spikes = kernels.norm_neuron(rows, norm.double(), LIF)
        (spikes * gain).sum().backward()
        return [spikes.detach(), rows.grad, norm.weight.grad, norm.running_var]

    def worker(rank: int) -> None:
        torch.set_num_threads(1)
        meeting = f"file://{tmp_path}/meeting"
        torch.distributed.init_process_group("gloo", meeting, rank=rank, world_size=2)
        rows = y[:, :2] if rank == 0 else y[:, 2:]
        torch.save(step(rows, nn.SyncBatchNorm(12)), tmp_path / f"{rank}.pt")

    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=worker, args=(rank,)) for rank in range(2)]
    for process in workers:
        process.start()
    for process in workers:
        process.join()
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    spikes, grad, weight_grad, running_var = step(y, nn.BatchNorm1d(12))
    assert torch.equal(torch.cat((first[0], second[0]), 1), spikes)
    assert torch.allclose(torch.cat((first[1], second[1]), 1), grad, rtol=1e-10, atol=1e-12)
    assert torch.allclose(first[2] + second[2], weight_grad, rtol=1e-10, atol=1e-12)
    assert torch.allclose(first[3], running_var, rtol=1e-10)


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """An empty cache folder, and a package that has not compiled anything yet."""
    monkeypatch.setenv("MSVIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "FLAGS", tuple(f.replace("-O3", "-O0") for f in build.FLAGS))
    caches = (build.compiler, build.units, build.warn_once, passes.backend, spike_bytes.codec)
    for cache in caches:
        cache.cache_clear()
    yield tmp_path / "cache"
    for cache in caches:
        cache.cache_clear()


@pytest.mark.slow
def test_processes_that_start_at_once_share_one_library(fresh):
    def child() -> None:
        sys.exit(0 if build.units(torch.float32) is not None else 1)

    fork = multiprocessing.get_context("fork")
    children = [fork.Process(target=child) for _ in range(3)]
    for process in children:
        process.start()
    for process in children:
        process.join()
    assert [process.exitcode for process in children] == [0, 0, 0]
    (kept,) = fresh.iterdir()
    assert kept.suffix == ".so"


@pytest.mark.slow
def test_without_a_writable_cache_the_library_is_compiled_aside(fresh, caplog):
    fresh.write_text("a file where the cache folder should be")
    with caplog.at_level(logging.INFO, logger="msvit.kernels"):
        assert kernels.available()
    assert "cannot keep" in caplog.text


@pytest.mark.slow
def test_without_a_home_the_library_is_compiled_aside(fresh, monkeypatch):
    for name in ("MSVIT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def nobody() -> None:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(build.Path, "home", nobody)
    assert kernels.available()


@pytest.mark.slow
def test_a_damaged_library_is_compiled_again(fresh, monkeypatch):
    assert kernels.available()
    (kept,) = fresh.iterdir()
    elsewhere = fresh.with_name("elsewhere")
    elsewhere.mkdir()
    (elsewhere / kept.name).write_bytes(kept.read_bytes()[:100])
    monkeypatch.setenv("MSVIT_CACHE", str(elsewhere))
    build.units.cache_clear()
    assert build.units(torch.float32) is not None
    assert (elsewhere / kept.name).stat().st_size == kept.stat().st_size


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["sse2", "avx2", "avx512vl"])
def test_other_processors_compute_the_same(flag, fresh, monkeypatch):
    if not processor.has_any(flag):
        pytest.skip(f"this processor has no {flag}")
    native = {"sse2": (), "avx2": ("-march=x86-64-v3",), "avx512vl": ("-march=x86-64-v4",)}[flag]
    monkeypatch.setattr(build, "NATIVE", native)
    y = torch.randn(4, 60, 75)
    y[0, 3, 40], y[1, 7, 50] = float("nan"), float("inf")
    for dtype in (torch.float64, torch.bfloat16):
        found = []
        for module in (kernels, reference):
            source = y.to(dtype).requires_grad_()
            norm = nn.BatchNorm1d(75).to(torch.promote_types(dtype, torch.float32))
            out = module.norm_neuron(source, norm, LIF, shortcut=source)
            out.backward(torch.linspace(-1, 1, 75).expand_as(out).to(dtype))
            found.append((out.detach(), source.grad))
        tolerance = 1e-10 if dtype == torch.float64 else 2e-2
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance, equal_nan=True)


@pytest.mark.parametrize("why", ["no compiler", "broken compiler", "switched off"])
def test_without_compiled_kernels_the_plain_path_runs(why, fresh, monkeypatch, caplog):
    if why == "no compiler":
        monkeypatch.setenv("PATH", "")
        monkeypatch.delenv("CXX", raising=False)
    elif why == "broken compiler":
        monkeypatch.setenv("CXX", shutil.which("false"))
    else:
        monkeypatch.setenv("MSVIT_KERNELS", "off")
    for dtype in (torch.float32, torch.bfloat16):
        y = torch.randn(4, 9, 20, dtype=dtype)
        ours = kernels.norm_neuron(y, nn.BatchNorm1d(20), LIF)
        assert torch.equal(ours, reference.norm_neuron(y, nn.BatchNorm1d(20), LIF))
    assert not kernels.available()
    assert caplog.text.count("plain path") == (0 if why == "switched off" else 1)


def test_the_environment_chooses_what_may_run(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for value, runs in {"": True, "cpu": True, "off": False}.items():
        monkeypatch.setenv("MSVIT_KERNELS", value)
        assert kernels.available(cpu) == runs
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    for value in ("cpu", "off"):
        monkeypatch.setenv("MSVIT_KERNELS", value)
        assert not kernels.available(cuda)


@pytest.mark.parametrize("value", ["of", "on", "CPU", "1"])
def test_another_choice_is_one_line_with_the_right_ones(value, monkeypatch):
    monkeypatch.setenv("MSVIT_KERNELS", value)
    x = torch.zeros(2, 1, 4, 4, 16)
    calls = (
        lambda: kernels.neuron(x, LIF),
        lambda: kernels.convolve(x, torch.zeros(8, 16, 1, 1)),
        lambda: kernels.spikes_as_bytes(x.device),
        kernels.available,
        kernels.use_allocator,
    )
    for call in calls:
        with pytest.raises(ConfigError, match=f"^MSVIT_KERNELS={value}: one of off, cpu, triton"):
            call()


def test_a_neuron_that_no_kernel_knows_is_refused_not_taken_for_another(monkeypatch):
    x = torch.randn(4, 2, 8)
    for choice in ("", "off"):
        monkeypatch.setenv("MSVIT_KERNELS", choice)
        with pytest.raises(ValueError, match="no kernel knows the neuron 'klif'"):
            kernels.neuron(x, NeuronSpec("klif"))
    assert not kernels.supports(NeuronSpec("klif"))
    assert kernels.supports(NeuronSpec("plif"))


@pytest.mark.parametrize("name", SURROGATES)
def test_the_default_sharpness_is_spikingjellys(name):
    chosen = type(reference.surrogate_function(NeuronSpec(surrogate=name)))
    assert NeuronSpec(surrogate=name).alpha == chosen().alpha
    assert NeuronSpec(surrogate=name, surrogate_alpha=3.5).alpha == 3.5


needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")


def contract() -> dict[str, inspect.Signature]:
    """Methods of a backend."""
    methods = {n: m for n, m in vars(Backend).items() if inspect.isfunction(m) and n[0] != "_"}
    return {name: inspect.signature(method) for name, method in methods.items()}


@needs_triton
def test_backends_fulfil_the_contract_to_the_type():
    from msvit.kernels.cuda.passes import TritonBackend

    assert len(contract()) > 10
    for backend in (passes.CppBackend, TritonBackend):
        for name, signature in contract().items():
            assert inspect.signature(getattr(backend, name)) == signature, (backend, name)
        public = {n for n, m in vars(backend).items() if inspect.isfunction(m) and n[0] != "_"}
        assert public == contract().keys()  # nothing that only one of them has
    for built in (passes.backend(torch.bfloat16), TritonBackend(torch.bfloat16)):
        assert {name: type(getattr(built, name)).__name__ for name in get_type_hints(Backend)} == {
            "real": "dtype",
            "head_bytes": "int",
        }


@pytest.mark.slow
@needs_triton
def test_triton_on_the_cpu_is_its_interpreter_or_one_line():
    script = "import torch; from msvit import kernels; print(kernels.available('cpu'))"
    environment = {**os.environ, "MSVIT_KERNELS": "triton"}

    def run(**more: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", script]
        return subprocess.run(command, env=environment | more, capture_output=True, text=True)

    assert run(TRITON_INTERPRET="1").stdout == "True\n"
    refused = run(TRITON_INTERPRET="0").stderr.splitlines()[-1]
    assert "ConfigError: MSVIT_KERNELS=triton: on the CPU" in refused
    assert "TRITON_INTERPRET=1" in refused


INTERPRETED_TOO = (
    test_units_equal_torch_and_spikingjelly_in_float64,
    test_neuron_alone_equals_spikingjelly_bit_by_bit_in_float32,
    test_many_time_steps_equal_the_reference,
    test_max_pool_breaks_ties_like_torch,
    test_token_attention_equals_the_reference,
)


@pytest.mark.slow
@pytest.mark.slow
@needs_triton
def test_triton_kernels_pass_the_same_tests_in_the_interpreter(tmp_path):
    report = tmp_path / "report.xml"
    chosen = [f"{__file__}::{test.__name__}" for test in INTERPRETED_TOO]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={report}"]
    done = subprocess.run(
        [*command, *chosen],
        env={**os.environ, "MSVIT_KERNELS": "triton", "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    ran = [case for case in ElementTree.parse(report).iter("testcase") if not len(case)]
    assert {case.get("name").split("[")[0] for case in ran} == {
        test.__name__ for test in INTERPRETED_TOO
    }


NO_GPU = """
import json, subprocess, tempfile
import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction
from msvit.kernels import NeuronSpec, autograd
from msvit.kernels.cuda import kernels, passes

class NoGpu:
    def get_current_target(self): return GPUTarget("cuda", CAPABILITY, 32)
    def get_current_device(self): return 0
    def get_current_stream(self, device): return 0

compiled = []
def compile_only(kernel, grid):
    def call(*args, **options):
        compiled.append((kernel.fn.__name__, kernel.warmup(*args, grid=grid, **options)))
    return call

driver.set_active(NoGpu())
JITFunction.__getitem__ = compile_only
"""

COMPILE_ALL = """
from torch.utils._python_dispatch import TorchDispatchMode

class Calls(TorchDispatchMode):
    names = set()
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.overloadpacket.__name__)
        return function(*args, **kwargs or {})

backend = passes.backend(torch.bfloat16)
spec, w = NeuronSpec("plif", detach_reset=False), torch.zeros((), requires_grad=True)
y = torch.zeros(3, 1, 6, 6, 24, dtype=torch.bfloat16, requires_grad=True)
one = torch.zeros(3, 1, 1, 1, 5, dtype=torch.bfloat16, requires_grad=True)
joined = torch.zeros(3, 1, 6, 6, 48, dtype=torch.bfloat16, requires_grad=True)
static = y[:1].expand(9, *y.shape[1:])
norm, fixed = torch.nn.BatchNorm1d(24), torch.nn.BatchNorm1d(24).eval()
cumulative = torch.nn.BatchNorm1d(5, momentum=None)
offset = torch.zeros(24)
with Calls() as calls:
    for out in (
        autograd.norm_neuron(backend, y, norm, spec, w, y, None, False),
        autograd.norm_neuron(backend, y, norm, spec, w, None, None, True),
        autograd.norm_neuron(backend, static, norm, spec, w, None, None, False),
        autograd.norm_neuron(backend, y, fixed, spec, w, None, offset, False),
        autograd.norm_neuron(backend, one, cumulative, spec, w, None, None, False),
        autograd.norm_add(backend, y, norm, None, None, False),
        autograd.token_attention(backend, joined, 2, [y], spec, 8, w)[0],
        *(autograd.neuron(backend, one, NeuronSpec(surrogate=s), None) for s in SURROGATES),
    ):
        out.sum().backward()
known = {name for name, value in vars(kernels).items() if isinstance(value, JITFunction)}
public = {name for name in known if not name.startswith("_")}
assert all("cubin" in kernel.asm for _, kernel in compiled)
print(json.dumps([sorted(public ^ {name for name, _ in compiled}), sorted(calls.names)]))
"""

COMPILE_LARGE = """
def unit(dtype, steps, channels, spec=NeuronSpec()):
    backend, w = passes.backend(dtype), torch.zeros(()) if spec.kind == "plif" else None
    y = torch.zeros(steps, 2, 4, 4, channels, dtype=dtype)
    neuron, folded = backend.neuron(spec, w), torch.zeros(4, channels)
    common = {"steps": steps, "folded": folded, "neuron": neuron}
    backend.forward(y, **common, shortcut=y)
    backend.backward(y, y, **common, coefficients=None, write=True, sums=True)

plif = NeuronSpec("plif", detach_reset=False, surrogate="atan")
for case in (
    *((torch.bfloat16, 4, channels) for channels in (48, 96, 192, 768)),
    *((torch.float32, 4, channels) for channels in (48, 384)),
    *((dtype, steps, 384) for dtype in (torch.bfloat16, torch.float32) for steps in (6, 16, 32)),
    (torch.bfloat16, 16, 96, plif),
):
    unit(*case)
joined = torch.zeros(32, 2, 4, 4, 768, dtype=torch.bfloat16)
backend = passes.backend(torch.bfloat16)
half, neuron = joined[..., :384].contiguous(), backend.neuron(plif, torch.zeros(()))
backend.token_attention(joined, [half], parts=2, neuron=neuron, heads=8, keep=True)
scores, keys = torch.zeros(32, 2, 4, 4, 8), half.byte()
backend.token_attention_backward(half, scores, keys, parts=2, wide=True, neuron=neuron)

def resources(name, kernel):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    words = dict(word.split(":") for word in usage.split() if word.startswith(("REG:", "STACK:")))
    narrow = [x for x in kernel.asm["ptx"].splitlines() if "ld.global" in x and ".b16 " in x]
    return name, int(words["REG"]), int(words["STACK"]), len(narrow)

print(json.dumps([resources(*found) for found in compiled if not found[0].startswith("fold")]))
"""


def without_a_gpu(script: str, capability: int, cache: Path) -> list:
    """What ``script`` prints last, as JSON, where launching a Triton kernel only compiles it."""
    setting = f"CAPABILITY, SURROGATES = {capability}, {SURROGATES}\n"
    done = subprocess.run(
        [sys.executable, "-c", setting + NO_GPU + script],
        env={**os.environ, "TRITON_CACHE_DIR": str(cache), "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@needs_triton
def test_triton_kernels_compile_for_a_gpu_that_is_not_there(tmp_path):
    missing, calls = without_a_gpu(COMPILE_ALL, 80, tmp_path)
    assert missing == []
    assert {"sigmoid", "new_empty"} <= set(calls)
    # Values and lists that go from host to device or back: a CUDA graph has no place for them.
    waits = {"_local_scalar_dense", "equal", "index", "lift_fresh", "nonzero", "scalar_tensor"}
    assert not waits & set(calls)


@pytest.mark.slow
@needs_triton
def test_triton_kernels_spill_nothing_and_load_whole_words(tmp_path):
    found = without_a_gpu(COMPILE_LARGE, 90, tmp_path)
    assert len(found) == 28
    for name, registers, stack, narrow_loads in found:
        assert stack == 0, f"{name} spills {stack} bytes of {registers} registers"
        assert registers <= 168, f"{name}: fewer than 3 programs fit on a multiprocessor"
        assert narrow_loads == 0, f"{name} loads two bytes at a time"
