"""What ``training.compile`` trains: the same model, as one graph."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters

from msvit import kernels
from msvit.cells import Cell, resolve_cell
from msvit.options import ConfigError
from msvit.training import train_cell
from msvit.training.compilation import compiled, describe
from tests.small import small_input, small_model


@pytest.fixture(autouse=True)
def nothing_traced_before():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def outcome(model, step, images):
    """Logits, gradients and buffers of one training step."""
    model.train()
    model.zero_grad()
    logits = step(images)
    logits.square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return logits.detach(), gradients, {k: v.clone() for k, v in model.named_buffers()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [("msvit", {"neuron": "plif"}), ("spikformer", {}), ("spikingresformer", {})],
)
def test_a_model_is_one_graph_with_the_same_values(name, options, monkeypatch):
    # What torch traces and differentiates, without the code that Inductor would make of it.
    inductor = torch.compile
    asked = []
    monkeypatch.setattr(
        torch,
        "compile",
        lambda model, **k: asked.append(k) or inductor(model, backend="aot_eager", fullgraph=True),
    )
    counters.clear()
    model = small_model(name, timesteps=2, **options).double()
    images = small_input(model, 2)
    start = {key: value.clone() for key, value in model.state_dict().items()}
    logits, gradients, buffers = outcome(model, model, images)
    model.load_state_dict(start)
    found = outcome(model, compiled(model, "reduce-overhead"), images)
    assert asked == [{"mode": "reduce-overhead", "fullgraph": True, "dynamic": False}]
    assert counters["stats"]["unique_graphs"] == 1

    assert logits.abs().max() > 1e-3
    torch.testing.assert_close(found[0], logits, rtol=1e-10, atol=1e-12)
    assert found[1].keys() == gradients.keys()
    for key, gradient in gradients.items():
        torch.testing.assert_close(found[1][key], gradient, rtol=1e-8, atol=1e-12)
    for key, value in buffers.items():
        torch.testing.assert_close(found[2][key], value, rtol=1e-10, atol=1e-12)


def small_cell(**training) -> Cell:
    return resolve_cell(
        {
            "model": {"name": "spikformer", "dim": 16, "heads": 2, "depths": [1], "timesteps": 2},
            "data": {"name": "digits", "image_size": 8, "train_per_class": 13},
            "training": {"epochs": 2, "batch_size": 32, "precision": "fp32", **training},
            "seed": 0,
        },
        "test",
    )


@pytest.mark.slow
@pytest.mark.skipif(kernels.cpp_compiler() is None, reason="this machine has no C++ compiler")
def test_a_compiled_cell_trains_as_the_others_do(tmp_path, monkeypatch):
    """With Inductor, from the cell to its record."""
    counters.clear()
    monkeypatch.delenv("TORCHINDUCTOR_COMPILE_THREADS", raising=False)
    monkeypatch.setattr(torch._inductor.config, "compile_threads", 99)
    plain = train_cell(small_cell(), tmp_path / "plain")
    record = train_cell(small_cell(compile="default"), tmp_path / "compiled")
    assert record["kernels"] == "torch.compile (default)"
    # Other cells have the other processors.
    assert torch._inductor.config.compile_threads == torch.get_num_threads()
    assert record["cell"]["training"]["compile"] == "default"
    assert record["id"] != plain["id"]
    # Sums in another order let single neurons fire otherwise: alike, not equal.
    for ours, other in zip(record["history"], plain["history"], strict=True):
        assert ours["train_loss"] == pytest.approx(other["train_loss"], abs=2e-3)
    assert record["history"][1]["train_loss"] < record["history"][0]["train_loss"]
    # Neither other batches nor evaluation have started another one.
    assert counters["stats"]["unique_graphs"] == 1


def test_cells_that_compile_nothing_are_named_as_before_the_option_was_there():
    cell = small_cell()
    assert "compile" not in cell.training
    assert small_cell(compile=None).id == cell.id == "3d6f459bf47f"


def test_a_missing_compiler_is_said_before_anything_is_traced(monkeypatch):
    monkeypatch.setattr(kernels, "cpp_compiler", lambda: None)
    with pytest.raises(ConfigError, match=r"no C\+\+ compiler.*training.compile=null"):
        compiled(small_model("msvit"), "default")
    model = small_model("msvit")
    assert compiled(model, None) is model


def test_the_record_says_where_graphs_were_not_replayed():
    counters.clear()
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    without = "torch.compile (reduce-overhead, without CUDA graphs)"
    assert describe("reduce-overhead", cpu) == without
    assert describe("default", cpu) == describe("default", gpu) == "torch.compile (default)"
    assert describe("reduce-overhead", gpu) == "torch.compile (reduce-overhead)"
    counters["inductor"]["cudagraph_skips"] += 1
    assert describe("reduce-overhead", gpu) == without


def test_an_unknown_mode_is_refused():
    with pytest.raises(ConfigError, match=r"training.compile: .*did you mean 'reduce-overhead'"):
        small_cell(compile="reduce_overhead")
    with pytest.raises(ConfigError, match=r"'none'.*null"):
        small_cell(compile="none")
