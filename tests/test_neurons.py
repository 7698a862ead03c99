"""Neurons by name: what each kind reads, and what the record says of who computed it."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from msvit import kernels
from msvit.cells import resolve_cell
from msvit.kernels import NeuronSpec
from msvit.kernels.cpu import build
from msvit.models.options import SpikingOptions
from msvit.neuron_kinds import OPTIONS_READ, PER_TIMESTEP, SURROGATES, NeuronName, across_steps
from msvit.neurons import NEURONS, Neuron
from msvit.options import ConfigError
from msvit.training import train_cell
from tests.small import small_model

OTHER = {  # than the default
    "tau": 3.0,
    "threshold": 0.7,
    "surrogate": "atan",
    "surrogate_alpha": 1.3,
    "hard_reset": False,
    "detach_reset": False,
}


def outcome(spec: NeuronSpec) -> list[Tensor]:
    """Spikes and gradients of a fresh neuron for a fixed current."""
    torch.manual_seed(0)
    neuron = Neuron(spec)
    current = (2 * torch.randn(spec.timesteps, 3, 2, 2, 8)).requires_grad_()
    spikes = neuron(current)
    spikes.backward(torch.randn(spikes.shape))
    return [spikes.detach(), current.grad, *(p.grad for p in neuron.parameters())]


@pytest.mark.parametrize("timesteps", [4, 1])
@pytest.mark.parametrize("kind", get_args(NeuronName))
def test_a_neuron_reads_the_options_of_its_kind_and_no_others(kind, timesteps):
    expected = outcome(NeuronSpec(kind, timesteps=timesteps))
    read = set()
    for option, value in OTHER.items():
        found = outcome(NeuronSpec(kind, timesteps=timesteps, **{option: value}))
        pairs = zip(found, expected, strict=True)
        if not all(torch.equal(ours, theirs) for ours, theirs in pairs):
            read.add(option)
    idle = across_steps(kind) if timesteps == 1 else ()
    assert read == set(OPTIONS_READ[kind]) - set(idle)


def spiking_cell(**model):
    raw = {"model": {"name": "msvit", **model}, "data": {"name": "digits"}, "seed": 0}
    return resolve_cell(raw, "test")


@pytest.mark.parametrize("kind", get_args(NeuronName))
def test_a_cell_has_the_options_of_its_neuron_and_takes_no_others(kind):
    has = set(OPTIONS_READ[kind]) | ({"attn_threshold"} & {f"attn_{o}" for o in OPTIONS_READ[kind]})
    cell = spiking_cell(neuron=kind)
    assert has == (set(OTHER) | {"attn_threshold"}) & set(cell.model)
    assert resolve_cell(cell.as_dict(), "test") == cell
    for option, value in {**OTHER, "attn_threshold": 0.7}.items():
        if option in has:
            assert spiking_cell(neuron=kind, **{option: value}).model[option] == value
        else:
            for given in (value, spiking_cell().model[option]):  # the default as well
                said = rf"model \(msvit\)\.{option}: the neuron '{kind}' has no.*{sorted(has)[-1]}"
                with pytest.raises(ConfigError, match=said):
                    spiking_cell(neuron=kind, **{option: given})


@pytest.mark.parametrize("kind", PER_TIMESTEP)
def test_a_neuron_with_parameters_per_time_step_takes_no_other_number_of_them(kind):
    neuron = Neuron(NeuronSpec(kind, timesteps=3))
    for steps in (2, 5):
        with pytest.raises(ValueError, match=f"'{kind}' neuron of 3 time steps .* given {steps}"):
            neuron(torch.randn(steps, 2, 2, 2, 4))
    with pytest.raises(ConfigError, match=f"batch_coupled: a '{kind}' has parameters for 4 time"):
        spiking_cell(neuron=kind, batch_coupled=True)


def test_a_glif_keeps_its_threshold_where_it_was_asked_to():
    for option in ("threshold", "attn_threshold"):
        with pytest.raises(ConfigError, match=f"{option}: that of a 'glif' is at most 1"):
            spiking_cell(neuron="glif", **{option: 2.0})
    with pytest.raises(ValueError, match="threshold 2"):
        NeuronSpec("glif", threshold=2.0)


def test_every_name_has_its_neuron_and_every_option_its_field():
    assert set(NEURONS) == set(OPTIONS_READ) == set(get_args(NeuronName))
    assert set().union(*OPTIONS_READ.values()) == set(OTHER) <= set(SpikingOptions.model_fields)
    assert [NeuronSpec(surrogate=name).surrogate for name in SURROGATES] == list(SURROGATES)


@pytest.mark.parametrize("wrong", [{"kind": "lifs"}, {"surrogate": "step"}, {"tau": 0.5}])
def test_a_spec_says_what_is_wrong_with_it(wrong):
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        NeuronSpec(**wrong)


needs_compiler = pytest.mark.skipif(
    build.compiler() is None, reason="this machine has no C++ compiler"
)


@needs_compiler
def test_the_words_for_what_computes_the_neurons_of_a_model(monkeypatch):
    cpu, mixed = torch.device("cpu"), nn.ModuleList(Neuron(NeuronSpec(k)) for k in ("lif", "psn"))

    def said(model: nn.Module, dtype: torch.dtype = torch.float32) -> str:
        return kernels.describe(model, cpu, dtype)

    assert said(small_model("msvit")) == "fused"
    assert said(small_model("msvit", neuron="psn")) == "plain neurons"
    assert said(mixed) == "mixed neurons"
    assert said(small_model("vit", timesteps=1)) == "none"
    assert said(small_model("msvit"), torch.float16) == "plain"
    monkeypatch.setenv("MSVIT_KERNELS", "off")
    assert said(small_model("msvit")) == said(mixed) == "plain"
    assert said(small_model("vit", timesteps=1)) == "none"


@needs_compiler
@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"name": "spikformer", "neuron": "lif", "timesteps": 2}, "fused"),
        ({"name": "spikformer", "neuron": "psn", "timesteps": 2}, "plain neurons"),
        ({"name": "vit", "patch_size": 4}, "none"),
    ],
)
def test_the_record_says_what_computed_the_neurons(model, words, tmp_path):
    cell = resolve_cell(
        {
            "model": {"dim": 16, "heads": 2, "depths": [1], **model},
            "data": {"name": "digits", "image_size": 8, "train_per_class": 4},
            "training": {"epochs": 1, "batch_size": 32, "precision": "fp32"},
            "seed": 0,
        },
        "test",
    )
    assert train_cell(cell, tmp_path)["kernels"] == words
