"""What a training step keeps, and the memory it takes it from."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.functional import conv2d, linear

from msvit import kernels
from msvit.kernels.cpu import build, spike_bytes
from tests.small import fire, small_input, small_model

pytestmark = pytest.mark.skipif(
    build.units(torch.float32) is None, reason="this machine has no C++ compiler"
)
DTYPES = [torch.float32, torch.bfloat16, torch.float64]


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    dtype=st.sampled_from(DTYPES),
    count=st.integers(1, 70_000),
    largest=st.sampled_from([1, 3, 255]),
    place=st.floats(0, 1, exclude_max=True),
    other=st.sampled_from([-1.0, 0.5, 256.0, 1e30, float("nan"), float("inf"), -float("inf")]),
)
def test_bytes_hold_small_whole_numbers_and_nothing_else(dtype, count, largest, place, other):
    codec = spike_bytes.codec(dtype)
    x = torch.randint(largest + 1, (count,)).to(dtype)
    values, total = codec.encode(x)
    assert torch.equal(codec.decode(values, torch.empty_like(x)), x)
    assert torch.equal(values[:count].to(dtype), x)
    assert total == int(x.double().sum())
    x[int(place * count)] = other
    assert codec.encode(x) is None


def forward(x: torch.Tensor, weight: torch.Tensor, images: bool) -> torch.Tensor:
    if not images:
        return linear(x, weight)
    maps = x.permute(0, 3, 1, 2)
    return conv2d(maps, weight[..., None, None].expand(-1, -1, 3, 3))


@pytest.mark.parametrize("images", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["spikes", "potential"])
def test_a_product_keeps_bytes_for_spikes_and_gives_the_same_gradients(kind, dtype, images):
    torch.manual_seed(0)
    x = torch.rand(4, 20, 20, 16).to(dtype)
    x = x.round() if kind == "spikes" else x
    weight = torch.randn(8, 16).to(dtype).requires_grad_()
    (expected,) = torch.autograd.grad(forward(x, weight, images).square().sum(), weight)

    given = x.clone()
    storage = StorageWeakRef(given.untyped_storage())
    with kernels.spikes_as_bytes(torch.device("cpu")):
        y = forward(given, weight, images)
    del given
    assert storage.expired() == (kind == "spikes")  # nothing but bytes is left of spikes
    (found,) = torch.autograd.grad(y.square().sum(), weight)
    assert torch.equal(found, expected)


def test_products_of_one_input_share_its_bytes_until_it_changes(monkeypatch):
    packed = []
    pack = spike_bytes.Codec.encode
    monkeypatch.setattr(
        spike_bytes.Codec, "encode", lambda self, x: packed.append(x) or pack(self, x)
    )
    x = torch.ones(100, 400)
    weights = [torch.randn(5, 400, requires_grad=True) for _ in range(3)]
    with kernels.spikes_as_bytes(x.device):
        out = linear(x, weights[0]).sum() + linear(x, weights[1]).sum()
        assert len(packed) == 1
        x.mul_(2)
        out = out + linear(x, weights[2]).sum()
        assert len(packed) == 2
    out.backward()
    assert [float(w.grad[0, 0]) for w in weights] == [100, 100, 200]


@pytest.mark.parametrize("name", ["msvit", "spikformer", "spikingformer", "maxformer"])
def test_models_keep_bytes_and_train_alike_without(name, monkeypatch):
    found, unpacked = [], []
    unpack = spike_bytes.Codec.decode
    monkeypatch.setattr(
        spike_bytes.Codec, "decode", lambda *a: unpacked.append(a) or unpack(*a), raising=True
    )
    for keep_bytes in (True, False):
        model = small_model(name).double()
        fire(model)
        model.zero_grad()
        if not keep_bytes:
            monkeypatch.setattr(kernels, "spikes_as_bytes", lambda device: nullcontext())
        model(small_input(model, 4)).square().sum().backward()
        found.append([p.grad for p in model.parameters() if p.grad is not None])
        assert (len(unpacked) > 5) == keep_bytes
        unpacked.clear()
    assert len(found[0]) > 20
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_bytes_are_remembered_while_the_spikes_live(monkeypatch):
    monkeypatch.setattr(spike_bytes, "MOST_DEAD", 0)  # the dead are looked for every time
    made = []
    encode = spike_bytes.Codec.encode
    monkeypatch.setattr(spike_bytes.Codec, "encode", lambda *a: made.append(1) or encode(*a))
    current = spike_bytes.ForwardPass()
    kept = [torch.full((4, 64), i % 2.0) for i in range(3)]
    for _ in range(2):
        for x in kept:
            assert current.bytes_of(x).total == x.sum()
            current.bytes_of(torch.zeros(4, 64))  # dies at once
    assert len(made) == 3 + 6  # each of the living once
    assert len(current.remembered()) <= 3 + 1


def test_parts_of_one_memory_are_told_apart():
    """Two dense halves and a strided view of one storage, each with numbers of its own."""
    whole = torch.cat((torch.ones(200, 100), torch.full((200, 100), 2.0)))
    halves, strided = (whole[:200], whole[200:]), whole[::2]
    weights = [torch.randn(5, 100, requires_grad=True) for _ in range(4)]
    with kernels.spikes_as_bytes(whole.device):
        parts = [linear(x, w).sum() for x, w in zip((*halves, strided), weights, strict=False)]
        parts.append(linear(whole.view(torch.int32)[:200].float(), weights[3]).sum())
    sum(parts).backward()
    assert [float(w.grad[0, 0]) for w in weights[:3]] == [200, 400, 300]


def test_a_change_in_place_is_noticed_as_without_hooks():
    for start in (torch.randn(200, 100), torch.ones(20, 10)):
        x, weight = start.clone(), torch.randn(5, start.shape[1], requires_grad=True)
        with kernels.spikes_as_bytes(x.device):
            y = linear(x, weight)
        x.mul_(2)
        with pytest.raises(RuntimeError, match="changed in place"):
            y.sum().backward()


def test_hooks_of_the_caller_are_left_alone():
    model = small_model("msvit").double()
    seen = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: seen.append(x.shape) or x, lambda x: x):
        model(small_input(model, 2))
    assert len(seen) > 20


@pytest.mark.slow
def test_a_small_cell_after_a_large_one_knows_its_own_peak():
    script = """
