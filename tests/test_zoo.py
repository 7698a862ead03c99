"""What every model of the zoo does, whatever its architecture."""

from __future__ import annotations

import pytest
import torch

from msvit import create_model, list_models
from msvit.layers.synapses import MatrixProduct
from msvit.models import model_options, zoo
from msvit.models.__main__ import dense_macs_per_step
from msvit.neurons import Spikes
from msvit.options import ConfigError
from tests.small import ENTRIES, fire, small_input, small_model

pytestmark = pytest.mark.slow

NAMES = list_models()
#: Parameters of the official implementations, measured with their code (in units).
OFFICIAL_PARAMETERS = {
    "msvit_cifar10": 7_558_762,
    "msvit_cifar100": 7_445_956,
    "qkformer_cifar10": 6_706_234,
    "qkformer_cifar100": 6_740_884,
    "qkformer_cifar10dvs": 1_504_138,
    "qkformer_dvs128": 1_999_371,
}
#: The same for ImageNet models, in millions to the digits that are known.
OFFICIAL_MILLIONS = {
    "msvit_10_384": 17.686,
    "msvit_10_512": 31.233,
    "msvit_10_768": 69.802,
    "qkformer_10_384": 16.47,
    "qkformer_10_512": 29.08,
    "qkformer_10_768": 64.96,
}


def parameters(name: str) -> int:
    with torch.device("meta"):  # shapes without memory
        return sum(p.numel() for p in create_model(name).parameters())


@pytest.mark.parametrize("name", NAMES)
def test_every_size_builds_and_has_a_published_count_nearby(name):
    millions = parameters(name) / 1e6
    published = zoo()[name].get("published_m")
    if published and "note" not in zoo()[name]:
        digits = len(str(published).split(".")[1])  # as many as were printed
        assert millions == pytest.approx(published, abs=0.51 * 10**-digits)


@pytest.mark.parametrize(("name", "count"), OFFICIAL_PARAMETERS.items())
def test_parameters_are_the_official_ones(name, count):
    assert parameters(name) == count


@pytest.mark.parametrize(("name", "millions"), OFFICIAL_MILLIONS.items())
def test_imagenet_parameters_are_the_official_ones(name, millions):
    digits = len(str(millions).split(".")[1])
    assert round(parameters(name) / 1e6, digits) == millions


@pytest.mark.parametrize("name", [n for n in NAMES if "other_gmac" in zoo()[n]])
def test_dense_operations_are_those_of_others_but_for_what_is_told(name):
    entry = zoo()[name]
    assert "without attention products" in entry["gmac_source"]
    with torch.device("meta"):
        model = create_model(name)
    products = [m for m in model.modules() if isinstance(m, MatrixProduct)]
    whole = dense_macs_per_step(model)
    for product in products:
        product.dense_macs = lambda *operands: 0
    without = dense_macs_per_step(model)
    assert without < whole
    norms_and_neurons = 0.007 if "with norms" in entry["gmac_source"] else 0
    low, high = without / 1e9 - 0.005, without * (1 + norms_and_neurons) / 1e9 + 0.005
    assert low <= entry["other_gmac"] <= high


@pytest.mark.parametrize("timesteps", [1, 4])
@pytest.mark.parametrize("name", ENTRIES)
def test_forward_and_backward(name, timesteps):
    model = small_model(name, timesteps)
    x = small_input(model, batch=3, dtype=torch.float32)
    logits = model(x)
    assert logits.shape == (model.options.timesteps, 3, model.options.num_classes)
    logits.mean(0).logsumexp(-1).sum().backward()
    silent = [
        n
        for n, p in model.named_parameters()
        if p.grad is None and not n.endswith("conv.bias")  # cancelled by the norm behind it
    ]
    assert not silent, "parameters that no gradient reaches"
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", ENTRIES)
def test_an_image_does_not_see_the_rest_of_its_batch(name):
    model = small_model(name).double()
    fire(model)
    x = small_input(model, batch=5)
    images = 1 if x.ndim == 5 else 0
    order = torch.tensor([3, 0, 4, 2, 1])
    with torch.no_grad():
        together = model(x)
        alone = torch.cat([model(one) for one in x.split(1, dim=images)], dim=1)
        shuffled = model(x.index_select(images, order))
    assert together.std(dim=1).max() > 1e-3, "the images must differ for this to mean anything"
    torch.testing.assert_close(alone, together, atol=1e-9, rtol=0)
    torch.testing.assert_close(shuffled, together[:, order], atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", ["msvit", "qkformer"])
def test_batch_coupling_is_there_when_asked_for(name):
    model = small_model(name, batch_coupled=True).double()
    fire(model)
    x = small_input(model, batch=5)
    with torch.no_grad():
        together = model(x)
        alone = torch.cat([model(one) for one in x.split(1)], dim=1)
    assert (together - alone).abs().max() > 1e-3


def test_qkformer_is_msvit_with_every_change_undone():
    undone = {"scales": (1,), "attn_threshold": 0.5, "widths": (0.25, 0.5, 1.0)}
    ours = small_model("msvit", **undone).double()
    reference = small_model("qkformer").double()
    ours.load_state_dict(reference.state_dict())
    fire(reference)
    ours.load_state_dict(reference.state_dict())
    x = small_input(reference, batch=2)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x), reference(x), atol=0, rtol=0)


