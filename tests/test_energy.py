"""Energy models against their sources: published examples, spikingjelly, and sums by hand."""

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from spikingjelly.activation_based.op_counter import (
    LemaireEnergyConfig,
    estimate_lemaire_energy,
    estimate_simple_energy,
)
from torch import nn
from torch.nn.functional import conv2d, linear

from msvit.kernels import NeuronSpec
from msvit.layers.synapses import Conv, Linear, MatrixProduct
from msvit.metrics import measure
from msvit.metrics.costs import break_even
from msvit.neuron_kinds import bits_of
from msvit.neurons import Neuron
from msvit.options import ConfigError
from msvit.records.energy import (
    DEFAULT_ENERGY_MODEL,
    ENERGY_MODELS,
    energies,
    exact_synops,
    lemaire,
    memory_aware,
    quantised_twin,
    sdt,
    sj_simple,
    sop_spikformer,
    spikingformer_code,
)
from msvit.records.energy_constants import CONSTANTS, SHIPPED, use_constants
from msvit.records.measures import all_measures
from msvit.records.neurobench import neurobench
from msvit.records.twin import twin
from tests.small import fire, small_input, small_model


@pytest.fixture(autouse=True)
def shipped_constants():
    yield
    use_constants(None)


OLD = {
    "layer": "fc",
    "kind": "conv",
    "input": "spikes",
    "dense_macs": 100.0,
    "input_rate": 0.2,
    "macs": 0.0,
    "acs": 20.0,
}


def row(**changes):
    """A row of a 1×1 convolution of 10 spikes of 50 on 4 pixels, over 5 channels to 2."""
    usual = {"steps": 1, "synapses": 100.0, "synops": 20.0, "active_synops": 20.0}
    usual |= {"inputs": 50.0, "active_inputs": 10.0, "input_peak": 1.0, "outputs": 8.0}
    usual |= {"additions": 8.0, "weights": 10, "zero_weights": 0, "biases": 2}
    return OLD | usual | {"kernel": [1, 1], "stride": 1, "fan_out": 2} | changes


def neurons(**changes):
    usual = {"layer": "n", "kind": "neuron", "input": "current", "neuron": "lif", "steps": 4}
    usual |= {"dense_macs": 0.0, "input_rate": None, "macs": 0.0, "acs": 0.0, "output_peak": 1.0}
    usual |= {"updates": 40.0, "spikes": 5.0, "active_outputs": 5.0, "outputs": 40.0}
    return usual | {"additions": 40.0, "multiplies": 40.0, "states": 10.0} | changes


def test_rows_of_an_earlier_version_have_the_energy_that_they_had():
    assert sop_spikformer([OLD]) == 0.9 * 20 * 1e-9
    assert energies([OLD]) == {"sop_spikformer": sop_spikformer([OLD])}
    assert energies([]) != {}


def test_every_model_is_a_measure_by_its_name():
    names = {f"energy_mj:{name}" for name in ENERGY_MODELS if name != DEFAULT_ENERGY_MODEL}
    assert names | {"energy_mj"} <= set(all_measures())
    assert all_measures()["energy_mj"].value({"operations": [OLD]}) == sop_spikformer([OLD])
    assert all_measures()["energy_mj:lemaire"].value({"operations": [OLD]}) is None


def test_the_released_calculator_gives_its_published_examples():
    first = row(input="analog", dense_macs=27 * 48 * 32.0**2, steps=1, acs=0.0)
    head = row(kind="linear", dense_macs=4 * 3840.0, biases=10, steps=4, averaged=64)
    others = row(steps=4, acs=0.2458512465306023e9)
    given = spikingformer_code([first, others, head])  # spikformer's issue 23
    assert given == pytest.approx(0.24570254547754208, rel=1e-15)
    # Spikingformer-8-512 on ImageNet: its first convolution is charged four times, too.
    first = row(input="analog", dense_macs=27 * 64 * 224.0**2, steps=1, acs=0.0)
    head = row(kind="linear", dense_macs=4 * 512e3, biases=1000, steps=4, averaged=196)
    others = row(steps=4, acs=6.517540941e9)
    assert spikingformer_code([first, others, head]) == pytest.approx(7.463503, abs=1e-6)


