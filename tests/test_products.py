"""Products of spikes that add up what fired, against torch's dense ones."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from msvit import kernels, processor
from msvit.kernels import reference
from msvit.kernels.cpu import build, sparse_products, spike_bytes
from msvit.precision import choose_precision
from tests.small import fire, small_input, small_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        build.sparse_products(torch.float32) is None, reason="this machine has no C++ compiler"
    ),
]
KERNELS = [(1, 1), (3, 3), (1, 3), (5, 5), (3, 1), (1, 7), (7, 15)]
CPU = torch.device("cpu")


def spikes(*shape: int, rate: float, most: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    """Zeros, and at ``rate`` of the places whole numbers up to ``most``."""
    values = torch.randint(1, most + 1, shape) * (torch.rand(shape) < rate)
    return values.to(dtype)


def padding(weight: Tensor) -> tuple[int, int]:
    return (weight.shape[2] // 2, weight.shape[3] // 2)


def outcome(convolve, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Product, and the gradients of both operands for a gradient that depends on the sizes only."""
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y = convolve(x, weight, 1, padding(weight), 1)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    return y.detach(), *torch.autograd.grad(y, (x, weight), grad)


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / (exact.norm() + 1e-30))


def assert_equals_dense(x: Tensor, weight: Tensor) -> None:
    """In float64, and by the sparse way."""
    assert sparse_products.supports(x, weight)
    assert sparse_products.few_spikes(x.contiguous(), weight) is not None
    found = outcome(kernels.convolve, x, weight)
    for ours, dense in zip(found, outcome(reference.convolve, x, weight), strict=True):
        assert error(ours, dense) < 1e-13


@pytest.fixture
def counted(monkeypatch) -> list[torch.Size]:
    """The shapes of what has been multiplied sparsely."""
    shapes: list[torch.Size] = []
    product = sparse_products.Products.product
    monkeypatch.setattr(
        sparse_products.Products,
        "product",
        lambda self, x, *a: shapes.append(a[0]) or product(self, x, *a),
    )
    return shapes


@pytest.mark.slow
@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(
    images=st.tuples(st.integers(1, 3), st.integers(1, 5)),
    plane=st.tuples(st.integers(1, 45), st.integers(1, 45)),
    channels=st.integers(sparse_products.FEWEST_CHANNELS, 140),
    outputs=st.integers(1, 230),
    kernel=st.sampled_from(KERNELS),
    rate=st.sampled_from([0.0, 0.02, 0.1, 0.3]),
    most=st.sampled_from([1, 2, 6]),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**16),
)
def test_sums_of_spikes_equal_dense_products_in_float64(
    images, plane, channels, outputs, kernel, rate, most, threads, seed
):
    torch.manual_seed(seed)
    x = spikes(*images, *plane, channels, rate=rate / most, most=most)
    weight = torch.randn(outputs, channels, *kernel, dtype=torch.float64)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert kernels.convolve(x[:1], weight, 1, padding(weight)).dtype == torch.float64
        assert_equals_dense(x, weight)
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [(3, 3), (5, 5), (1, 3), (7, 15)])
@pytest.mark.parametrize("plane", [(45, 45), (130, 20), (40, 300)])
def test_planes_larger_than_a_tile(plane, kernel):
    torch.manual_seed(0)
    x = spikes(1, 2, *plane, 24, rate=0.1, most=2)
    weight = torch.randn(40, 24, *kernel, dtype=torch.float64)
    assert_equals_dense(x, weight)


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3)])
def test_outputs_larger_than_the_caches(kernel):
    torch.manual_seed(0)
    x = spikes(1, 9, 64, 64, 32, rate=0.05, dtype=torch.float32)
    weight = torch.randn(256, 32, *kernel)
    found = kernels.convolve(x, weight, 1, padding(weight))
    assert found.numel() * found.element_size() > 32 << 20
    assert error(found, reference.convolve(x, weight, 1, padding(weight), 1).double()) < 1e-6


