"""Operations to the synapse: by hand, and one by one for every architecture."""

import math

import pytest
import torch
from torch import nn

from msvit.kernels import NeuronSpec
from msvit.layers.attention import SelfAttention, TokenAttention
from msvit.layers.blocks import Classifier
from msvit.layers.folding import folded
from msvit.layers.norm import BatchNorm
from msvit.layers.repconv import RepConv
from msvit.layers.synapses import Conv, Linear, MatrixProduct, ValueMask
from msvit.metrics import Meter, measure
from msvit.metrics.layer_names import layer_name
from msvit.neurons import Neuron
from tests.oracles_operations import Count, convolution, fully_connected, of_products
from tests.small import fire, small_input, small_model


class Probe(nn.Module):
    """Gives a layer the input that the images say, one sequence ``[T, B, ...]`` per batch."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, events):
        return self.layer(events)


def rows_of(layer, *batches):
    return {row["layer"]: row for row in measure(Probe(layer).eval(), batches).operations}


def row_of(layer, x):
    (row,) = (row for row in rows_of(layer, x).values() if row["kind"] != "neuron")
    return row


def ones(*shape):
    return torch.ones(shape)


def test_zero_padding_and_pixels_between_strides_are_no_synapses():
    # 3×3 with stride 2 and padding 1 on 4×4: rows 0, 1 and 3 of the image, by 1, 2, 1, 1 outputs.
    row = row_of(Conv(2, 6, 3, stride=2), ones(1, 1, 4, 4, 2))
    assert row["dense_macs"] == 4 * 9 * 2 * 6
    assert row["synapses"] == row["synops"] == 5 * 5 * 2 * 6
    assert row["outputs"] == row["additions"] == 4 * 6
    # A single spike in the corner is seen by one output, in the second row by two.
    x = torch.zeros(1, 1, 4, 4, 2)
    x[0, 0, 0, 0, 0] = x[0, 0, 1, 0, 1] = 1
    assert row_of(Conv(2, 6, 3, stride=2), x)["synops"] == (1 + 2) * 6
    # A strided 1×1 reads one pixel of four.
    assert row_of(Conv(2, 6, stride=2), ones(1, 1, 4, 4, 2))["synapses"] == 4 * 2 * 6


def test_a_group_reaches_its_own_outputs():
    row = row_of(Conv(4, 8, 3, groups=2), ones(1, 1, 3, 3, 4))
    assert row["fan_out"] == 4
    assert row["synops"] == 7 * 7 * 4 * 4  # 7 of 9 taps per row and column lie on the image
    depthwise = row_of(Conv(4, 4, 3, groups=4), ones(1, 1, 3, 3, 4))
    assert depthwise["synops"] == 49 * 4


def test_whole_numbers_count_by_value_and_by_how_many_there_are():
    x = torch.zeros(2, 1, 1, 1, 4)
    x[0, 0, 0, 0] = torch.tensor([0.0, 1.0, 2.0, 3.0])
    row = row_of(Conv(4, 5), x)
    assert (row["synops"], row["active_synops"]) == (6 * 5, 3 * 5)
    assert (row["input_peak"], row["active_inputs"], row["inputs"]) == (3, 3, 8)
    row = row_of(Linear(4, 5), x + 0.5)
    assert row["synops"] is None
    assert row["active_synops"] == row["synapses"] == 2 * 4 * 5


def test_weights_that_are_zero_are_no_effective_operations():
    conv, linear = Conv(2, 3, 3), Linear(2, 3)
    with torch.no_grad():
        conv.weight[:, 0] = 0
        linear.weight[0] = 0
    row = row_of(conv, ones(1, 1, 3, 3, 2))
    assert row["zero_weights"] == 27
    assert row["synops"] == 2 * row["active_synops"] == 49 * 6
    assert row_of(linear, ones(2, 1, 1, 1, 2))["active_synops"] == 2 * 2 * 2


def test_the_classifier_tells_both_of_its_counts():
    x = ones(2, 1, 3, 3, 8)
    row = row_of(Classifier(8, 5), x)
    assert row["dense_macs"] == 2 * 8 * 5  # a MAC on the mean
    assert row["synops"] == row["synapses"] == 2 * 9 * 8 * 5  # every spike reaches its weights
    row = row_of(Classifier(8, 5), x / 2)
    assert row["synapses"] == row["active_synops"] == 2 * 8 * 5
    assert row["additions"] == 2 * 5 + 2 * 9 * 8  # biases, and the mean


def attention_rows(side, dim, heads):
    """Rows of a spiking self-attention whose q, k and v fire at given places."""
    torch.manual_seed(0)
    attention = SelfAttention(dim, heads, NeuronSpec(tau=2.0))
    fired = {}

    def keep(module, inputs, output):
        fired["q"], fired["k"], fired["v"] = (s.sum().item() for s in output.chunk(3, -1))

    attention.qkv.neuron.spikes.register_forward_hook(keep)
    with torch.no_grad():
        attention.qkv.norm.bias.fill_(1.7)
    x = (torch.rand(2, 1, side, side, dim, generator=torch.Generator().manual_seed(0)) < 0.4) + 0.0
    rows = rows_of(attention, 4 * x)
    return rows, fired


@pytest.mark.parametrize(("side", "dim", "heads"), [(4, 6, 2), (2, 12, 2)])
def test_both_orders_of_attention(side, dim, heads):
    rows, fired = attention_rows(side, dim, heads)
    first, second = rows["layer.attend.first"], rows["layer.attend.second"]
    tokens, width = side * side, dim // heads
    assert 0 < fired["k"] < 2 * tokens * dim
    if tokens > width:  # kᵀ v, then q (kᵀ v): a key meets the values of its head
        both = {fired["k"] * width, fired["v"] * width}
        assert second["synops"] == fired["q"] * width
        dense = 2 * heads * tokens * width * width
    else:  # q kᵀ, then (q kᵀ) v: a query meets all keys
        both = {fired["q"] * tokens, fired["k"] * tokens}
        assert second["synops"] == fired["v"] * tokens
        dense = 2 * heads * tokens * tokens * width
    assert {first["synops"], first["other_synops"]} == both
    assert first["synops"] == min(both)
    assert first["dense_macs"] == first["synapses"] == second["synapses"] == dense
    assert second["other_input"] == "integer"


@pytest.mark.parametrize(("kernel", "taps"), [("1d", 16 + 2 * (15 + 14 + 13)), ("2d", 16 * 16)])
def test_a_scale_of_seven_reaches_no_further_than_the_tokens(kernel, taps):
    # On 4×4 tokens: along the sequence 7 taps but at its ends, in the plane everything there is.
    attention = TokenAttention(
        4, 2, NeuronSpec(tau=2.0), scales=(1, 7), branch_kernel=kernel, attn_threshold=1.0
    )
    rows = rows_of(attention, ones(2, 1, 4, 4, 4))
    row = rows["layer.branches.wide.scale7"]
    assert row["synapses"] == row["synops"] == 2 * taps * 4 * 4
    assert row["dense_macs"] == 2 * 16 * (7 if kernel == "1d" else 49) * 4 * 4
    votes = rows["layer.branches.point.neuron"], rows["layer.branches.wide.scale7.neuron"]
    keys = rows["layer.mask"]["other_active_inputs"]
    spikes = sum(row["spikes"] for row in votes)
    assert rows["layer.mask"]["additions"] == spikes - keys
    assert rows["layer.mask"]["outputs"] == 2 * 16 * 4


def test_a_repconv_is_the_one_convolution_that_it_becomes():
    x = torch.zeros(1, 1, 3, 3, 2)
    x[0, 0, 1, 1] = x[0, 0, 0, 0, 0] = 1
    x[0, 0, 0, 0, 0] = 1
    rows = rows_of(RepConv(2, parts=3), x)
    first, *others = (row for row in rows.values() if row["kind"] == "conv")
    assert first["synops"] == (2 * 9 + 4) * 6  # two spikes in the middle, one in the corner
    assert first["synapses"] == 49 * 2 * 6
    assert first["weights"] == 9 * 2 * 6
    assert {row["folded_into"] for row in rows.values()} == {"layer"}
    assert not any(row["synapses"] or row["additions"] or row["weights"] for row in others)
    assert others[1]["macs"] > 0, "the papers' formula is of the network as it is trained"


@pytest.mark.parametrize(
    ("kind", "additions", "multiplies", "states"),
    [
        ("if", 1, 0, 1),
        ("lif", 1, 1, 1),
        ("plif", 1, 1, 1),
        ("klif", 1, 2, 1),
        ("glif", 2, 2, 1),
        pytest.param("clif", 2, 2, 2, marks=pytest.mark.slow),
        ("ilif", 1, 1, 1),
        ("psn", 3, 3, 0),
    ],
)
def test_every_neuron_is_updated_in_every_step(kind, additions, multiplies, states):
    x = torch.zeros(3, 2, 1, 2, 4)
    row = rows_of(Neuron(NeuronSpec(kind=kind, timesteps=3)), x)["layer"]
    assert (row["kind"], row["neuron"], row["spikes"]) == ("neuron", kind, 0)
    assert row["updates"] == 3 * 8
    assert row["additions"] == 3 * 8 * additions
    assert row["multiplies"] == 3 * 8 * multiplies
    assert row["states"] == 8 * states


def test_a_spike_resets():
    soft, integer = NeuronSpec(hard_reset=False), NeuronSpec(kind="ilif")
    x = torch.full((2, 1, 1, 1, 3), 5.0)
    row = rows_of(Neuron(soft), x)["layer"]
    assert row["additions"] == 6 + row["spikes"] == 12
    row = rows_of(Neuron(integer), x)["layer"]
    assert row["spikes"] > row["active_outputs"] == 6
    assert row["additions"] == 6 + 6


TINY = {
    "msvit": {"dim": 8, "image_size": 8, "scales": (1, 3), "heads": 2},
    "qkformer": {"dim": 8, "image_size": 8, "heads": 2},
    "spikformer": {"dim": 8, "image_size": 8, "heads": 2, "depths": (1,)},
    "spikingformer": {"dim": 8, "image_size": 8, "heads": 2, "depths": (1,)},
    "sdt": {"dim": 8, "image_size": 8, "depths": (1,)},
    "metaspikeformer": {"dim": 8, "image_size": 16, "heads": 2},
    "spikingresformer": {"dim": 8, "first_dim": 4, "heads": 2, "group_size": 4, "image_size": 8},
    "maxformer": {"dim": 8, "image_size": 8, "heads": 2},
    "vit": {"dim": 8, "image_size": 8, "patch_size": 4, "heads": 2, "depths": (1,)},
}


def tiny(name, **options):
    model = small_model(name, **({"timesteps": 2, "depths": (1, 1, 1)} | TINY[name] | options))
    model = model.double()
    if name != "vit":
        fire(model)
    return model.eval()


@pytest.fixture(scope="module", params=TINY)
def walked(request):
    """A model, its rows, and every layer's count from a walk over its synapses."""
    name = request.param
    depths = {"metaspikeformer": (1, 1, 1, 1, 1)}.get(name, TINY[name].get("depths", (1, 1, 1)))
    timesteps = 1 if name == "vit" else 2
    model = tiny(name, depths=depths, timesteps=timesteps)
    found = {}

    def plain(x):
        static = x.ndim > 1 and len(x) > 1 and x.stride(0) == 0
        return x[: 1 if static else None].detach().numpy()

    def walk(path, module):
        def hook(module, inputs, output):
            xs = [plain(x) for x in inputs]
            if isinstance(module, Conv):
                outputs = len(module.weight)
                geometry = (module.kernel, module.stride, module.padding, module.groups)
                found[path] = convolution(xs[0], outputs, *geometry)
            elif isinstance(module, RepConv):
                outputs = output.shape[-1]
                found[f"{path}.point"] = convolution(xs[0], outputs, (3, 3), 1, (1, 1))
                found[f"{path}.depthwise"] = found[f"{path}.mix"] = Count()
            elif isinstance(module, Classifier):
                whole = (xs[0] % 1 == 0).all()
                found[path] = fully_connected(xs[0], 10)
                if not whole:  # a MAC on the mean
                    found[path] = fully_connected(xs[0].mean((2, 3)), 10)
            elif isinstance(module, Linear):
                found.setdefault(path, fully_connected(xs[0], module.out_features))
            elif isinstance(module, MatrixProduct):
                found[path] = of_products(*xs)

        return hook

    handles = [
        module.register_forward_hook(walk(layer_name(path), module))
        for path, module in model.named_modules()
        if isinstance(module, Conv | Linear | MatrixProduct | RepConv)
    ]
    for path, module in model.named_modules():
        if isinstance(module, Classifier) and module.neuron is None:
            handles.append(module.register_forward_hook(walk(path, module)))
    images = small_input(model, 2)
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return name, model, measure(model, [images]).operations, found


