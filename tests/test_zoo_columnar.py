"""Spikformer, Spikingformer and the Spike-driven Transformer: attention and sizes.

Logits, rates and gradients are compared with the official code in ``test_golden.py``; what
holds for every model of the zoo is in ``test_zoo.py``.
"""

from __future__ import annotations

import pytest
import torch

from msvit import create_model, list_models, load_official
from msvit.layers.attention import TokenAttention
from msvit.layers.synapses import Conv
from msvit.models import model_options, zoo
from msvit.models.spikformer import Spikformer
from msvit.options import ConfigError
from tests import oracles
from tests.small import fire, small_input, small_model

pytestmark = pytest.mark.slow

ARCHITECTURES = ("spikformer", "spikingformer", "sdt")
#: Parameters of the official implementations at the published sizes, measured with their code.
OFFICIAL_PARAMETERS = {
    "spikformer_cifar10_4_256": 4_159_274,
    "spikformer_cifar10_2_384": 5_768_122,
    "spikformer_cifar10_4_384": 9_330_874,
    "spikformer_8_384": 16_828_312,
    "spikformer_8_512": 29_705_768,
    "spikformer_10_512": 36_025_896,
    "spikformer_8_768": 66_363_208,
    "spikformer_cifar10dvs": 2_585_610,
    "spikingformer_cifar10_4_256": 4_156_202,
    "spikingformer_cifar10_2_384": 5_765_818,
    "spikingformer_cifar10_4_384": 9_326_266,
    "spikingformer_cifar100": 9_360_916,
    "spikingformer_8_384": 16_828_312,
    "spikingformer_8_512": 29_705_768,
    "spikingformer_8_768": 66_363_208,
    "spikingformer_cifar10dvs": 2_568_714,
    "spikingformer_dvs128": 2_568_971,
    "sdt_cifar10_2_256": 2_567_082,
    "sdt_cifar10_2_512": 10_233_546,
    "sdt_8_384": 16_816_536,
    "sdt_6_512": 23_373_736,
    "sdt_8_512": 29_689_896,
    "sdt_10_512": 36_006_056,
    "sdt_8_768": 66_339_144,
    "sdt_cifar10dvs": 2_566_794,
    "sdt_dvs128": 2_567_051,
}


def parameters(name: str) -> int:
    with torch.device("meta"):  # shapes without memory
        return sum(p.numel() for p in create_model(name).parameters())


def unused_official_parameters(name: str) -> int:
    """What the official code builds and never calls, as the registry's notes say."""
    options = model_options(name, {})
    if zoo()[name]["architecture"] == "sdt":
        return options.depth * options.heads**2  # talking heads
    layer_norms = options.depth * 2 * 2 * options.dim
    if name == "spikformer_cifar10dvs":  # a last LayerNorm, a position embedding of 8×8 tokens
        return layer_norms + 2 * options.dim + 64 * options.dim
    return layer_norms


@pytest.mark.parametrize(("name", "official"), OFFICIAL_PARAMETERS.items())
def test_parameters_are_the_official_ones_without_the_unused(name, official):
    assert parameters(name) == official - unused_official_parameters(name)


@pytest.mark.parametrize("name", [n for n in OFFICIAL_PARAMETERS if "published_m" in zoo()[n]])
def test_parameters_are_the_published_ones(name):
    """The papers print two digits, some rounded, some cut off."""
    difference = parameters(name) / 1e6 - zoo()[name]["published_m"]
    assert -0.005 <= difference < 0.01


@pytest.mark.parametrize(
    "name", [n for n in list_models() if zoo()[n]["architecture"] in ARCHITECTURES]
)
def test_every_size_attends_to_as_many_tokens_as_published(name):
    options = model_options(name, {})
    tokens = options.image_size // 2 ** sum(options.pools)
    expected = {32: 8, 64: 16, 128: 16 if name == "sdt_dvs128" else 8, 224: 14}
    assert tokens == expected[options.image_size]


def attention_of(model: torch.nn.Module, x: torch.Tensor) -> tuple[list, torch.Tensor]:
    """Spikes q, k and v of the last block, and what its projection is given."""
    seen: dict[str, torch.Tensor] = {}
    attention = model.blocks[-1].attention
    spikes = attention.qkv.neuron.spikes
    assert spikes.parts == ("q", "k", "v")
    handles = [
        spikes.register_forward_hook(lambda m, i, out: seen.update(qkv=out)),
        attention.proj.conv.register_forward_hook(lambda m, i, out: seen.update(attended=i[0])),
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return list(seen["qkv"].chunk(3, dim=-1)), seen["attended"]


def as_lists(spikes: torch.Tensor, image: int) -> oracles.Sequence:
    """``[T, B, H, W, C]`` → the oracle's ``x[t][n][c]`` for one image."""
    return spikes[:, image].flatten(1, 2).tolist()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("spikformer_cifar10", {}),  # more tokens than channels per head: q (kᵀ v)
        ("spikformer_8_384", {"attn_threshold": 0.1}),  # fewer: (q kᵀ) v
        ("spikformer_cifar10dvs", {"image_size": 64}),
        ("spikingformer_cifar10", {}),
        ("spikingformer_8_384", {"attn_threshold": 0.1}),
    ],
)
def test_self_attention_is_its_formula(name, options):
    model = small_model(name, **options).double()
    fire(model)
    (q, k, v), attended = attention_of(model, small_input(model, batch=2))
    o = model.options
    for image in range(2):
        spikes = (as_lists(x, image) for x in (q, k, v))
        expected = oracles.self_attention(*spikes, o.heads, o.attn_scale, o.attn_threshold)
        assert as_lists(attended, image) == expected
    assert 0 < attended.mean() < 1, "a constant would show nothing"