AXES = {
    "scales": [(1,), (3,), (1, 3, 5), (1, 3, 5, 7), (3, 3)],
    "fusion": ["token", "token_channel"],
    "branch_kernel": ["1d", "2d"],
    "projections": ["separate", "shared"],
    "stages": [(), (1,), (1, 2, 3)],
    "neuron": ["lif", "if", "plif", "klif", "glif", "clif", "ilif", "psn"],
    "surrogate": ["sigmoid", "atan", "erf", "piecewise_quadratic", "soft_sign", "rect"],
    "hard_reset": [False],
    "drop_path": [0.5],
    "widths": [(0.25, 0.5, 1.0)],
}


@pytest.mark.parametrize(("axis", "value"), [(a, v) for a, vs in AXES.items() for v in vs])
def test_every_ablation_axis_trains(axis, value):
    model = small_model("msvit", timesteps=2, **{axis: value})
    model(small_input(model, batch=2, dtype=torch.float32)).mean(0).logsumexp(-1).sum().backward()
    grads = [p.grad for n, p in model.named_parameters() if not n.endswith("conv.bias")]
    assert all(g is not None and g.isfinite().all() for g in grads)


def test_scales_add_branches_that_can_be_seen():
    model = small_model("msvit", scales=(1, 3, 5))
    parts = [m.parts for m in model.modules() if isinstance(m, Spikes)]
    assert ("scale1", "k") in parts
    wide = [n for n, _ in model.named_modules() if n.endswith(("wide.scale3", "wide.scale5"))]
    assert len(wide) == 4  # two stages, two wide branches


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("msvti", {}, "did you mean 'msvit'"),
        ("msvit", {"scalse": [1]}, "did you mean 'scales'"),
        ("msvit", {"scales": [1, 4]}, "odd"),
        ("msvit", {"scales": []}, "at least 1"),
        ("msvit", {"heads": 7}, "cannot be split into 7 heads"),
        ("msvit", {"dim": 30}, "multiple of 2"),
        ("msvit", {"dim": 0}, "greater than or equal to 1"),
        ("msvit", {"image_size": 30}, "no multiple of 4"),
        ("msvit", {"stages": [4]}, "no stage 4"),
        ("msvit", {"neuron": "lifs"}, "did you mean 'lif'"),
        ("msvit", {"tau": float("nan")}, "finite"),
        ("msvit", {"tau": 1.0}, "greater than 1"),
        ("msvit", {"timesteps": "4"}, "integer"),
        ("msvit", {"depths": [1, 1]}, "widths names 3"),
        ("qkformer", {"scales": [1, 3]}, "unknown option"),
        ("spikformer", {"image_size": 2}, "no multiple of 4"),
    ],
)
def test_wrong_options_are_named(name, options, said):
    with pytest.raises(ConfigError, match="(?s).*" + said.replace("(", r"\(")) as caught:
        model_options(name, options)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("options", [{"neuron": "ilif"}, {"batch_coupled": True}, {}])
def test_an_empty_batch_has_no_logits(options):
    model = small_model("qkformer", timesteps=2, **options).eval()
    assert model(small_input(model, 0, torch.float32)).shape == (2, 0, 10)
