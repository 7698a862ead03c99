"""Twins that do not spike: quantisers, structure, counts, energy, and the table beside spikes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from analysis.figures import FIGURES
from analysis.formats import markdown
from analysis.study_tables import twin_table
from analysis.twins import energy_ratio, pairs
from analysis.view import USUAL
from msvit import create_model, kernels
from msvit.activations import Quantiser
from msvit.cells import resolve_cell
from msvit.kernels import NeuronSpec
from msvit.layers.synapses import Conv, Linear, MatrixProduct, ValueMask
from msvit.metrics import measure
from msvit.metrics.layer_names import layer_name
from msvit.models import model_options
from msvit.neuron_kinds import bits_of
from msvit.neurons import Neuron, no_decay
from msvit.options import ConfigError
from msvit.records.energy import ENERGY_MODELS, quantised_twin
from msvit.records.twin import twin
from tests.oracles_operations import convolution, fully_connected, of_products
from tests.results_folder import Results, make_cell, make_record
from tests.small import fire, small_input, small_model

FAMILIES = ("msvit", "qkformer", "spikformer")
TINY = {"dim": 8, "heads": 2, "image_size": 8, "timesteps": 1}
DEPTHS = {"spikformer": (1,)}


def tiny_twin(name: str, kind: str, **options) -> nn.Module:
    """In eval mode, after two batches of training."""
    depths = DEPTHS.get(name, (1, 1))
    widths = {} if name == "spikformer" else {"widths": (0.5, 1.0)}
    stages = {"stages": (1,)} if name == "msvit" else {}
    given = {"depths": depths, "twin": kind} | widths | stages | options
    model = small_model(name, **(TINY | given))
    fire(model)
    with torch.no_grad():
        for _ in range(2):
            model.train()(small_input(model, 4, torch.float32))
    return model.eval()


# The quantiser


@pytest.mark.parametrize(("steps", "bits"), [(1, 1), (2, 2), (3, 2), (4, 3), (7, 3), (8, 4)])
def test_levels_are_those_of_a_spike_train(steps, bits):
    assert bits_of(steps) == bits == int(np.ceil(np.log2(steps + 1)))


def test_values_are_rounded_to_levels_and_clipped():
    quantiser = Quantiser(2).eval()
    with torch.no_grad():
        quantiser.log_step.fill_(np.log(0.5))
    x = torch.tensor([-3.0, 0.2, 0.3, 0.7, 0.8, 1.4, 9.0]).view(1, 1, -1)
    assert quantiser(x).flatten().tolist() == [0, 0, 1, 1, 2, 3, 3]


def test_gradients_are_those_of_lsq_behind_which_a_norm_follows():
    torch.manual_seed(0)
    x = torch.randn(1, 5, 4, 3, dtype=torch.float64, requires_grad=True)
    quantiser = Quantiser(2).double().eval()
    with torch.no_grad():
        quantiser.log_step.fill_(np.log(0.4))
    target = torch.randn(5 * 4 * 3, dtype=torch.float64)

    def loss(y):
        return (y.flatten() / y.norm()) @ target  # whatever scale y has

    loss(quantiser(x)).backward()
    ours, of_step = x.grad.clone(), quantiser.log_step.grad / 0.4  # d log s = ds / s

    # Esser et al., equations 1 to 3 and their gradient scale, with steps that are multiplied back.
    s, scaled = 0.4, x.detach() / 0.4
    level = scaled.clamp(0, 3).round()
    y = (level * s).requires_grad_()
    loss(y).backward()
    inside = (scaled > 0) & (scaled < 3)
    slope = torch.where(inside, level - scaled, scaled.clamp(0, 3))
    torch.testing.assert_close(ours, y.grad * inside)
    torch.testing.assert_close(of_step, (y.grad * slope).sum() / (4 * 3 * 3) ** 0.5)


def test_the_step_starts_from_the_first_batch_that_says_something():
    quantiser = Quantiser(3)
    quantiser(torch.zeros(1, 2, 4))
    assert not quantiser.started
    assert quantiser.log_step == 0
    x = torch.rand(1, 2, 4) * 5
    quantiser.eval()(x)
    assert not quantiser.started
    quantiser.train()(x)
    assert quantiser.log_step.exp().item() == pytest.approx(float(2 * x.mean() / 7**0.5))
    before = quantiser.log_step.clone()
    quantiser(100 * x)
    assert quantiser.started
    assert quantiser.log_step == before


# The network


@pytest.mark.parametrize("kind", ["ann", "quantised"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_twin_has_the_structure_of_its_network_and_no_neurons(name, kind):
    twin, spiking = (
        create_model(name, **{**TINY, "depths": DEPTHS.get(name, (1, 1, 1)), **options})
        for options in ({"twin": kind}, {})
    )
    shapes = [
        {key: value.shape for key, value in model.state_dict().items() if ".node." not in key}
        for model in (twin, spiking)
    ]
    assert shapes[0] == shapes[1]
    modules = [*twin.modules()]
    assert not any("spikingjelly" in type(module).__module__ for module in modules)
    neurons = [module for module in modules if isinstance(module, Neuron)]
    steps = {name for name, _ in twin.named_parameters() if name.endswith("log_step")}
    assert len(steps) == (len(neurons) if kind == "quantised" else 0)
    assert steps <= no_decay(twin)
    assert kernels.describe(twin, torch.device("cpu"), torch.float32) == "none"


@pytest.mark.parametrize("kind", ["ann", "quantised"])
def test_a_twin_is_the_same_with_kernels_and_without(kind, monkeypatch):
    model = tiny_twin("msvit", kind)
    x = small_input(model, 3, torch.float32)
    with torch.no_grad():
        fast = model(x)
        monkeypatch.setenv("MSVIT_KERNELS", "off")
        torch.testing.assert_close(fast, model(x), rtol=1e-4, atol=1e-4)
    assert fast.shape == (1, 3, 10)
    assert fast.std() > 0


def test_a_quantised_twin_learns():
    torch.manual_seed(0)
    structure = {"depths": (1,), "widths": (1.0,), "stages": (1,), "in_channels": 1}
    model = create_model("msvit", **TINY | structure, num_classes=2, twin="quantised")
    x = torch.randn(16, 1, 8, 8)
    labels = (x[:, 0, :4].mean((1, 2)) > x[:, 0, 4:].mean((1, 2))).long()
    losses = []
    for _ in range(20):
        loss = nn.functional.cross_entropy(model(x)[0], labels)
        loss.backward()
        losses.append(loss.item())
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= 0.01 * parameter.grad.sign()
                    parameter.grad = None
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"twin": "ann"}, "timesteps: a twin has 1 time step, not 4"),
        ({"twin": "ann", "timesteps": 1, "tau": 3.0}, "tau: the twin 'ann' has no neurons"),
        ({"twin": "ann", "timesteps": 1, "neuron": "lif"}, "neuron: the twin 'ann' has no"),
        ({"twin": "ann", "timesteps": 1, "batch_coupled": True}, "batch_coupled: a twin has no"),
        ({"twin": "ann", "timesteps": 1, "twin_of_timesteps": 2}, "bits of the twin 'quantised'"),
        ({"twin_of_timesteps": 2}, "twin_of_timesteps: it tells the bits of the twin"),
        ({"twin": "relu", "timesteps": 1}, "twin: unknown value 'relu'"),
    ],
)
def test_options_without_meaning_beside_a_twin_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        model_options("msvit", options)


def test_a_twin_is_written_down_as_what_it_has():
    data, training = {"name": "digits"}, {"recipe": "digits"}

    def written(**model):
        model = {"name": "qkformer", "timesteps": 1, **model}
        return resolve_cell({"model": model, "data": data, "training": training}, "test").model

    assert not {"twin", "twin_of_timesteps"} & set(written())
    assert set(written()) - set(written(twin="ann")) >= {"neuron", "tau", "attn_threshold"}
    assert written(twin="quantised") == written(twin="quantised", twin_of_timesteps=4)
    assert written(twin="quantised", twin_of_timesteps=8)["twin_of_timesteps"] == 8


# Counts and energy


@pytest.mark.parametrize("kind", ["ann", "quantised"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_synapse_of_a_twin_is_a_mac(name, kind):
    model = tiny_twin(name, kind)
    found = {}

    def walk(path, module):
        def hook(module, inputs, output):
            xs = [x.detach().numpy() for x in inputs]
            if isinstance(module, Conv):
                geometry = (module.kernel, module.stride, module.padding, module.groups)
                count = convolution(xs[0], len(module.weight), *geometry)
            elif isinstance(module, Linear):
                count = fully_connected(xs[0], module.out_features)
            elif isinstance(module, MatrixProduct):
                count = of_products(*xs)[0]
            else:
                count = None
            inputs_are = int(xs[0].max()).bit_length() if (xs[0] % 1 == 0).all() else None
            found[path] = (output.numel() if count is None else count.synapses), inputs_are

        return hook

    handles = [
        module.register_forward_hook(walk(layer_name(path), module))
        for path, module in model.named_modules()
        if isinstance(module, Conv | Linear | MatrixProduct | ValueMask)
    ]
    images = small_input(model, 2, torch.float32)
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    measured = measure(model, [images])
    layers = [row for row in measured.operations if row["kind"] != "neuron"]
    assert {row["layer"] for row in layers} == found.keys()
    assert not measured.firing
    assert measured.firing_rate == 0
    for i, row in enumerate(layers):
        synapses, bits = found[row["layer"]]
        assert row["synapses"] == synapses / 2, row["layer"]
        assert row["macs"] == row["dense_macs"]
        assert row["acs"] == 0
        assert row["synops"] is None
        inner = kind == "quantised" and 0 < i < len(layers) - 1
        assert row["input"] == ("levels" if inner else "analog")
        if inner and row["kind"] != "product":
            assert row["input_bits"] == max(3, bits)
    for row in measured.operations[len(layers) :]:
        assert row["neuron"] == {"ann": "relu"}.get(kind, kind)
        assert row["updates"] == row["additions"] == row["states"] == row["spikes"] == 0
        assert 0 <= row["active_outputs"] <= row["outputs"]
        assert row.get("output_peak") == (7 if kind == "quantised" else None)


def test_levels_behind_a_shortcut_have_the_bits_of_their_sum():
    rows = {row["layer"]: row for row in measure(*seen("spikformer")).operations}
    assert rows["blocks.0.mlp.fc1"]["input_peak"] > 7
    assert rows["blocks.0.mlp.fc1"]["input_bits"] == 4


def test_a_product_of_levels_runs_over_the_operand_of_fewer_bits():
    class Net(nn.Module):
        def __init__(self, *operands):
            super().__init__()
            self.neuron, self.product = (
                Neuron(NeuronSpec("quantised", timesteps=4)),
                MatrixProduct(),
            )
            self.operands = operands

        def forward(self, images):
            return self.product(*self.operands)

    few, many = torch.full((1, 1, 1, 2, 2), 5.0), torch.full((1, 1, 1, 2, 2), 9.0)
    for operands in ((few, many), (many, few)):
        (row,) = measure(Net(*operands), [torch.zeros(1, 1, 1, 1)]).operations
        assert (row["input"], row["input_bits"], row["other_bits"]) == ("levels", 3, 4)


def test_votes_of_a_twin_take_an_addition_a_value():
    model = tiny_twin("qkformer", "ann")
    rows = {row["layer"]: row for row in measure(model, [small_input(model, 2, torch.float32)]).operations}  # fmt: skip # noqa: E501
    mask = rows["stages.0.0.attention.mask"]
    assert mask["additions"] == mask["outputs"] == 8 * 8 * 4


def seen(name):
    model = tiny_twin(name, "quantised")
    return model, [small_input(model, 8, torch.float32)]


def row(**changes):
    return {
        "layer": "x",
        "kind": "conv",
        "input": "levels",
        "dense_macs": 100.0,
        "macs": 100.0,
        "acs": 0.0,
        "input_rate": None,
        "steps": 1,
        "synapses": 100.0,
        "synops": None,
        "inputs": 10.0,
        "input_peak": 7.0,
        "input_bits": 3,
        "outputs": 20.0,
        "biases": 0,
        "additions": 0.0,
        "weights": 50,
        **changes,
    }


@pytest.mark.parametrize(
    ("bits", "by_synapse", "with_memory"),
    [
        (3, 3 * 0.9, 3 * 0.9),
        (6, 4.6, 4.6),  # six accumulates would be more than a MAC
    ],
)
def test_a_mac_on_levels_costs_its_bits_and_at_most_a_mac(bits, by_synapse, with_memory):
    rows = [row(input_bits=bits)]
    energy = {name: model(rows) for name, model in ENERGY_MODELS.items()}
    assert energy["sop_spikformer"] == pytest.approx(100 * 4.6e-9)
    assert energy["exact_synops"] == pytest.approx(100e-9 * by_synapse)
    assert energy["quantised_twin"] == energy["exact_synops"]
    traffic = 100 * 32 * 1.5625 + 10 * bits * 0.3125
    assert energy["memory_aware"] == pytest.approx((100 * with_memory + traffic) * 1e-9)


def test_a_product_of_levels_reads_the_bits_of_the_other_operand():
    product = row(kind="product", other_input="levels", other_bits=5, weights=0)
    traffic = (100 * 5 + 10 * 3) * 0.3125
    assert ENERGY_MODELS["memory_aware"]([product]) == pytest.approx((100 * 2.7 + traffic) * 1e-9)


def test_a_trained_twin_costs_what_was_computed_of_the_spiking_network():
    """But for masks, which are products there, and the bits that sums happen to need."""
    size = {"dim": 16, "heads": 2, "depths": (1,), "widths": (1.0,), "stages": (1,)}
    spiking = small_model("msvit", image_size=8, timesteps=4, dim=16, heads=2, depths=(1,),
                          widths=(1.0,), stages=(1,))  # fmt: skip
    fire(spiking)
    computed = quantised_twin(measure(spiking, [small_input(spiking, 2, torch.float32)]).operations)
    model = tiny_twin("msvit", "quantised", **size)
    rows = measure(model, [small_input(model, 2, torch.float32)]).operations
    assert twin(rows) is None  # it has none: it is one
    assert quantised_twin(rows) == pytest.approx(computed, rel=0.05)


# The table


@pytest.fixture(scope="module")
def beside(tmp_path_factory) -> Results:
    """Spikes at half and a tenth of what their twins cost, three seeds."""
    results = Results(tmp_path_factory.mktemp("twins"), "twins", ())
    structure = {"name": "msvit", "scales": [1, 3]}
    every_model = {"neuron": "lif", "tau": 2.0}
    for label, model, accuracies, energies, timesteps in (
        ("msvit", structure | every_model, (0.97, 0.98, 0.96), (1.0, 1.1, 0.9), 4),
        ("two steps", structure | every_model, (0.95, 0.96, 0.94), (0.5, 0.5, 0.5), 2),
        ("quantised", structure | {"twin": "quantised"}, (0.98, 0.99, 0.97), (2.0, 2.0, 2.0), 1),
        ("ann", structure | {"twin": "ann"}, (0.98, 0.985, 0.975), (10.0, 10.0, 10.0), 1),
        ("other", {"name": "msvit", "scales": [1], "twin": "ann"}, (0.9,) * 3, (9.0,) * 3, 1),
        ("vit", {"name": "vit"}, (0.9, 0.91, 0.92), (20.0, 20.0, 20.0), 1),
    ):
        for seed, (accuracy, energy) in enumerate(zip(accuracies, energies, strict=True)):
            cell = make_cell(model, seed, timesteps=timesteps)
            record = make_record(cell, accuracy, energy * 1e-3)
            if timesteps == 1:
                record |= {"firing": [], "firing_rate": 0.0}
            for operations in record["operations"]:
                operations |= {"steps": timesteps, "synapses": 1.0, "synops": 1.0, "inputs": 1.0}
                operations |= {"active_inputs": 1.0, "input_peak": 1.0, "outputs": 1.0}
                operations |= {"additions": 0.0, "weights": 1, "biases": 0, "fan_out": 1}
                operations |= {"active_synops": 1.0, "zero_weights": 0}
            results.add(label, cell, record)
    return results


def test_configurations_stand_beside_their_own_twins(beside):
    assert pairs(beside.study()) == [
        ("msvit", "quantised"),
        ("msvit", "ann"),
        ("msvit", "vit"),
        ("two steps", "ann"),
        ("two steps", "vit"),
    ]


def silent(cell, accuracy=0.9, **changes):
    return make_record(cell, accuracy, 1e-3, firing=[], firing_rate=0.0, **changes)


def test_a_twin_is_trained_as_its_network_where_one_is(tmp_path):
    results = Results(tmp_path, "rates", ("training.lr",))
    spiking, quantised = {"name": "msvit"}, {"name": "msvit", "twin": "quantised"}
    for lr in (1e-3, 1e-2):
        results.add_seeds(f"spikes {lr}", spiking, [0.9], [1.0], lr=lr)
        cell = make_cell(quantised, 0, timesteps=1, lr=lr)
        results.add(f"quantised {lr}", cell, silent(cell))
        # Never as they are, but one is nearer
        cell = make_cell({"name": "vit"}, 0, timesteps=1, lr=lr, epochs=9)
        results.add(f"vit {lr}", cell, silent(cell))
    cell = make_cell({"name": "msvit", "twin": "ann"}, 0, timesteps=1, lr=0.5)  # the only one
    results.add("ann", cell, silent(cell))
    assert pairs(results.study()) == [
        (f"spikes {lr}", other)
        for lr in (0.001, 0.01)
        for other in (f"quantised {lr}", f"vit {lr}", "ann")
    ]


def test_a_twin_has_seen_the_same_images(tmp_path):
    results = Results(tmp_path, "few", ("data.train_per_class",))
    for few in (None, 5):
        for name, model, timesteps in (
            ("spikes", {"name": "msvit"}, 4),
            ("ann", {"name": "msvit", "twin": "ann"}, 1),
            ("vit", {"name": "vit"}, 1),
        ):
            cell = make_cell(model, 0, timesteps=timesteps)
            cell = replace(cell, data={**cell.data, "train_per_class": few})
            record = silent(cell) if timesteps == 1 else make_record(cell, 0.9, 1e-3)
            results.add(f"{name} {few}", cell, record)
    assert pairs(results.study()) == [
        (f"spikes {few}", f"{other} {few}") for few in (None, 5) for other in ("ann", "vit")
    ]


def test_a_ratio_is_paired_by_seed(beside):
    found = energy_ratio(beside.study(), "energy_mj", "msvit", "quantised")
    logs = np.log([0.5, 0.55, 0.45])
    assert found["ratio"] == pytest.approx(np.exp(logs.mean()))
    half = 4.302653 * logs.std(ddof=1) / 3**0.5  # Student's t of two degrees of freedom
    assert found["low"] == pytest.approx(np.exp(logs.mean() - half))
    assert found["high"] == pytest.approx(np.exp(logs.mean() + half))
    assert found["seeds"] == 3
    constant = energy_ratio(beside.study(), "energy_mj", "two steps", "vit")
    assert constant["low"] == constant["high"] == pytest.approx(0.025)


def test_the_table_of_twins_tells_accuracy_and_energy_by_several_models(beside):
    table = twin_table(beside.study())
    assert set(table.numbers["energy_model"]) == {
        *("sop_spikformer", "exact_synops", "memory_aware", "lemaire")
    }
    text = markdown(table)
    (line,) = [ln for ln in text.splitlines() if ln.startswith("| msvit") and "quantised" in ln]
    fields = [field.strip() for field in line.strip("|").split("|")]
    assert fields[2].startswith("−1.00")
    assert fields[3] == "sop_spikformer"
    assert fields[6].startswith("**0.50** [0.")
    assert fields[7] == "3"
    assert len(table.rows) == 5 * 4
    bold = [bool(entry.rank) for entry in table.columns["ratio"]]
    apart = [row.low > 1 or row.high < 1 for row in table.numbers.itertuples()]
    assert bold == apart
    assert {*apart} == {True, False}


def test_twins_stand_below_their_spiking_network_under_the_models_of_their_table(beside):
    panels = [axes for axes in FIGURES["layers"](beside.study(), USUAL).axes if axes.patches]
    assert [label.get_text() for label in panels[0].get_yticklabels()] == [
        *("msvit", "quantised", "ann", "vit", "two steps", "other")
    ]
    told = " ".join(axes.get_xlabel() for axes in panels)
    models = ("sop_spikformer", "exact_synops", "memory_aware", "lemaire")
    assert len(panels) == 4
    assert all(model in told for model in models)


def test_a_study_without_twins_has_no_such_table(tmp_path):
    results = Results(tmp_path)
    results.add_seeds("vit", {"name": "vit"}, [0.9], [1.0])
    assert twin_table(results.study()) is None