@pytest.mark.parametrize(
    ("name", "threshold"),  # such that some channels pass, whatever the number of tokens
    [("sdt_cifar10", 2.0), ("sdt_8_384", 0.5), ("sdt_cifar10dvs", 32.0)],
)
def test_spike_driven_attention_is_its_formula(name, threshold):
    model = small_model(name, attn_threshold=threshold).double()
    fire(model)
    (q, k, v), attended = attention_of(model, small_input(model, batch=2))
    o = model.options
    side = q.shape[2]
    spread = (side, side, o.heads) if o.attn_pool else None
    for image in range(2):
        spikes = (as_lists(x, image) for x in (q, k, v))
        expected = oracles.spike_driven_attention(*spikes, o.attn_threshold, spread)
        assert as_lists(attended, image) == expected
    chosen = attended.flatten(2, 3).amax(2)  # channels that passed, [T, B, C]
    assert 0 < chosen.mean() < 1, "a mask that lets all or nothing pass would show nothing"


def test_heads_have_no_part_in_sdt_until_spikes_spread():
    x = small_input(small_model("sdt"), batch=2)

    def output(heads: int, spread: bool) -> torch.Tensor:
        model = small_model("sdt", attn_pool=spread).double()
        for block in model.blocks:
            block.attention.heads = heads
        fire(model)
        return model(x)

    torch.testing.assert_close(output(2, False), output(8, False), atol=0, rtol=0)
    assert (output(2, True) - output(8, True)).abs().max() > 1e-6


@pytest.mark.parametrize("name", ["spikingformer", "sdt"])
def test_membrane_shortcuts_leave_no_integers_in_front_of_weights(name):
    """Only spikes are multiplied, but for the image and what a classifier averages."""
    model = small_model(name).double()
    fire(model)
    seen: dict[str, torch.Tensor] = {}
    for path, module in model.named_modules():
        if isinstance(module, Conv):
            module.register_forward_hook(lambda m, i, o, path=path: seen.update({path: i[0]}))
    with torch.no_grad():
        model(small_input(model, batch=2))
    first, *others = seen
    assert first in ("encode.conv", "stem.0.conv")
    for path in others:
        assert set(seen[path].unique().tolist()) == {0.0, 1.0}, path


@pytest.mark.parametrize(
    ("name", "std"), [("sdt", 0.02), ("spikformer_cifar10", 0.02), ("spikformer_8_384", None)]
)
def test_initialisation_is_the_official_one(name, std):
    """trunc_normal 0.02 where the official code draws it, torch's default elsewhere."""
    torch.manual_seed(0)
    model = create_model(name, image_size=32, depths=(1,))
    weight = model.blocks[0].attention.qkv.conv.weight
    expected = std or (3 * weight.shape[1]) ** -0.5  # of a uniform draw within 1 / sqrt(inputs)
    assert weight.std().item() == pytest.approx(expected, rel=0.02)


def test_unused_official_tensors_are_ignored_and_others_are_not():
    model = small_model("spikformer_cifar10dvs")
    state = official_state(model)
    state |= {"pos_embed": torch.zeros(1, 64, 32), "norm.weight": torch.ones(32)}
    state |= {"block.0.norm1.weight": torch.ones(32)}
    report = load_official(model, state)
    assert sorted(report.ignored) == ["block.0.norm1.weight", "norm.weight", "pos_embed"]
    with pytest.raises(ValueError, match="unexpected"):
        load_official(model, state | {"block.0.norm3.weight": torch.ones(32)})


def official_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The model's tensors under their official names, q, k and v apart."""
    names = model.official_map()
    state = {}
    for target, tensor in model.state_dict().items():
        if target in names.tensors:
            state[names.tensors[target]] = tensor
            continue
        unit, layer, kind = target.rsplit(".", 2)
        parts = [pair[layer == "norm"] for pair in names.units[unit]]
        pieces = tensor.chunk(len(parts)) if tensor.ndim else [tensor] * len(parts)
        state |= {f"{p}.{kind}": x for p, x in zip(parts, pieces, strict=True)}
    return state


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("sdt", {"attn_scale": 0.25}, "unknown option"),  # it has no product to scale
        ("sdt", {"heads": 7}, "channel by channel"),
        ("sdt", {"heads": 7, "attn_pool": True}, "cannot be split into 7 heads"),
        ("sdt", {"dim": 36}, "multiple of 8"),
        ("sdt_dvs128", {"image_size": 100}, "no multiple of 8"),
        ("spikingformer", {"pools": [True, True, True]}, "at least 4"),
        ("spikingformer", {"qkv_bias": True}, "unknown option"),
        ("spikingformer_8_384", {"image_size": 220}, "no multiple of 16"),
        ("spikingformer_8_348", {}, "did you mean 'spikingformer_8_384'"),
    ],
)
def test_impossible_options_are_named(name, options, said):
    with pytest.raises(ConfigError, match=said):
        model_options(name, options)


def test_spikformer_takes_another_attention_and_keeps_the_rest():
    published = small_model("spikformer").double()
    options = published.options
    other = Spikformer(options, lambda dim, neuron: TokenAttention(dim, options.heads, neuron))
    images = small_input(published, 2)
    other.double()(images).square().sum().backward()
    attentions = [block.attention for block in other.blocks]
    assert len(attentions) == options.depth
    for attention in attentions:
        assert isinstance(attention, TokenAttention)
        assert attention.proj.conv.weight.grad.abs().sum() > 0

    def around(model: Spikformer) -> dict[str, torch.Size]:
        weights = model.state_dict().items()
        return {name: w.shape for name, w in weights if ".attention." not in name}

    assert around(other) == around(published)
    assert set(around(other)) >= {f"{unit}.conv.weight" for unit in other.official_map().units}
