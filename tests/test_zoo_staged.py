"""Meta-SpikeFormer, SpikingResformer and Max-Former: their own layers and sizes.

Logits, rates and gradients are compared with the official code in ``test_golden.py``; what
holds for every model of the zoo is in ``test_zoo.py``.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from msvit import create_model, load_official
from msvit.kernels import NeuronSpec
from msvit.layers.dualspike import DualSpikeAttention, FiringRate
from msvit.layers.repconv import RepConv
from msvit.layers.synapses import Conv
from msvit.metrics import measure
from msvit.models import model_options
from msvit.options import ConfigError
from tests import oracles_staged as oracles
from tests.small import fire, small_input, small_model

pytestmark = pytest.mark.slow

#: Parameters of the official implementations at the published sizes, measured with their code.
OFFICIAL_PARAMETERS = {
    "metaspikeformer_15m": 15_112_208,
    "metaspikeformer_31m": 31_333_864,
    "metaspikeformer_55m": 55_350_248,
    "spikingresformer_cifar10": 10_793_152,
    "spikingresformer_cifar100": 10_827_712,
    "spikingresformer_ti": 11_180_992,
    "spikingresformer_s": 17_813_824,
    "spikingresformer_m": 35_601_472,
    "spikingresformer_l": 60_375_680,
    "maxformer_cifar10": 6_568_282,
    "maxformer_cifar100": 6_602_932,
    "maxformer_10_384": 16_237_240,
    "maxformer_10_512": 28_653_480,
    "maxformer_10_768": 63_992_200,
    "maxformer_cifar10dvs": 1_455_626,
    "maxformer_dvs128": 1_455_883,
}


@pytest.mark.parametrize(("name", "official"), OFFICIAL_PARAMETERS.items())
def test_parameters_are_the_official_ones(name, official):
    with torch.device("meta"):
        assert sum(p.numel() for p in create_model(name).parameters()) == official


@pytest.mark.parametrize(("name", "published"), [("ti", 11.14), ("m", 35.52)])
def test_published_spikingresformer_counts_leave_out_the_norms(name, published):
    with torch.device("meta"):
        model = create_model(f"spikingresformer_{name}")
    weights = sum(p.numel() for n, p in model.named_parameters() if ".norm." not in n)
    assert round(weights / 1e6, 2) == published


# --- dual spike self-attention


@pytest.mark.parametrize("training", [False, True])
def test_dual_spike_attention_is_its_formula(training):
    torch.manual_seed(0)
    attention = DualSpikeAttention(4, 2, 2, NeuronSpec(surrogate="atan"), 0.8).double()
    torch.nn.init.uniform_(attention.transform.norm.bias, 0, 4)
    attention.train(training)
    x_rate, attn_rate = torch.tensor([0.3, 0.6]), torch.tensor([0.1, 0.05])
    if not training:
        attention.rate.rate.copy_(x_rate.view(1, 1, 2, 1, 1))
        attention.attn_rate.rate.copy_(attn_rate.view(1, 1, 2, 1, 1))
    seen = {}
    for name in ("neuron", "transform", "attn_neuron", "out_neuron"):
        module = getattr(attention, name)
        module.register_forward_hook(lambda m, i, out, name=name: seen.update({name: out}))
    with torch.no_grad():
        attention(torch.randn(3, 2, 4, 4, 4, dtype=torch.float64) * 2)

    x, y = (seen[name].flatten(2, 3) for name in ("neuron", "transform"))
    attended, out = seen["attn_neuron"], seen["out_neuron"]
    if training:  # the first batch sets the running rates to its own
        x_rate = x.unflatten(-1, (2, 2)).mean((0, 1, 2, 4))
        attn_rate = attended.mean((0, 1, 3, 4))
    for image in range(2):
        heads, expected = oracles.dual_spike_attention(
            x[:, image].tolist(),
            y[:, image].tolist(),
            2,
            rates=(x_rate.tolist(), attn_rate.tolist()),
            thresholds=(0.8, 1.0),
        )
        assert attended[:, image].transpose(0, 1).tolist() == heads
        assert out[:, image].flatten(1, 2).tolist() == expected
    for spikes in (attended, out):  # neither silent nor always on
        assert 0.02 < spikes.mean() < 0.98


def rate_of(meter: FiringRate) -> list[float]:
    return meter.rate.flatten().tolist()


def spikes_at(*rates: float) -> torch.Tensor:
    """Spikes ``[T, B, heads, N, n]`` with the given rate in each head."""
    fired = [torch.arange(100.0) < 100 * rate for rate in rates]
    return torch.stack(fired).double().view(len(rates), 1, 1, 10, 10).transpose(0, 2)


def test_running_rate_starts_with_the_first_batch_and_then_moves_slowly():
    meter = FiringRate(2).double()
    meter(spikes_at(0.5, 0.2))
    assert rate_of(meter) == pytest.approx([0.5, 0.2])
    meter(spikes_at(0.1, 0.3))
    assert rate_of(meter) == pytest.approx([0.999 * 0.5 + 0.0001, 0.999 * 0.2 + 0.0003])


def test_a_head_that_stays_silent_at_first_starts_when_it_fires():
    meter = FiringRate(2).double()
    assert meter(spikes_at(0.5, 0.0)).flatten().tolist() == [0.5, 1.0]
    meter(spikes_at(0.5, 0.4))
    assert rate_of(meter) == pytest.approx([0.5, 0.4])


def test_running_rate_rests_in_eval_mode_and_is_kept_in_checkpoints():
    meter = FiringRate(1).double()
    assert meter.eval()(spikes_at(0.5)).item() == 1.0  # never trained: as if always firing
    assert rate_of(meter) == [0.0]
    meter.train()(spikes_at(0.5))
    meter.eval()(spikes_at(0.1))
    other = FiringRate(1)
    other.load_state_dict(meter.state_dict())
    assert rate_of(other) == [0.5]


def test_a_spikingresformer_that_was_never_trained_has_finite_outputs():
    model = small_model("spikingresformer").eval()
    assert model(small_input(model, 2, torch.float32)).isfinite().all()


@pytest.mark.parametrize("size", [32, 64])
def test_patches_give_every_stage_as_many_keys(size):
    model = small_model("spikingresformer_ti", image_size=size)
    keys = set()
    for module in model.modules():
        if isinstance(module, DualSpikeAttention):
            module.transform.register_forward_hook(lambda m, i, out: keys.add(out.shape[2:4]))
    model(small_input(model, 2, torch.float32))
    assert keys == {(size // 16, size // 16)}


# --- re-parameterisable convolution


def rep_conv(parts: int) -> tuple[RepConv, torch.Tensor]:
    """A tiny RepConv with statistics unlike those of its input, and spikes ``[1, B, H, W, C]``."""
    torch.manual_seed(1)
    conv = RepConv(3, parts).double()
    for norm in (conv.point.norm, conv.mix.norm):
        torch.nn.init.normal_(norm.bias)
        torch.nn.init.uniform_(norm.weight, 0.5, 2)
        torch.nn.init.normal_(norm.running_mean)
        torch.nn.init.uniform_(norm.running_var, 0.5, 2)
    return conv, (torch.rand(1, 2, 4, 3, 3) < 0.4).double()


def scale_and_shift(norm, mean: torch.Tensor, variance: torch.Tensor) -> tuple[list, list]:
    scale = norm.weight / (variance + norm.eps).sqrt()
    return scale.tolist(), (norm.bias - mean * scale).tolist()


@pytest.mark.parametrize("training", [False, True])
def test_the_border_is_what_the_norm_makes_of_zero_by_running_statistics(training):
    conv, x = rep_conv(parts=1)
    seen = {}
    conv.depthwise.register_forward_hook(lambda m, i, out: seen.update(out=out))
    with torch.no_grad():
        conv.train(training)(x)
    point, depth = conv.point.conv.weight.flatten(1).tolist(), conv.depthwise.weight.squeeze(1)
    inner = [oracles.pointwise(image, point) for image in x[0].tolist()]
    norm = conv.point.norm
    running = scale_and_shift(norm, norm.running_mean, norm.running_var)
    now = running
    if training:
        values = torch.tensor(inner, dtype=torch.float64).flatten(0, 2)
        now = scale_and_shift(norm, values.mean(0), values.var(0, unbiased=False))
    expected = [
        oracles.depthwise(oracles.affine(image, *now), depth.tolist(), running[1])
        for image in inner
    ]
    torch.testing.assert_close(seen["out"][0], torch.tensor(expected, dtype=torch.float64))
    assert (now != running) == training


def test_repconv_is_one_convolution_once_its_statistics_rest():
    conv, x = rep_conv(parts=1)
    conv.eval()
    norms = [
        scale_and_shift(n, n.running_mean, n.running_var) for n in (conv.point.norm, conv.mix.norm)
    ]
    (a, b), (c, d) = (map(torch.tensor, pair) for pair in norms)
    point, mix = conv.point.conv.weight.flatten(1), conv.mix.conv.weight.flatten(1)
    depth = conv.depthwise.weight.squeeze(1)
    weight = torch.einsum("o,om,mij,m,mc->ocij", c.double(), mix, depth, a.double(), point)
    shift = c * (mix @ (depth.sum((1, 2)) * b)) + d
    with torch.no_grad():
        out = conv(x)
    for image, got in zip(x[0].tolist(), out[0], strict=True):
        expected = oracles.convolution(image, weight.tolist(), shift.tolist())
        torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))


def test_parts_of_a_repconv_do_not_see_each_other():
    wide, x = rep_conv(parts=3)
    single, _ = rep_conv(parts=1)
    state = {}
    for name, tensor in wide.state_dict().items():
        state[name] = tensor if tensor.ndim == 0 else tensor.chunk(3)[1]
    single.load_state_dict(state)
    with torch.no_grad():
        middle = wide.eval()(x).chunk(3, dim=-1)[1]
        torch.testing.assert_close(middle, single.eval()(x))


# --- Max-Former


def test_a_patch_embedding_is_its_figure():
    """Second stage: max pooling behind both convolutions that start from the same spikes."""
    model = small_model("maxformer").double()
    fire(model)
    embed = model.embeddings[1]
    a, b, around = embed.units[0].synapse, embed.units[1].synapse, embed.shortcut

    def conv_norm(unit, x: torch.Tensor, padding: int) -> torch.Tensor:
        x = F.conv2d(x.flatten(0, 1).permute(0, 3, 1, 2), unit.conv.weight, padding=padding)
        norm = unit.norm
        statistics = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        return F.batch_norm(x, *statistics, training=False, eps=norm.eps)

    def as_ours(maps: torch.Tensor) -> torch.Tensor:
        return maps.permute(0, 2, 3, 1).unflatten(0, (4, 2))

    membrane = torch.randn(4, 2, 8, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        spikes = embed.units[0].neuron(membrane)
        potential = as_ours(F.max_pool2d(conv_norm(a, spikes, 1), 3, 2, 1))
        main = conv_norm(b, embed.units[1].neuron(potential), 1)
        expected = main + F.max_pool2d(conv_norm(around, spikes, 0), 3, 2, 1)
        torch.testing.assert_close(embed(membrane), as_ours(expected))


@pytest.mark.parametrize("ratio", [1.0, 2.0])
def test_an_mlp_as_narrow_as_its_input_has_a_shortcut_around_each_half(ratio):
    model = small_model("maxformer", mlp_ratio=ratio).double()
    fire(model)
    mlp = model.stages[2][0].mlp
    x = torch.randn(4, 2, 3, 3, 32, dtype=torch.float64)
    with torch.no_grad():
        first = mlp.fc1(x)
        middle = x + first if ratio == 1 else first
        expected = mlp.fc2(middle) + (middle if ratio == 1 else x)
        torch.testing.assert_close(mlp(x, shortcut=x), expected)
        torch.testing.assert_close(mlp(x), expected - x)  # as stochastic depth calls it


@pytest.mark.parametrize("mixer", ["identity", "dwc3", "dwc5", "dwc7", "attention"])
def test_every_mixer_of_maxformer_trains_in_any_stage(mixer):
    mixers = ("attention", mixer, mixer)
    model = small_model("maxformer", timesteps=2, mixers=mixers, drop_path=0.3)
    model(small_input(model, 2, torch.float32)).mean(0).logsumexp(-1).sum().backward()
    grads = [p.grad for n, p in model.named_parameters() if not n.endswith("conv.bias")]
    assert all(g is not None and g.isfinite().all() for g in grads)


# --- all three


@pytest.mark.parametrize("name", ["metaspikeformer", "spikingresformer", "maxformer"])
def test_only_spikes_meet_weights(name):
    """Membrane shortcuts leave no integers; factors of one convolution pass analog values on."""
    model = small_model(name).double()
    fire(model)
    analog = set()
    for path, module in model.named_modules():
        if isinstance(module, Conv):

            def look(m, inputs, out, path=path):
                if not set(inputs[0].unique().tolist()) <= {0.0, 1.0}:
                    analog.add(path)

            module.register_forward_hook(look)
    with torch.no_grad():
        model(small_input(model, batch=2))
    first = {"metaspikeformer": "downsamplings.0.conv", "spikingresformer": "prologue.conv"}
    factors = (".attention.reduce.conv", ".depthwise", ".mix.conv")
    image = first.get(name, "embeddings.0.encode.conv")
    assert image in analog
    others = {path for path in analog - {image} if not path.endswith(factors)}
    assert not others


@pytest.mark.parametrize("name", ["metaspikeformer", "spikingresformer", "maxformer"])
def test_every_layer_is_measured(name):
    model = small_model(name)
    fire(model)
    result = measure(model, [small_input(model, 2, torch.float32)])
    assert 0 < result.firing_rate < 1
    products = [row for row in result.operations if row["kind"] != "neuron"]
    assert all(row["dense_macs"] > 0 for row in products)
    neurons = [row for row in result.operations if row["kind"] == "neuron"]
    assert all(row["updates"] > 0 for row in neurons)
    assert products
    assert neurons
    assert result.energy_mj["sop_spikformer"] > 0


def test_initialisation_is_the_official_one():
    """trunc_normal 0.02 for all convolutions, or only for those that have two dimensions."""

    def spread(model, path: str) -> float:
        return model.get_submodule(path).weight.std().item()

    torch.manual_seed(0)
    resformer = create_model("spikingresformer", depths=(1, 1, 1))
    assert spread(resformer, "stages.2.0.attention.transform.conv") == pytest.approx(0.02, rel=0.02)
    imagenet = create_model("maxformer_10_384", depths=(1, 1, 1), dim=192, heads=3)
    default = (3 * 192) ** -0.5
    assert spread(imagenet, "stages.2.0.mlp.fc1.synapse.conv") == pytest.approx(0.02, rel=0.02)
    assert spread(imagenet, "stages.2.0.attention.qkv.conv") == pytest.approx(default, rel=0.02)
    cifar = create_model("maxformer", depths=(1, 1, 1), dim=192)
    assert spread(cifar, "stages.2.0.mlp.fc1.synapse.conv") == pytest.approx(default, rel=0.02)


def test_a_missing_firing_rate_is_named():
    model = small_model("spikingresformer", depths=(1, 1, 1))
    names = model.official_map()
    state = {}
    for target, tensor in model.state_dict().items():
        (source,) = names.sources(target)
        state[source] = tensor
    assert not load_official(model, state).missing
    del state["layers.1.1.firing_rate_x"]
    with pytest.raises(ValueError, match=r"1 missing: layers\.1\.1\.firing_rate_x"):
        load_official(model, state)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("spikingresformer", {"heads": 5}, "cannot be split into 5 heads"),
        ("spikingresformer", {"first_dim": 48}, "a stage of width 48 cannot be split"),
        ("spikingresformer", {"group_size": 60}, "cannot be split into groups of 60"),
        ("spikingresformer", {"depths": [1, 2]}, "at least 3"),
        ("spikingresformer_ti", {"image_size": 40}, "no multiple of 16"),
        ("spikingresformer", {"layout": "events"}, "valid: cifar, imagenet"),
        ("metaspikeformer_15m", {"last_dim": 361}, "last_dim 361 cannot be split into 8 heads"),
        ("metaspikeformer", {"dim": 100}, "multiple of 8"),
        ("metaspikeformer", {"image_size": 40}, "no multiple of 16"),
        ("maxformer", {"mixers": ["dwc3", "attention"]}, "2 named for 3 stages"),
        ("maxformer", {"mixers": ["dwc4", "dwc3", "attention"]}, "dwc4"),
        ("maxformer", {"heads": 9}, "384 cannot be split into 9 heads"),
        ("maxformer", {"batch_coupled": True}, "unknown option"),
        ("maxformer_dvs128", {"image_size": 120}, "no multiple of 16"),
    ],
)
def test_impossible_options_are_named(name, options, said):
    with pytest.raises(ConfigError, match=said):
        model_options(name, options)