def test_every_synapse_of_every_architecture_is_counted_once(walked):
    name, _, operations, found = walked
    rows = {r["layer"]: r for r in operations if r["kind"] in ("conv", "linear", "product")}
    assert set(rows) == set(found)
    for layer, row in rows.items():
        count = found[layer]
        if row["kind"] == "product":
            *operands, joint = count
            assert row["joint_synops"] == joint / 2
            # Over the spikes of the operand that is binary, or else has fewer of them.
            kinds = ["spikes", "integer", "analog"]
            count = min(operands, key=lambda c: (kinds.index(c.kind), c.rate))
        assert row["synapses"] == count.synapses / 2, layer
        assert row["active_synops"] == count.active / 2, layer
        assert row["synops"] == (None if row["input"] == "analog" else count.synops / 2), layer
    if name != "vit":
        assert sum(row["synops"] or 0 for row in rows.values()) > 0


def test_a_folded_network_computes_the_same_and_is_counted_the_same(walked):
    _, model, operations, _ = walked
    images = small_input(model, 2)
    network = folded(model)
    with torch.no_grad():
        torch.testing.assert_close(network(images), model(images), rtol=1e-9, atol=1e-12)
    deployed = {row["layer"]: row for row in measure(network, [images]).operations}
    compared = ("synapses", "synops", "active_synops", "outputs", "additions", "weights", "biases")
    for row in operations:
        name = row.get("folded_into", row["layer"])
        if row["kind"] == "neuron" or not row["synapses"]:
            continue
        assert {k: deployed[name].get(k) for k in compared} == {k: row.get(k) for k in compared}
    assert "folded_into" not in str(deployed)


