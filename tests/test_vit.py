"""The non-spiking twin: timm's transformer, with operations that can be counted."""

from __future__ import annotations

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from msvit import create_model, load_official
from msvit.metrics import measure
from msvit.models import model_options
from msvit.options import ConfigError
from tests.small import small_input, small_model

pytestmark = pytest.mark.slow


def test_logits_and_gradients_are_those_of_timm():
    torch.manual_seed(0)
    theirs = VisionTransformer(
        img_size=16,
        patch_size=4,
        num_classes=7,
        embed_dim=24,
        depth=2,
        num_heads=3,
        mlp_ratio=2.0,
        global_pool="avg",
        class_token=False,
    ).double()
    options = {"dim": 24, "depths": (2,), "heads": 3, "mlp_ratio": 2.0, "num_classes": 7}
    ours = create_model("vit", image_size=16, **options).double()
    report = load_official(ours, theirs.state_dict())
    assert report.loaded == len(theirs.state_dict())
    x = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    logits, expected = ours(x), theirs(x)
    assert logits.shape == (1, 3, 7)
    torch.testing.assert_close(logits[0], expected)
    logits[0].logsumexp(-1).sum().backward()
    expected.logsumexp(-1).sum().backward()
    names = ours.official_map()
    official = dict(theirs.named_parameters())
    for target, parameter in ours.named_parameters():
        (source,) = names.sources(target)
        torch.testing.assert_close(parameter.grad, official[source].grad)


def test_every_multiplication_is_counted():
    """Patches, qkv and projection, two products per head, MLP, classifier: nothing is spared."""
    model = small_model("vit_cifar10")
    result = measure(model, [small_input(model, n, torch.float32) for n in (3, 2)])
    tokens, dim, o = 16, 32, model.options
    block = tokens * dim * (3 * dim + dim + 2 * round(o.mlp_ratio * dim)) + 2 * tokens**2 * dim
    expected = tokens * 3 * 8**2 * dim + 2 * block + dim * o.num_classes
    assert sum(row["macs"] for row in result.operations) == expected
    assert all(row["acs"] == 0 and row["input"] == "analog" for row in result.operations)
    assert result.energy_mj["sop_spikformer"] == pytest.approx(4.6e-9 * expected)
    assert result.firing == []
    assert result.firing_rate == 0


@pytest.mark.parametrize(
    ("name", "twins"),
    [
        ("vit_cifar10", ["msvit_cifar10", "qkformer_cifar10", "spikformer_cifar10"]),
        ("vit_8_512", ["spikformer_8_512", "spikingformer_8_512", "sdt_8_512"]),
        ("vit_10_768", ["msvit_10_768", "qkformer_10_768", "maxformer_10_768"]),
    ],
)
def test_it_is_as_wide_and_deep_as_the_spiking_models(name, twins):
    ours = model_options(name, {})
    for twin in (model_options(n, {}) for n in twins):
        assert (ours.dim, sum(ours.depths), ours.mlp_ratio) == (
            twin.dim,
            sum(twin.depths),
            twin.mlp_ratio,
        )
        assert (ours.image_size, ours.num_classes) == (twin.image_size, twin.num_classes)


def test_it_has_one_time_step():
    with pytest.raises(ConfigError, match="timesteps: a model without neurons has 1 time step"):
        model_options("vit", {"timesteps": 4})
    with pytest.raises(ValueError, match="one time step"):
        small_model("vit")(torch.zeros(4, 1, 3, 32, 32))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"heads": 5}, "cannot be split into 5 heads"),
        ({"image_size": 30}, "cannot be cut into patches of 4"),
        ({"neuron": "lif"}, "unknown option"),
    ],
)
def test_impossible_options_are_named(options, said):
    with pytest.raises(ConfigError, match=said):
        model_options("vit", options)