def test_inference_mode_and_tracing():
    torch.manual_seed(0)
    weight = torch.randn(32, 32, 3, 3)
    model = small_model("msvit").double().eval()
    images = small_input(model, 2)
    with torch.no_grad():
        expected = model(images)
    with torch.inference_mode():
        assert torch.equal(model(images), expected)

    def convolve(x: Tensor) -> Tensor:
        return kernels.convolve(x, weight, 1, (1, 1))

    first, second = (spikes(1, 2, 8, 8, 32, rate=0.1, dtype=torch.float32) for _ in range(2))
    traced = torch.jit.trace(convolve, first)
    torch.testing.assert_close(traced(second), convolve(second))


def test_a_backward_pass_under_autocast_stays_in_the_precision_of_forward():
    torch.manual_seed(0)
    x = spikes(1, 2, 8, 8, 32, rate=0.1, dtype=torch.float32).requires_grad_()
    y = kernels.convolve(x, torch.randn(32, 32, 3, 3), 1, (1, 1))
    (expected,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("value", [1, 2, 254, 255])
def test_sums_as_large_as_a_byte_holds(value):
    torch.manual_seed(0)
    x = spikes(1, 2, 9, 9, 70, rate=0.001)
    x[0, 1, 4, 4, 65] = value
    weight = torch.randn(40, 70, 3, 3, dtype=torch.float64)
    assert_equals_dense(x, weight)


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3)])
def test_float32_is_as_exact_as_a_dense_product(kernel):
    torch.manual_seed(0)
    x = spikes(4, 8, 32, 32, 96, rate=0.1, dtype=torch.float32)
    weight = torch.randn(96, 96, *kernel)
    exact = outcome(reference.convolve, x.double(), weight.double())
    for found, truth in zip(outcome(kernels.convolve, x, weight), exact, strict=True):
        assert error(found, truth) < 1e-6


@pytest.mark.parametrize("outputs", [96, 32])
def test_bfloat16_rounds_operands_and_keeps_the_weights_gradient_in_float32(outputs):
    torch.manual_seed(0)
    x = spikes(2, 4, 16, 16, 96, rate=0.05, dtype=torch.bfloat16)
    weight = torch.randn(outputs, 96, 3, 3)
    if sparse_products.bounds(torch.bfloat16).most_spikes == 0:
        pytest.skip("this processor multiplies matrices in bfloat16")
    with torch.autocast("cpu", torch.bfloat16):
        y, x_grad, weight_grad = outcome(kernels.convolve, x, weight)
    assert y.dtype == x_grad.dtype == torch.bfloat16
    assert weight_grad.dtype == torch.float32
    exact = outcome(reference.convolve, x.double(), weight.to(torch.bfloat16).double())
    assert error(y, exact[0]) < 3e-3
    assert error(x_grad, exact[1]) < 3e-3
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    wide = x.double().requires_grad_(), weight.double().requires_grad_()
    out = reference.convolve(*wide, 1, padding(weight), 1)
    (truth,) = torch.autograd.grad(out, wide[1], grad.double())
    assert error(weight_grad, truth) < 1e-6


def test_what_is_no_spikes_or_too_many_is_multiplied(counted):
    torch.manual_seed(0)
    weight = torch.randn(32, 48, 3, 3)
    few = spikes(2, 2, 8, 8, 48, rate=0.1, dtype=torch.float32)
    others = {
        "many": spikes(2, 2, 8, 8, 48, rate=0.9, dtype=torch.float32),
        "large sums": few * 100,
        "fractions": few * 0.5,
        "negative": -few,
    }
    kernels.convolve(few, weight, 1, (1, 1))
    assert counted == [few.shape]
    for x in others.values():
        found = kernels.convolve(x, weight, 1, (1, 1))
        assert torch.equal(found, reference.convolve(x, weight, 1, (1, 1), 1))
    assert counted == [few.shape]