def test_a_switch_decides_what_whole_numbers_are():
    whole = row(input="integer", acs=30.0)
    assert spikingformer_code([whole]) == pytest.approx(4.6e-9 * 100)
    CONSTANTS["spikingformer_code"]["integers"] = "ac"
    assert spikingformer_code([whole]) == pytest.approx(0.9e-9 * 30)


def test_the_released_calculator_charges_what_is_static_in_every_step():
    first = row(input="analog", acs=0.0, steps=1)
    product = row(**PRODUCT | {"steps": 4}, input="integer", acs=7.0)
    head = row(kind="linear", steps=4, averaged=9, biases=3)
    assert spikingformer_code([first, product, head]) == pytest.approx(
        (4.6 * (4 * 100 + 100 / 4 + 3) + 0.9 * 7) * 1e-9
    )


def test_spikes_are_charged_to_the_synapse():
    analog = row(input="analog", synapses=90.0, synops=None)
    assert exact_synops([row(), analog, neurons()]) == pytest.approx((0.9 * 20 + 4.6 * 90) * 1e-9)


def test_spike_driven_attention_is_charged_by_the_rates_of_q_and_k():
    model = small_model("sdt")
    fire(model)
    measured = measure(model, [small_input(model, 2, torch.float32)])
    rates = {}
    for f in measured.firing:
        rates.setdefault(f["layer"], []).append(f["rate"])
    mean = {name: sum(values) / len(values) for name, values in rates.items()}
    steps, tokens, dim = 4, 64, 32
    expected = sop_spikformer(measured.operations)
    rows = {r["layer"]: r for r in measured.operations}
    for block in (f"blocks.{i}.attention" for i in range(2)):
        q, k, v = (mean[f"{block}.{part}"] for part in "qkv")
        expected += 0.9e-9 * steps * (q + k + v) / 3 * 3 * tokens * dim**2
        expected -= 0.9e-9 * rows[f"{block}.qkv"]["acs"]
        expected += 0.9e-9 * steps * (q + k) * tokens * dim
    assert measured.energy_mj["sdt"] == pytest.approx(expected)
    assert sdt([row()]) is None, "of other attentions it says nothing"


class Ours(nn.Module):
    """Convolution with bias → neuron → convolution, grouped and strided → neuron → linear."""

    def __init__(self, kind="lif"):
        super().__init__()
        self.first = Conv(4, 6, 3, bias=True)
        self.fired = Neuron(NeuronSpec(kind=kind))
        self.second = Conv(6, 4, 3, stride=2, groups=2, bias=True)
        self.again = Neuron(NeuronSpec(kind=kind))
        self.linear = Linear(4 * 9, 5)

    def forward(self, x):  # [T, B, H, W, C]
        x = self.again(self.second(self.fired(self.first(x))))
        return self.linear(x.permute(0, 1, 4, 2, 3).flatten(2))


def as_plain(ours, kind="lif"):
    """The same of spikingjelly's layers."""
    node = {"lif": neuron.LIFNode, "if": neuron.IFNode}[kind]
    plain = nn.Sequential(
        layer.Conv2d(4, 6, 3, padding=1),
        node(),
        layer.Conv2d(6, 4, 3, padding=1, stride=2, groups=2),
        node(),
        layer.Flatten(),
        layer.Linear(36, 5),
    )
    for mine, theirs in ((ours.first, 0), (ours.second, 2), (ours.linear, 5)):
        plain[theirs].load_state_dict({"weight": mine.weight, "bias": mine.bias})
    functional.set_step_mode(plain, "m")
    return plain


def both(kind="lif", rate=0.5):
    """Our rows, spikingjelly's model and its input, of one image; our biases are not added."""
    torch.manual_seed(0)
    ours = Ours(kind)
    with torch.no_grad():
        ours.first.bias.zero_(), ours.second.bias.zero_()
        ours.first.weight.mul_(6), ours.second.weight.mul_(9)
    x = (torch.rand(4, 1, 6, 6, 4) < rate).float()
    operations = measure(ours.eval(), [x]).operations
    assert all(r["spikes"] for r in operations if r["kind"] == "neuron")
    return operations, as_plain(ours, kind).eval(), x.permute(0, 1, 4, 2, 3).contiguous()