@pytest.mark.parametrize("name", ["msvit", "sdt"])
def test_counts_depend_on_neither_batches_nor_order(name):
    model = tiny(name)
    images = small_input(model, 7)
    one = measure(model, [images])
    other = measure(model, images.flip(0).split(3))
    assert one.operations == other.operations
    assert one.firing == other.firing


def counted_apart(model, *parts):
    """Rows of several processes, each of which has seen a part of the images."""
    meters = [Meter(model.eval()) for _ in parts]
    for meter, part in zip(meters, parts, strict=True):
        with meter, torch.no_grad():
            model(part)
    first, *others = meters
    for meter in others:
        first.add(meter.counts())
    return first.result().operations


@pytest.mark.parametrize("name", ["msvit", "qkformer"])
def test_counts_of_several_processes_are_those_of_one(name):
    model = tiny(name)
    images = small_input(model, 5)
    assert counted_apart(model, *images.split(2)) == measure(model, [images]).operations


def test_the_largest_value_is_that_of_any_process():
    few, many = ones(1, 1, 2, 2, 3), 5 * ones(1, 1, 2, 2, 3)
    for parts in ((few, many), (many, few)):
        (row,) = counted_apart(Probe(Conv(3, 4)), *parts)
        assert (row["input"], row["input_peak"]) == ("integer", 5)