@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "pad", "groups"),
    [
        (32, (3, 3), 2, (1, 1), 1),
        (32, (3, 3), 1, (0, 0), 1),
        (32, (2, 2), 1, (1, 1), 1),
        (32, (3, 3), 1, (1, 1), 32),
        (2, (3, 3), 1, (1, 1), 1),
        (32, (1, 1), 2, (0, 0), 1),
        (32, (1, 1), 1, (1, 1), 1),
    ],
)
def test_every_convolution_equals_torchs(channels, kernel, stride, pad, groups):
    torch.manual_seed(0)
    x = spikes(2, 3, 9, 8, channels, rate=0.1)
    weight = torch.randn(64, channels // groups, *kernel, dtype=torch.float64)
    maps = x.flatten(0, 1).permute(0, 3, 1, 2)
    expected = torch.nn.functional.conv2d(maps, weight, None, stride, pad, 1, groups)
    found = kernels.convolve(x, weight, stride, pad, groups)
    assert error(found.flatten(0, 1).permute(0, 3, 1, 2), expected) < 1e-13


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_weight_or_gradient_that_is_no_number_is_passed_on(bad):
    x = torch.zeros(1, 2, 4, 4, 32)
    x[..., 3] = 1
    weight = torch.ones(32, 32, 3, 3).requires_grad_()
    with torch.no_grad():
        weight[5, 3, 1, 1] = bad
    y = kernels.convolve(x, weight, 1, (1, 1))
    assert not y[..., 5].isfinite().any()
    assert y[..., :5].isfinite().all()
    grad = torch.ones_like(y)
    grad[0, 0, 2, 2, 7] = bad
    (found,) = torch.autograd.grad(y, weight, grad)
    assert not found[7, 3].isfinite().any()
    assert found[:7].isfinite().all()


def test_operands_are_refused_as_torch_refuses_them():
    x = spikes(1, 2, 8, 8, 32, rate=0.1, dtype=torch.bfloat16)
    with pytest.raises(RuntimeError):
        kernels.convolve(x, torch.randn(8, 32, 3, 3), 1, (1, 1))
    with pytest.raises(RuntimeError):
        kernels.convolve(x.float(), torch.randn(8, 31, 3, 3), 1, (1, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_same_threads_same_bits(dtype):
    torch.manual_seed(0)
    x = spikes(2, 8, 32, 32, 64, rate=0.1, dtype=dtype)
    weight = torch.randn(64, 64, 3, 3, dtype=dtype)
    first, second = (outcome(kernels.convolve, x, weight) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_products_of_one_input_share_its_bytes_and_keep_nothing_else(monkeypatch):
    converted = []
    convert = spike_bytes.Codec.encode
    monkeypatch.setattr(
        spike_bytes.Codec, "encode", lambda self, x: converted.append(x.shape) or convert(self, x)
    )
    x = spikes(1, 2, 32, 32, 32, rate=0.1, dtype=torch.float32)
    weights = [torch.randn(8, 32, k, k, requires_grad=True) for k in (1, 3)]
    kept = []
    with kernels.spikes_as_bytes(CPU):
        outs = [kernels.convolve(x, w, 1, padding(w)) for w in weights]
        tokens = kernels.convolve(x.flatten(2, 3).unsqueeze(2), weights[0])
    for out in (*outs, tokens):
        kept += [saved for saved in out.grad_fn.saved_tensors if saved.dtype != torch.float32]
    assert converted == [x.shape]
    assert {saved.dtype for saved in kept} == {torch.uint8}
    assert len({saved.data_ptr() for saved in kept}) == 1


@pytest.mark.parametrize("grad", [True, False])
def test_a_forward_pass_lets_go_of_what_nobody_will_ask_for(grad):
    """Bytes of spikes that have died stay for the backward pass only, but for 16 MiB of them."""
    weight = torch.randn(16, 32, 1, 1)
    size = 2**22
    with torch.set_grad_enabled(grad), kernels.spikes_as_bytes(CPU) as current:
        for _ in range(9):
            x = spikes(1, 2, 256, 256, 32, rate=0.1, dtype=torch.float32)
            assert x.numel() == size
            kernels.convolve(x, weight)
            kept = [found for found in current.remembered() if found.total > 0]
            assert len(kept) * size <= spike_bytes.MOST_DEAD + size


@pytest.mark.slow
@pytest.mark.parametrize("name", ["msvit", "spikformer", "qkformer", "spikingformer", "sdt"])
def test_models_take_the_sparse_way_and_end_where_the_dense_one_does(name, counted, monkeypatch):
    found = []
    for sparse in (True, False):
        torch.manual_seed(0)
        model = small_model(name).double()
        fire(model)
        if not sparse:
            monkeypatch.setattr(sparse_products, "few_spikes", lambda *_: None)
        images = small_input(model, 4)
        counted.clear()
        y = model(images)
        y.square().sum().backward()
        found.append([y.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
        assert bool(counted) == sparse
    assert len(found[0]) > 20
    for ours, dense in zip(*found, strict=True):
        assert error(ours, dense.double()) < 1e-9


PROCESSORS = {  # words of /proc/cpuinfo
    "AMX": ("GenuineIntel avx512_bf16 amx_bf16", True, 0.0),
    "AMX hidden": ("GenuineIntel avx512_bf16", False, 0.4),
    "AMD": ("AuthenticAMD avx512_bf16", True, 0.2),
    "older AMD": ("AuthenticAMD avx2", False, 0.4),
    "Arm": ("asimd bf16", True, 0.2),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_the_faster_bfloat16_is_the_fewer_spikes_are_worth_adding_up(name, monkeypatch):
    words, faster, most = PROCESSORS[name]
    monkeypatch.setattr(processor, "description", lambda: f"flags : {words}")
    sparse_products.bounds.cache_clear()
    try:
        assert choose_precision("auto", CPU).label.startswith("bf16") == faster
        assert sparse_products.bounds(torch.bfloat16).most_spikes == most
        assert (sparse_products.bounds(torch.bfloat16).outputs > 0) == faster
        assert sparse_products.bounds(torch.float32).most_spikes == 0.33
    finally:
        sparse_products.bounds.cache_clear()


@pytest.mark.parametrize(
    ("dtype", "channels", "outputs", "sums"),
    [
        ("bfloat16", 48, 64, True),
        ("bfloat16", 48, 63, False),
        ("bfloat16", 47, 64, False),
        ("float32", 48, 8, True),
        ("float32", 47, 64, False),
    ],
)
def test_narrow_products_are_dense_and_their_gradients_sums(
    dtype, channels, outputs, sums, counted, monkeypatch
):
    gradients = []
    gradient = sparse_products.Products.weight_gradient
    monkeypatch.setattr(
        sparse_products.Products, "weight_gradient", lambda *a: gradients.append(a) or gradient(*a)
    )
    monkeypatch.setattr(processor, "description", lambda: "AuthenticAMD avx512_bf16")
    sparse_products.bounds.cache_clear()
    dtype = getattr(torch, dtype)
    x = spikes(1, 2, 16, 16, channels, rate=0.1, dtype=dtype)
    weight = torch.randn(outputs, channels, 3, 3)
    with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
        found = outcome(kernels.convolve, x, weight)
        dense = outcome(reference.convolve, x, weight)
    sparse_products.bounds.cache_clear()
    assert (len(counted), len(gradients)) == (sums, 1)
    for ours, theirs in zip(found, dense, strict=True):
        assert error(ours, theirs.double()) < (2e-2 if dtype == torch.bfloat16 else 1e-6)


def test_rows_too_wide_for_lists_of_places_are_dense(counted):
    x = spikes(1, 1, 3, 13_106, 16, rate=0.01)
    weight = torch.randn(16, 16, 3, 3, dtype=torch.float64)
    # The frame of one row has five rows, each two places wider: at 13,106 that is 2¹⁶ and more.
    for width, sparse in ((13_105, True), (13_106, False)):
        row = x[..., :width, :]
        found = outcome(kernels.convolve, row, weight)
        assert bool(counted) == sparse
        counted.clear()
        for ours, dense in zip(found, outcome(reference.convolve, row, weight), strict=True):
            assert error(ours, dense) < 1e-13


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["sse2", "avx2", "avx512vl"])
def test_other_processors_compute_the_same(flag, tmp_path):
    """Once more in a process of its own, with the instructions of another processor."""
    if not processor.has_any(flag):
        pytest.skip(f"this processor has no {flag}")
    native = {"sse2": (), "avx2": ("-march=x86-64-v3",), "avx512vl": ("-march=x86-64-v4",)}[flag]
    program = f"""
import sys, pytest
from msvit.kernels.cpu import build
build.NATIVE = {native!r}
build.FLAGS = tuple(flag.replace("-O3", "-O1") for flag in build.FLAGS)
chosen = "in_float64 or as_large"
sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", {__file__!r}, "-k", chosen]))
"""
    environment = {**os.environ, "MSVIT_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert list(tmp_path.glob("products-*")), "nothing was compiled for it"
