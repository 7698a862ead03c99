"""Models on their way out: ``torch.export``, ONNX, tracing, and precisions they refuse."""

from __future__ import annotations

import copy

import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from msvit.models.options import SpikingOptions
from tests.small import SMALL, fire, small_input, small_model

pytestmark = pytest.mark.slow


def ready(name, **options):
    """A small model in eval mode that fires, float64, and its input.

    In float32 an order of sums would do to move spikes.
    """
    model = small_model(name, timesteps=2, **options).double()
    fire(model)
    return model, small_input(model, batch=2)


@pytest.mark.parametrize("name", ["msvit", "spikformer", "vit"])  # half a minute each
def test_an_exported_model_computes_the_same(name):
    model, x = ready(name)
    exported = torch.export.export(model, (x,)).module()
    for images in (x, 0.7 * x):
        assert torch.allclose(exported(images), model(images), atol=1e-9)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.trace.*")
@pytest.mark.parametrize("name", SMALL)
def test_a_traced_model_computes_the_same(name):
    model, x = ready(name)
    traced = torch.jit.trace(model, x)  # it traces twice, once without gradients, and compares
    with torch.no_grad():
        for images in (x, 0.7 * x):
            assert torch.allclose(traced(images), model(images), atol=1e-9)


def test_a_model_becomes_onnx_and_computes_the_same_there(tmp_path):
    # Of all the one that is exported fastest, in half a minute; msvit takes two.
    model, x = ready("spikformer", depths=(1,))
    torch.onnx.export(model, (x,), dynamo=True, verbose=False).save(tmp_path / "model.onnx")
    onnx.checker.check_model(tmp_path / "model.onnx")
    (logits,) = ReferenceEvaluator(str(tmp_path / "model.onnx")).run(None, {"x": x.numpy()})
    assert torch.allclose(torch.from_numpy(logits), model(x), atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", SMALL)
def test_neurons_refuse_to_be_rounded_and_a_vit_does_not(name, dtype):
    model = small_model(name, timesteps=2)
    fire(model)
    x = small_input(model, 2, torch.float32)
    before = model(x)
    if not isinstance(model.options, SpikingOptions):
        rounded = copy.deepcopy(model).to(dtype)(x.to(dtype))
        assert torch.allclose(rounded.float(), before, atol=0.05)
        return
    for convert in (lambda: model.to(dtype), model.half, model.bfloat16):
        with pytest.raises(TypeError, match=r"stays in float32.*torch\.autocast"):
            convert()
    assert torch.equal(model(x), before), "it was changed all the same"
    with torch.autocast("cpu", dtype):
        assert model(x).isfinite().all()
    assert model.double()(x.double()).dtype == torch.float64