def test_a_measured_model_computes_what_it_computes():
    model = tiny("msvit")
    images = small_input(model, 2)
    shown = []
    model.head.register_forward_hook(lambda module, inputs, output: shown.append(output))
    with torch.no_grad():
        model(images)
    measure(model, [images])
    assert torch.equal(*shown)


def test_masks_are_ands_and_their_sums_an_addition_a_spike():
    model = tiny("sdt")
    rows = {r["layer"]: r for r in measure(model, [small_input(model, 2)]).operations}
    gather, mask = rows["blocks.0.attention.gather"], rows["blocks.0.attention.mask"]
    tokens = math.prod(model.options.image_size // n for n in (4, 4))
    assert gather["outputs"] == mask["outputs"] == 2 * tokens * 8
    assert gather["additions"] <= min(gather["active_inputs"], gather["other_active_inputs"])
    assert gather["other_rate"] is not None
    assert gather["synapses"] == mask["synapses"] == 0


def test_shared_projections_have_a_mean_and_a_bias_for_every_scale():
    attention = TokenAttention(
        4, 2, NeuronSpec(tau=2.0), scales=(1, 3), projections="shared", attn_threshold=1.0
    )
    row = rows_of(attention, ones(2, 1, 2, 2, 4))["layer.branches.query"]
    assert row["additions"] == 2 * 4 * (4 + 4 + (2 + 3 + 3 + 2))


def test_biases_and_votes_are_told_from_other_additions():
    attention = TokenAttention(
        4, 2, NeuronSpec(tau=2.0), scales=(1, 3), projections="shared", attn_threshold=1.0
    )
    rows = rows_of(attention, ones(2, 3, 2, 2, 4))  # three images, and told per image
    query = rows["layer.branches.query"]
    assert (query["bias_additions"], query["biases"]) == (2 * 4 * (4 + 4), 2 * 4)
    assert rows["layer.mask"]["votes"] == 2 * 2 * (4 * 4), "of two branches"
    key = rows["layer.branches.key"]
    assert key["bias_additions"] == key["additions"] == key["outputs"] == 2 * 4 * 4
    unbiased = row_of(Linear(3, 5, bias=False), ones(2, 1, 1, 1, 3))
    assert unbiased["bias_additions"] == unbiased["additions"] == unbiased["biases"] == 0
    joined = TokenAttention(4, 2, NeuronSpec(tau=2.0), scales=(1, 1, 3), attn_threshold=1.0)
    for module in joined.modules():
        if isinstance(module, BatchNorm):
            nn.init.constant_(module.bias, 5.0)  # every neuron fires in every step
    mask = rows_of(joined, ones(2, 1, 2, 2, 4))["layer.mask"]
    assert mask["votes"] == mask["additions"] == 2 * 3 * (4 * 4)


class Pair(nn.Module):
    """A product of two activations that are what they are, whatever the images."""

    def __init__(self, layer, *operands):
        super().__init__()
        self.layer, self.operands = layer, operands

    def forward(self, events):
        return self.layer(*self.operands)


def pair_of(layer, *operands):
    steps, images = operands[0].shape[:2]
    events = torch.zeros(steps, images, 1, 1, 1)
    return measure(Pair(layer, *operands).eval(), [events]).operations[0]


def test_operands_of_a_product_by_value_and_by_non_zeros():
    spikes = torch.tensor([[1.0, 0, 1], [0, 0, 1]]).view(1, 1, 1, 2, 3)
    sums = torch.tensor([[4.0, 0], [1, 1], [0, 2]]).view(1, 1, 1, 3, 2)
    row = pair_of(MatrixProduct(), spikes, sums)
    assert (row["input"], row["other_input"]) == ("spikes", "integer")
    assert (row["active_inputs"], row["synops"]) == (3, 3 * 2)
    assert (row["other_active_inputs"], row["other_synops"]) == (4, 8 * 2)
    assert row["joint_synops"] == 1 * 1 + 0 * 2 + 2 * 1, "spikes of a column, values of its row"
    assert (row["inputs"], row["other_inputs"], row["votes"]) == (6, 6, 0)


def test_values_are_masked_one_by_one():
    mask = torch.tensor([3.0, 0, 2]).view(1, 1, 3, 1)
    values = torch.tensor([[1.0, 0, 5], [1, 1, 1], [0, 0, 7]]).view(1, 1, 3, 3)
    row = pair_of(ValueMask(), mask, values)
    assert row["synapses"] == row["dense_macs"] == row["outputs"] == 9
    assert row["joint_synops"] == 2 + 0 + 1


def test_a_classifier_skips_zeros_of_spikes_weights_and_means():
    classifier = Classifier(3, 4)
    with torch.no_grad():
        classifier.linear.weight.fill_(1.0)
        classifier.linear.weight[0, 0] = classifier.linear.weight[:2, 1] = 0
    x = torch.zeros(2, 1, 2, 2, 3)
    x[0, 0, 0, :, 0] = 1  # two spikes of a channel with three weights
    x[1, 0, 1, 1, 1] = 1  # one of a channel with two
    row = row_of(classifier, torch.cat((x, x), 1))  # twice, and told per image
    assert (row["zero_weights"], row["averaged"]) == (3, 4)
    assert row["synops"] == 3 * 4
    assert row["active_synops"] == 2 * 3 + 1 * 2
    assert row["mean_macs"] == 3 + 2, "one mean each"


def test_images_of_nothing_cost_the_biases_alone():
    model = tiny("spikformer")
    for module in model.modules():
        if hasattr(module, "running_mean"):
            module.running_mean.zero_()
            nn.init.zeros_(module.bias)
    rows = measure(model, [torch.zeros(1, 3, 8, 8, dtype=torch.float64)]).operations
    layers = [row for row in rows if row["kind"] != "neuron"]
    assert not any(row["synops"] or row["active_synops"] for row in layers)
    assert sum(row["additions"] for row in layers) == sum(
        row["outputs"] for row in layers if row["kind"] in ("conv", "linear")
    )