SMALL = 4 * 10 / 8192  # pJ an access, for every word of a memory of less than 8 KB
FIFO = 1000 * SMALL
MAC = 3.2
CONV = {"kernel": [3, 5], "stride": 2, "steps": 2, "weights": 150, "synops": 77.0}
PRODUCT = {"kind": "product", "weights": 0, "biases": 0, "additions": 0.0, "steps": 2}
PRODUCT |= {"other_input": "spikes", "other_inputs": 64.0, "joint_synops": 5.0, "votes": 0.0}


def without_kernel(**changes):
    return {k: v for k, v in row(**changes).items() if k not in ("kernel", "stride")}


@pytest.mark.parametrize(
    ("rows", "picojoule"),
    [
        # 10 spikes × 2 channels reach 2 × 3 outputs, and touch 15 weights and potentials, each; 8
        # biases; two MACs a spike for addresses; 152 words of weights, 4 of potentials.
        (
            [row(**CONV)],
            0.1 * (120 + 8 + 300)
            + MAC * 20
            + 10 * FIFO
            + (300 + 8) * 152 * SMALL
            + 2 * 300 * 4 * SMALL,
        ),
        # the weights of a product are its other operand; there are no addresses of pixels
        (
            [without_kernel(**PRODUCT, synops=30.0)],
            0.1 * (30 + 30) + 10 * FIFO + 30 * 32 * SMALL + 2 * 30 * 4 * SMALL,
        ),
        # 100 MACs; biases, inputs, outputs and 15 × 2 addresses; 25 words of inputs
        (
            [row(**CONV, input="analog")],
            MAC * 100 + 0.1 * (8 + 50 + 8 + 30) + 100 * 25 * SMALL + 108 * 152 * SMALL,
        ),
        # folded: the MACs of what is deployed
        (
            [row(**CONV, input="integer", folded_into="x", dense_macs=1.0, synapses=100.0)],
            MAC * 100 + 0.1 * (8 + 50 + 8 + 30) + 100 * 25 * SMALL + 108 * 152 * SMALL,
        ),
        # a mean of 10 pixels has 5 values, whatever they were made of
        (
            [without_kernel(kind="linear", averaged=10)],
            MAC * 100 + 0.1 * (8 + 5 + 8) + 5 * 5 * SMALL + 108 * 12 * SMALL,
        ),
        (
            [without_kernel(**PRODUCT, input="integer")],
            MAC * 100 + 0.1 * (50 + 8) + 50 * 25 * SMALL + 100 * 32 * SMALL,
        ),
        ([row(kind="mask")], 0),
        ([neurons()], 2 * 40 * 10 * SMALL + 0.1 * 5 + MAC * 40 + 5 * FIFO),
        ([neurons(neuron="if", multiplies=0.0)], 2 * 40 * 10 * SMALL + 0.1 * 5 + 5 * FIFO),
        ([neurons(neuron="relu")], 40 * 40 * SMALL),
        # 16 KB are a third of the way from 8 to 32; what is larger than 1 MB costs as much as that
        ([neurons(neuron="relu", outputs=4096.0)], 4096 * (10 + 10 / 3)),
        ([neurons(neuron="relu", outputs=1e6)], 1e6 * 100),
    ],
)
def test_lemaire_by_hand(rows, picojoule):
    assert lemaire(rows) == pytest.approx(picojoule * 1e-9)


BYTE = 24.96