import torch
from msvit.runtime import peak_memory_gb, prepare_process, reset_peak_memory
prepare_process()
cpu, peaks = torch.device("cpu"), []
for megabytes in (10, 500, 10):
    reset_peak_memory(cpu)
    x = [torch.ones(2**18) for _ in range(megabytes)]
    del x
    peaks.append(peak_memory_gb(cpu))
print(peaks[1] - peaks[0], peaks[2] - peaks[0])
"""
    if not sys.platform.startswith("linux"):
        pytest.skip("peaks are not reset here")
    output = subprocess.check_output([sys.executable, "-c", script], text=True)
    large, small = map(float, output.split())
    assert large > 0.4
    assert small < 0.1


CHURN = """
import torch
from msvit.runtime import peak_memory_gb, prepare_process
before = torch.ones(3000)
prepare_process()
cpu = torch.device("cpu")
start = peak_memory_gb(cpu)
for step in range(40):  # what a training step does: keep much, then give it back piece by piece
    kept = [torch.ones(40_000 + 997 * (i % 7)) for i in range(200)]
    while kept:
        del kept[-1]
        gradient = torch.ones(40_000 + 997 * (len(kept) % 5))
sizes = [0, 1, 15, 16, 17, 1000, 100_003]
made = [torch.empty(n, dtype=torch.uint8).fill_(n % 256) for n in sizes]
assert all(m.data_ptr() % 64 == 0 for m in made)
assert [int(m.long().sum()) for m in made] == [n * (n % 256) for n in sizes]
grown = made[-1].resize_(200_000)
assert int(grown[:100_003].long().sum()) == 100_003 * (100_003 % 256)
del before
print(peak_memory_gb(cpu) - start)
"""


@pytest.mark.slow
def test_freed_memory_is_used_again():
    def grown(kernels: str) -> float:
        environment = {**os.environ, "MSVIT_KERNELS": kernels, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", CHURN]
        return float(subprocess.check_output(command, env=environment, text=True))

    if build.allocator() is None or not sys.platform.startswith("linux"):
        pytest.skip("no allocator here")
    live = sum(4 * (40_000 + 997 * (i % 7)) for i in range(200)) / 1e9
    with_it = grown("")
    assert with_it < 1.3 * live
    assert with_it < grown("off")