@pytest.mark.parametrize(
    ("rows", "picojoule"),
    [
        ([row()], 0.9 * 20 + 4 * BYTE * (20 + 8)),
        ([row(biases=0)], 0.9 * 20 + 4 * BYTE * 20),
        ([row(input="integer")], 4.6 * 100 + 4 * BYTE * (100 + 8)),
        (
            [row(input="integer", folded_into="x", dense_macs=1.0)],
            4.6 * 100 + 4 * BYTE * (100 + 8),
        ),
        ([row(kind="linear", averaged=16, synapses=1600.0)], 4.6 * 100 + 4 * BYTE * (100 + 8)),
        ([row(**PRODUCT)], 0.9 * 5),
        ([row(**PRODUCT | {"other_input": "integer"})], 0.9 * 20),
        ([row(**PRODUCT, input="integer")], 4.6 * 100),
        ([row(kind="mask")], 0),
        ([neurons()], 4 * BYTE * 2 * 10 * 4),
        ([neurons(neuron="psn", states=0.0)], 0),
    ],
)
def test_the_simple_estimate_by_hand(rows, picojoule):
    assert sj_simple(rows) == pytest.approx(picojoule * 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lif", "if"])
def test_lemaire_agrees_with_spikingjelly(kind):
    operations, plain, x = both(kind)
    with pytest.warns(RuntimeWarning, match="Flatten"):
        report = estimate_lemaire_energy(plain, (x,), config=LemaireEnergyConfig(strict=False))
    assert lemaire(operations) == pytest.approx(report.total_pj * 1e-9, rel=1e-12)


@pytest.mark.slow
def test_lemaire_charges_dense_input_as_spikingjelly_does():
    torch.manual_seed(0)
    ours = Conv(4, 6, 3, stride=2, bias=True)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.neuron = ours, Neuron(NeuronSpec(kind="if"))

        def forward(self, x):
            return self.neuron(self.conv(x))

    plain = nn.Sequential(layer.Conv2d(4, 6, 3, stride=2, padding=1), neuron.IFNode())
    functional.set_step_mode(plain, "m")
    plain[0].load_state_dict({"weight": ours.weight, "bias": ours.bias})
    x = torch.randn(1, 1, 6, 6, 4)
    report = estimate_lemaire_energy(plain, (x.permute(0, 1, 4, 2, 3).contiguous(),))
    assert lemaire(measure(Net().eval(), [x]).operations) == pytest.approx(report.total_pj * 1e-9)


@pytest.mark.slow
def test_the_simple_estimate_counts_as_spikingjelly_does():
    operations, plain, x = both()
    report = estimate_simple_energy(plain, (x,))
    counts = report.counts
    layers = [r for r in operations if r["kind"] != "neuron"]
    assert counts["synop"] == sum(r["synops"] for r in layers)
    assert counts["mac"] == 0
    assert counts["weight_read_bytes"] == 4 * sum(r["synops"] for r in layers)
    assert counts["bias_read_bytes"] == 4 * sum(r["outputs"] for r in layers)
    memory = sum(v for k, v in report.breakdown_pj.items() if k == "memory_pj")
    expected = (0.9 * counts["synop"] + memory) * 1e-9
    assert sj_simple(operations) == pytest.approx(expected, rel=1e-12)


@pytest.mark.slow
def test_products_of_two_spikes_count_where_both_are():
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.product = MatrixProduct()

        def forward(self, x):
            return self.product(x, x.transpose(-1, -2))

    x = (torch.rand(2, 1, 2, 5, 3) < 0.5).float()
    operations = measure(Product(), [x]).operations
    report = estimate_simple_energy(Product(), (x,))
    assert report.counts["synop"] == operations[0]["joint_synops"]
    assert sj_simple(operations) == pytest.approx(0.9e-9 * report.counts["synop"])


def test_a_mean_of_spikes_is_multiplied_by_neurobench():
    head = row(kind="linear", averaged=16, steps=4, dense_macs=40.0, synapses=640.0, mean_macs=37.0)
    found = neurobench([head, row()])
    assert (found["effective_macs"], found["effective_acs"]) == (37, 20)
    assert found["dense"] == 40 + 100
    of_one_pixel = row(kind="linear", averaged=1, mean_macs=20.0)
    assert neurobench([of_one_pixel])["effective_acs"] == 20
    of_earlier_version = {k: v for k, v in head.items() if k != "mean_macs"}
    found = neurobench([of_earlier_version, row()])
    assert "effective_macs" not in found, "which it does not tell"
    assert found["effective_acs"] == 20
    analog = {**of_earlier_version, "input": "analog", "input_peak": None}
    assert neurobench([analog])["effective_macs"] == 20


def test_neurobench_sees_weights_and_no_masks():
    found = neurobench([row(zero_weights=4), row(zero_weights=1), row(kind="mask", weights=0)])
    assert found["connection_sparsity"] == pytest.approx(5 / 20)
    assert found["dense"] == 200
    assert found["effective_acs"] == 40


@pytest.mark.parametrize(
    ("kind", "peak", "which"),
    [
        ("spikes", 1.0, "acs"),
        ("integer", 1.0, "acs"),  # -1, 0 and 1
        ("integer", 2.0, "macs"),
        ("levels", 1.0, "acs"),
        ("levels", 7.0, "macs"),
        ("analog", None, "macs"),
    ],
)
def test_neurobench_accumulates_minus_one_zero_and_one(kind, peak, which):
    layer = row(input=kind, input_peak=peak)
    product = row(kind="product", input=kind, input_peak=peak, joint_synops=5.0)
    found = neurobench([layer, product])
    other = {"acs": "macs", "macs": "acs"}[which]
    assert (found[f"effective_{which}"], found[f"effective_{other}"]) == (20, 0)
    assert (found[f"product_{which}"], found[f"product_{other}"]) == (5, 0)


@pytest.mark.slow
def test_neurobench_by_its_definitions():
    operations, plain, x = both()
    conv, other, last = plain[0], plain[2], plain[5]
    seen = []
    for module in (conv, other, last):
        module.register_forward_hook(lambda m, inputs, output: seen.append(inputs[0]))
    functional.reset_net(plain)
    plain(x)
    effective = dense = 0.0
    for module, given in zip((conv, other, last), seen, strict=True):
        for total in (False, True):
            weight = torch.ones_like(module.weight) if total else (module.weight != 0).float()
            given_flags = torch.ones_like(given) if total else (given != 0).float()
            if isinstance(module, nn.Linear):
                count = linear(given_flags, weight).sum()
            else:
                geometry = (None, module.stride, module.padding, 1, module.groups)
                count = conv2d(given_flags.flatten(0, 1), weight, *geometry).sum()
            effective, dense = (
                (effective, dense + float(count)) if total else (effective + float(count), dense)
            )
    found = neurobench(operations)
    assert found["effective_acs"] == effective
    assert found["effective_macs"] == 0
    assert found["dense"] == dense
    assert found["connection_sparsity"] == 0
    assert found["footprint_bytes"] == sum(4 * p.numel() for p in plain.parameters())
    fired = [r for r in operations if r["kind"] == "neuron"]
    share = sum(r["spikes"] for r in fired) / sum(r["outputs"] for r in fired)
    assert found["activation_sparsity"] == pytest.approx(1 - share)
    assert found["membrane_updates"] == 4 * (6 * 36 + 4 * 9)


def test_traffic_is_charged_by_the_bit():
    # 20 weights, 8 biases of 32 bits; 50 inputs of a bit; 10 potentials, twice in 4 steps; 40 out.
    weights, activations = 28 * 32, 50 + 2 * 10 * 4 * 32 + 40
    compute = 0.9 * (20 + 8 + 40) + 3.7 * 40
    expected = compute + 1.5625 * weights + 0.3125 * activations
    assert memory_aware([row(), neurons()]) == pytest.approx(expected * 1e-9)
    CONSTANTS["memory_aware"]["precision"] = "int8"
    weights, activations = 28 * 8, 50 + 2 * 10 * 4 * 16 + 40
    compute = 0.03 * (20 + 8 + 40) + 0.2 * 40
    expected = compute + 1.5625 * weights + 0.3125 * activations
    assert memory_aware([row(), neurons()]) == pytest.approx(expected * 1e-9)


def test_biases_are_read_and_other_additions_are_not():
    # 30 additions, 16 of which are biases: 2 branches of 8 outputs, and means over neighbours.
    shared = row(additions=30.0, bias_additions=16.0, synops=0.0, inputs=0.0)
    assert memory_aware([shared]) == pytest.approx((0.9 * 30 + 1.5625 * 16 * 32) * 1e-9)
    assert sj_simple([shared]) == pytest.approx(24.96 * 4 * 16 * 1e-9)
    of_earlier_version = {k: v for k, v in shared.items() if k != "bias_additions"}
    expected = (0.9 * 30 + 1.5625 * 8 * 32) * 1e-9
    assert memory_aware([of_earlier_version]) == pytest.approx(expected)


PAIR = {"synops": 0.0, "additions": 0.0, "weights": 0, "biases": 0, "inputs": 4.0, "votes": 0.0}
PAIR |= {"other_input": "spikes", "other_inputs": 32.0, "other_active_inputs": 5.0}


def test_masks_read_both_of_their_operands_and_the_votes():
    mask = row(kind="mask", **PAIR)
    assert memory_aware([mask]) == pytest.approx(0.3125 * (4 + 32) * 1e-9)
    voted = {**mask, "votes": 64.0, "additions": 10.0}
    assert memory_aware([voted]) == pytest.approx((0.9 * 10 + 0.3125 * (4 + 32 + 64)) * 1e-9)
    whole = {**mask, "other_input": "integer", "votes": 64.0}
    assert memory_aware([whole]) == pytest.approx(0.3125 * (4 + 32 * (32 + 64)) * 1e-9)
    del mask["votes"]  # as an earlier version
    assert memory_aware([mask]) == pytest.approx(0.3125 * (4 + 32) * 1e-9)


def test_traffic_has_the_bits_of_what_moves():
    """With every weight and potential free of cost, and no arithmetic but where it is told."""
    CONSTANTS["memory_aware"].update(weights_per_bit=0.0, activations_per_bit=1.0)
    CONSTANTS["memory_aware"]["precision"] = "int8"
    at = CONSTANTS["memory_aware"]["int8"]
    quiet = {"additions": 0.0, "synops": 0.0}
    sums = row(input="integer", input_peak=9.0, **quiet)
    assert memory_aware([sums]) == pytest.approx(50 * 4e-9)
    analog = row(input="analog", input_peak=None, additions=0.0, synapses=6.0)
    by_hand = 6 * (at["add"] + at["multiply"]) + 50 * at["weight_bits"]
    assert memory_aware([analog]) == pytest.approx(by_hand * 1e-9)
    product = row(**PRODUCT | {"other_input": "integer"}, synops=6.0)
    assert memory_aware([product]) == pytest.approx((6 * at["add"] + 6 * 16 + 50) * 1e-9)
    levels = row(input="levels", input_bits=5, input_peak=7.0, synapses=6.0, additions=0.0)
    assert memory_aware([levels]) == pytest.approx((6 * 5 * at["add"] + 50 * 5) * 1e-9)
    seven = {**levels, "input_bits": 7}  # 7 · 0.03 is less than 0.23, and more than 0.2
    assert memory_aware([seven]) == pytest.approx((6 * 7 * at["add"] + 50 * 7) * 1e-9)
    wide = {**levels, "input_bits": 9}
    by_hand = 6 * (at["add"] + at["multiply"]) + 50 * 9
    assert memory_aware([wide]) == pytest.approx(by_hand * 1e-9)
    resting = neurons(additions=0.0, multiplies=0.0, states=0.0, output_peak=4.0)
    assert memory_aware([resting]) == pytest.approx(40 * 3e-9)
    del resting["output_peak"]
    assert memory_aware([resting]) == pytest.approx(40 * 8e-9)


def test_factors_that_another_stands_for_are_free():
    factor = row(folded_into="x", weights=0, input="analog", synops=None, input_peak=None)
    first = row(folded_into="x")
    for model in (exact_synops, sj_simple, lemaire, memory_aware, quantised_twin):
        assert model([first, factor]) == model([first])
    assert twin([first, factor]).macs == 0
    assert neurobench([first, factor]) == neurobench([first])


@pytest.mark.parametrize(("steps", "bits"), [(1, 1), (2, 2), (3, 2), (4, 3), (7, 3), (8, 4)])
def test_the_twin_has_as_many_levels(steps, bits):
    spiking = row(steps=steps, synapses=steps * 100.0, synops=40.0)
    found = twin([spiking])
    assert (found.timesteps, found.bits) == (steps, (bits, bits))
    assert (found.synapses, found.spikes, found.ratio) == (100, 0.4, pytest.approx(bits))
    assert quantised_twin([spiking]) == pytest.approx(0.9e-9 * bits * 100)


def test_values_above_one_have_more_levels():
    sums = row(layer="sums", input="integer", steps=4, synapses=300.0, synops=90.0, input_peak=4.0)
    binary = row(steps=4, synapses=100.0, synops=60.0)
    found = twin([sums, binary])
    assert found.bits == (3, 5), "levels 0 to 16, and 0 to 4"
    assert found.synapses == 100
    assert found.ratio == pytest.approx((75 * 5 + 25 * 3) / 100)
    assert quantised_twin([sums, binary]) == pytest.approx(0.9e-9 * (75 * 5 + 25 * 3))
    wide = row(input="integer", steps=4, input_peak=9.0)  # 37 levels: six accumulates are too many
    assert quantised_twin([wide]) == pytest.approx(4.6e-9 * 25)


def test_analog_layers_and_the_classifier_of_a_twin_are_macs():
    first = row(input="analog", synapses=50.0, synops=None, input_peak=None)
    head = row(kind="linear", steps=4, dense_macs=40.0, synapses=640.0, averaged=16)
    inner = row(steps=4, synapses=80.0)
    mask = row(kind="mask", synapses=0.0, synops=0.0, input="integer", input_peak=40.0)
    found = twin([first, head, inner, mask])
    assert found.bits == (3, 3), "masks are free"
    assert (found.macs, found.synapses, found.timesteps) == (50 + 10, 20, 4)
    assert quantised_twin([first, head, inner]) == pytest.approx((4.6 * 60 + 0.9 * 3 * 20) * 1e-9)


def test_spikes_and_their_twin_cost_the_same_at_a_share_of_zeros():
    # 4 steps of 100 synapses, 0.8 spikes a synapse, 24 of 120 values a step: T · rate = k (1 - γ)
    found = twin([row(steps=4, synapses=400.0, synops=80.0, inputs=120.0, active_inputs=24.0)])
    assert found.rate == pytest.approx(0.2)
    assert found.zeros_at_break_even() == pytest.approx(1 - 0.8 / 3)
    assert found.zeros_at_break_even(ratio=0.5) == pytest.approx(-0.6)
    assert found.zeros == pytest.approx((0.2, 0.8))
    assert found.crossover() == pytest.approx(3 / 4)
    assert found.crossover(zeros=0.6) == pytest.approx(0.3)
    at = found.zeros_at_break_even()
    assert found.crossover(zeros=at) == pytest.approx(found.rate)
    busy = twin([row(steps=4, synapses=400.0, synops=400.0, inputs=50.0, active_inputs=50.0)])
    assert busy.zeros == (0, 0)


def layer_of(bits, active, **changes):
    """100 synapses, 4 steps, and spikes, or ones among sums up to 4, on a share of its inputs."""
    known = {"input": "integer", "input_peak": 4.0} if bits == 5 else {}
    counts = {"synapses": 400.0, "synops": 400 * active, "inputs": 80.0}
    return row(steps=4, **counts, active_inputs=80 * active, **known, **changes)


@pytest.mark.parametrize(
    ("layers", "spikes", "cheapest", "dearest", "verdict"),
    [
        # 0.9 pJ × 400 × (0.9 + 0.05); 270 × 0.9 + 450 × 0.05; 270 × 1 + 450 × 0.2
        ([(3, 0.9), (5, 0.05)], 342.0, 265.5, 360.0, "its zeros decide"),
        # Over synapses half of the twin is zero; over its cost, 270 × 0.9 + 450 × 0.9 is not
        ([(3, 0.02), (5, 0.9)], 331.2, 410.4, 471.6, "spikes cost no more, whatever its zeros"),
        # Busy and silent layers do not make up for one another: 270 × 1 + 270 × 0.08
        ([(3, 0.95), (3, 0.02)], 349.2, 261.9, 291.6, "spikes cost more, whatever its zeros"),
    ],
)
def test_the_verdict_on_a_twin_is_the_comparison_of_picojoule(
    layers, spikes, cheapest, dearest, verdict
):
    operations = [layer_of(*layer) for layer in layers]
    assert exact_synops(operations) == pytest.approx(spikes * 1e-9)
    found = twin(operations)
    bounds = [found.picojoule * (1 - zeros) for zeros in reversed(found.zeros)]
    assert bounds == pytest.approx([cheapest, dearest])
    assert 1 - found.zeros_at_break_even() == pytest.approx(spikes / found.picojoule)
    assert f"zeros: {verdict}." in break_even(found)


@pytest.mark.parametrize("timesteps", [1, 2])
def test_spikes_on_few_synapses_of_many_bits_are_cheap(timesteps):
    """Bits differ behind every shortcut of a real network, and so does activity."""
    model = small_model("spikformer", timesteps, image_size=16, dim=16, heads=2)
    fire(model)
    operations = measure(model, [small_input(model, 2, torch.float32)]).operations
    layers = [row for row in operations if row["input"] in ("spikes", "integer")]
    layers = [row for row in layers if "averaged" not in row]
    dense = [
        row["synapses"] / timesteps * bits_of(timesteps * int(max(1, row["input_peak"]))) * 0.9
        for row in layers
    ]
    active = [row["active_inputs"] / row["inputs"] for row in layers]
    cheapest = sum(pj * a for pj, a in zip(dense, active, strict=True))
    dearest = sum(pj * min(1, timesteps * a) for pj, a in zip(dense, active, strict=True))
    found = twin(operations)
    assert len({*found.bits}) == 2
    # By synapses where they are spikes: taps over padding do not see the mean.
    assert found.picojoule * (1 - found.zeros[1]) == pytest.approx(cheapest, rel=0.03)
    assert found.picojoule * (1 - found.zeros[0]) == pytest.approx(dearest, rel=0.03)
    spikes = 0.9 * sum(row["synops"] for row in layers)
    assert spikes < 0.97 * cheapest
    assert "spikes cost no more" in break_even(found)


def test_at_one_step_of_spikes_alone_a_network_is_its_own_twin():
    padded = row(synapses=90.0, synops=17.0)
    assert "spikes cost no more" in break_even(twin([padded, row()]))


def test_what_does_not_spike_has_no_twin():
    analog = row(input="analog", synops=None, input_peak=None)
    for operations in ([analog], [OLD], [analog, neurons(neuron="relu")]):
        assert twin(operations) is None
        assert quantised_twin(operations) is None


def test_constants_are_data(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("exact_synops: {ac: 0.1}\nmemory_aware: {fp32: {add: 2}}\n")
    assert use_constants(file) == ["exact_synops.ac = 0.1", "memory_aware.fp32.add = 2"]
    assert exact_synops([row()]) == pytest.approx(0.1e-9 * 20)
    assert sop_spikformer([OLD]) == 0.9 * 20 * 1e-9
    assert use_constants(None) == []
    assert SHIPPED == CONSTANTS


@pytest.mark.parametrize(
    ("text", "key", "said"),
    [
        ("exact: {ac: 1}", "exact", "did you mean 'exact_synops'"),
        ("exact_synops: {acs: 1}", "exact_synops.acs", "did you mean 'ac'"),
        ("exact_synops: {ac: -1}", "exact_synops.ac", "at least 0"),
        ("exact_synops: {ac: much}", "exact_synops.ac", "at least 0"),
        pytest.param(
            f"exact_synops: {{ac: {10**400}}}", "exact_synops.ac", "float holds", id="huge"
        ),
        ("quantised_twin: {mac: 0}", "quantised_twin.mac", "above 0"),
        ("quantised_twin: {ac: 0.0}", "quantised_twin.ac", "above 0"),
        ("memory_aware: {int8: {weight_bits: 1.5}}", "memory_aware.int8.weight_bits", "at least 1"),
        (
            "memory_aware: {fp16: {potential_bits: 0}}",
            "memory_aware.fp16.potential_bits",
            "at least 1",
        ),
        ("lemaire: {word_bytes: 0}", "lemaire.word_bytes", "whole number of at least 1"),
        ("exact_synops: 1", "exact_synops", "names and values"),
        ("memory_aware: {precision: fp8}", "memory_aware.precision", "fp32"),
        ("lemaire: {sram_bytes: [0, 9, 8, 10]}", "lemaire.sram_bytes", "rising"),
        ("lemaire: {sram_access: [0, 10, 9, 20]}", "lemaire.sram_access", "do not fall"),
        ("lemaire: {sram_access: [0, 10, 20]}", "lemaire.sram_access", "a list of 4"),
    ],
)
def test_a_wrong_constant_is_named(tmp_path, text, key, said):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said) as raised:
        use_constants(file)
    assert raised.value.key == key
    assert SHIPPED == CONSTANTS
