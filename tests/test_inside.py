"""A look inside: it reads what the network computes, and tells what is known to be there."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from analysis.drawn import Drawn
from analysis.inside import main
from analysis.look.making import Wanted, look_inside
from analysis.look.scales import weight_of_scales
from analysis.look.words import sentences
from analysis.page.study import study_part
from msvit.data.splits import Images
from msvit.inside import VoteWatch, look_at, survey, voting_layers
from msvit.inside.spikes import SpikeWatch
from msvit.kernels import NeuronSpec
from msvit.layers.attention import TokenAttention
from msvit.layers.blocks import as_sequence
from msvit.layers.norm import BatchNorm
from msvit.metrics import measure
from msvit.options import ConfigError
from msvit.precision import choose_precision
from msvit.records.store import cell_folder
from msvit.training import train_cell
from msvit.training.batches import Normalise
from msvit.training.kept import KeptCell
from msvit.training.loading import Loader
from tests.results_folder import Results
from tests.small import fire, small_input, small_model
from tests.test_training import tiny_cell

CPU = torch.device("cpu")


# What is read


def small(name="msvit", **options):
    model = small_model(name, **options).float()
    fire(model)
    return model, small_input(model, 3, torch.float32)


def by_hand(attention, x, heads):
    """Scores of every branch, from its own projection and neuron, and the mask of their sum."""
    joined, wide = attention.branches(x)
    single = list(joined.chunk(joined.shape[-1] // attention.dim, -1))[:-1]
    in_order = [
        (single if n in attention.branches.points else wide).pop(0) for n in attention.names
    ]
    scores = [spikes.reshape(*spikes.shape[:-1], heads, -1).sum(-1) for spikes in in_order]
    return torch.stack(scores), lif(sum(scores), attention.attn_neuron.spec.threshold)


def lif(current, threshold, tau=2.0):
    """The equation of the paper: leak towards the input, spike, reset to 0."""
    potential, spikes = torch.zeros_like(current[0]), []
    for step in current:
        potential = potential + (step - potential) / tau
        spikes.append((potential >= threshold).float())
        potential = potential * (1 - spikes[-1])
    return torch.stack(spikes)


@pytest.mark.parametrize("kernels", ["", "off"])
@pytest.mark.parametrize(
    "options", [{}, {"projections": "shared"}, {"scales": (3, 1, 3), "branch_kernel": "2d"}]
)
def test_scores_and_masks_are_those_of_the_layer_computed_by_hand(kernels, options, monkeypatch):
    monkeypatch.setenv("MSVIT_KERNELS", kernels)
    model, images = small(**{"scales": (1, 3, 5), **options})
    given = {}
    attentions = {path: model.get_submodule(path) for path in voting_layers(model)}
    assert len(attentions) == 2
    for path, attention in attentions.items():
        attention.register_forward_pre_hook(
            lambda module, inputs, path=path: given.__setitem__(path, inputs[0])
        )
    with torch.no_grad(), VoteWatch(model) as watch:
        model(images)
        for path, attention in attentions.items():
            scores, mask = by_hand(attention, given[path], 4)
            votes = watch.seen[path]
            assert votes.branches == attention.names
            assert votes.scores.squeeze(-1).equal(scores)
            assert votes.mask.squeeze(-1).equal(mask)
            threshold = attention.attn_neuron.spec.threshold
            for i in range(3):
                assert votes.alone[i].squeeze(-1).equal(lif(scores[i], threshold) > 0)
                rest = lif(scores.sum(0) - scores[i], threshold) > 0
                assert votes.without[i].squeeze(-1).equal(rest)
            assert 0 < mask.mean() < 1


def test_votes_of_channels_stay_apart_where_the_network_keeps_them_apart():
    model, images = small(fusion="token_channel", scales=(1, 3))
    with torch.no_grad(), VoteWatch(model) as watch:
        model(images)
    votes = next(iter(watch.seen.values()))
    summed, single = votes.scores  # [T, B, H, W, heads, d]
    assert summed.shape[-1] == 4
    assert torch.equal(summed[..., :1].expand_as(summed), summed)
    assert summed.max() > 1  # spikes of four channels
    assert single.max() == 1
    assert votes.mask.equal(lif(votes.total, 1.0))


@pytest.mark.parametrize("kernels", ["", "off"])
def test_looking_changes_no_output(kernels, monkeypatch):
    monkeypatch.setenv("MSVIT_KERNELS", kernels)
    model, images = small(scales=(1, 3, 5))
    with torch.no_grad():
        before = model(images)
        with VoteWatch(model), SpikeWatch(model, 8) as spikes:
            spikes.places = [0, 2]
            during = model(images)
        after = model(images)
    assert before.abs().sum() > 0
    assert during.equal(before)
    assert after.equal(before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("name", "options"),
    [("msvit", {}), ("qkformer", {"batch_coupled": True}), ("spikformer", {}), ("sdt", {})],
)
def test_rates_of_images_are_those_that_a_record_holds(name, options):
    model, images = small(name, **options)
    rows = measure(model, [images]).firing
    with torch.no_grad(), SpikeWatch(model, 5) as watch:
        watch.places = range(3)
        model(images)
    rates = {(row["layer"], row["timestep"]): row["rate"] for row in rows}
    for layer, seen in watch.seen.items():
        mean = np.mean([image.rate for image in seen], 0)
        np.testing.assert_allclose(mean, [rates[layer, t] for t in range(4)], rtol=1e-6)
        for image in seen:
            assert (image.raster.sum(1) > 0).all()  # of those that fire
            assert len(image.raster) <= 5
    assert {layer for layer, _ in rates} == set(watch.seen)


# What it tells: a network whose scales are known to look at different tokens


class Known(nn.Module):
    """Scale 1 votes for white tokens, scale 3 for those whose right neighbour is white."""

    def __init__(self):
        super().__init__()
        spec = NeuronSpec(kind="lif", timesteps=2)
        self.attention = TokenAttention(1, 1, spec, scales=(1, 3), attn_threshold=0.5)
        for norm in (m for m in self.modules() if isinstance(m, BatchNorm)):
            norm.running_mean.zero_()
            norm.running_var.fill_(1)
        branches = self.attention.branches
        with torch.no_grad():
            branches.point.conv.weight.fill_(4)
            branches.wide["scale3"].conv.weight.copy_(
                torch.tensor([0.0, 0.0, 4.0]).view(1, 1, 1, 3)
            )

    def forward(self, x):
        out = self.attention(as_sequence(x, 2))
        return out.sum((2, 3)).expand(-1, -1, 2)


def known_cell(images, labels, batch_size=4):
    model = Known().eval()
    cell = tiny_cell()
    cell.model["num_classes"] = 2
    samples = Images(torch.from_numpy(np.stack(images)), torch.as_tensor(labels))
    normalise = Normalise((0.0,), (1.0,), CPU)
    record = {"test": {"accuracy": 0.5}}
    precision = choose_precision("fp32", CPU)
    loader = Loader(samples, batch_size, CPU)
    return KeptCell(Path("known"), record, cell, model, loader, normalise, precision)


def bar(height, column=2):
    image = np.zeros((1, 4, 4), np.uint8)
    image[0, :height, column] = 255
    return image


def test_a_survey_tells_what_scales_are_known_to_vote_for():
    labels = [0, 1] * 3
    found = survey(known_cell([bar(2 if label else 4) for label in labels], labels))
    seen = found.layers["attention"]
    tall, short = np.zeros((4, 4)), np.zeros((4, 4))
    tall[:, 2], short[:2, 2] = 1, 1
    np.testing.assert_array_equal(seen.class_maps[0], [tall, np.roll(tall, -1, 1)])
    np.testing.assert_array_equal(seen.class_maps[1], [short, np.roll(short, -1, 1)])
    np.testing.assert_array_equal(seen.class_masks[1], short + np.roll(short, -1, 1))
    np.testing.assert_allclose(seen.votes, [3 / 16, 3 / 16])
    np.testing.assert_allclose(seen.class_share, [1, 1])  # the number of votes is the class
    np.testing.assert_allclose(seen.changed, [3 / 16, 3 / 16])
    (pair,) = seen.pairs
    assert (pair.first, pair.second, pair.both) == ("scale1", "scale3", 0)
    # Two columns of a quarter or an eighth of the tokens, that never meet.
    assert pair.correlation == pytest.approx(-(1 / 3 + 1 / 7) / 2)
    np.testing.assert_allclose(pair.first_map, (tall + short) / 2)
    np.testing.assert_allclose(pair.second_map, np.roll(tall + short, -1, 1) / 2)
    np.testing.assert_allclose(pair.by_image, [1 / 2, 1 / 4] * 3)


def test_numbers_of_scales_stand_off_the_bars_and_no_axis_passes_all_of_them():
    labels = [0, 1] * 3
    cell = known_cell([bar(2 if label else 4) for label in labels], labels)
    figure = weight_of_scales(look_inside(cell, "known", Wanted()), "attention")
    figure.draw_without_rendering()
    shown = {axes.get_xlabel().partition("\n")[0]: axes for axes in figure.axes}
    explained = shown["explained"]
    assert [text.get_text() for text in explained.texts] == ["100.0", "100.0"]
    for name in ("share of", "kept if it", "changed", "explained"):
        assert shown[name].get_xlim()[1] <= 100
        inside = shown[name].get_window_extent()
        assert all(text.get_window_extent().x0 > inside.x1 for text in shown[name].texts)


def test_a_class_explains_what_chance_would_not():
    found = survey(known_cell([bar(h) for h in (1, 1, 3, 3)], [0, 1, 0, 1]))
    np.testing.assert_array_equal(found.layers["attention"].class_share, [0, 0])
    # Votes 1, 2 and 2, 4: squares sum to 4.75, to 2.5 within classes, of which chance makes 3/2.
    some = survey(known_cell([bar(h) for h in (1, 2, 2, 4)], [0, 0, 1, 1]))
    np.testing.assert_allclose(some.layers["attention"].class_share, [1 - 3.75 / 4.75] * 2)
    same = survey(known_cell([bar(2)] * 4, [0, 1, 0, 1]))
    assert np.isnan(same.layers["attention"].class_share).all()
    assert survey(known_cell([bar(2)] * 9, [0] * 9), most=3).indices.tolist() == [0, 4, 8]


def test_frames_of_events_are_looked_at_step_by_step():
    moving = np.stack([bar(4, 2), bar(4, 3)])  # [T, C, H, W]
    (image,) = look_at(known_cell([moving] * 2, [0, 1]), [1])
    assert image.label == 1
    assert image.pixels.shape == (2, 1, 4, 4)
    scores = image.votes["attention"].scores[:, :, 0]  # [S, T, H, W]
    np.testing.assert_array_equal(scores[0], moving[:, 0] / 255)
    np.testing.assert_array_equal(scores[1], np.roll(moving[:, 0], -1, -1) / 255)
    assert image.spikes["attention.attn_neuron"].rate.tolist() == [0.5, 0.5]


def test_images_are_seen_in_the_batches_of_the_test():
    cell = known_cell([bar(i % 4 + 1) for i in range(10)], [0, 1] * 5)
    sizes = []
    cell.model.register_forward_pre_hook(lambda model, inputs: sizes.append(len(inputs[0])))
    found = look_at(cell, [9, 2])
    assert sizes == [4, 2]
    assert [image.index for image in found] == [9, 2]
    assert [int(image.votes["attention"].scores[0, 0].sum()) for image in found] == [2, 3]


def test_a_twin_has_votes_that_are_values_and_no_spikes():
    model = small_model("msvit", timesteps=1, twin="ann", scales=(1, 3)).float().eval()
    images = small_input(model, 2, torch.float32)
    with torch.no_grad(), VoteWatch(model) as votes, SpikeWatch(model, 8) as spikes:
        spikes.places = [0]
        model(images)
    assert spikes.seen == {}
    first = next(iter(votes.seen.values()))
    torch.testing.assert_close(first.mask, first.total.relu())
    assert not first.scores.equal(first.scores.round())


def test_a_network_with_neither_votes_nor_neurons_is_refused():
    cell = known_cell(np.zeros((2, 1, 32, 32), np.uint8), [0, 1])
    vit = small_model("vit", in_channels=1, num_classes=2).float().eval()
    with pytest.raises(ConfigError, match="neither neurons nor token attention: nothing to look"):
        look_inside(replace(cell, model=vit), "vit")


def test_means_over_some_images_say_so():
    cell = known_cell([bar(2 if i % 2 else 4) for i in range(6)], [0, 1] * 3)
    look = look_inside(cell, "known", Wanted(most=3, classes=(1,)))
    assert [image.index for image in look.images] == [1]
    assert look.survey.indices.tolist() == [0, 2, 5]
    said = sentences(look)
    assert said[0] == "Right on 66.67% of 3 of 6 test images; the record of the cell says 50.00%."
    assert "50% are of scale 1, 50% are of scale 3" in said[1]
    assert "0% are kept by both, 50% only by scale 1, 50% only by scale 3" in said[2]


# The command


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A study of one finished cell, and its folder. Read only."""
    results = Results(tmp_path_factory.mktemp("results"), "tiny")
    cell = tiny_cell(
        precision="fp32", model={"scales": [1, 3], "depths": [1, 1, 1], "widths": [0.5, 0.5, 1.0]}
    )
    folder = cell_folder(results.folder, cell.id)
    results.add("msvit scales=1,3", cell, train_cell(cell, folder))
    return results, folder


@pytest.mark.slow
def test_a_command_draws_a_trained_cell_and_its_study_shows_it(trained, tmp_path, capsys):
    results = Results(tmp_path / "results", "tiny")
    shutil.copytree(trained[0].folder, results.folder)
    folder = cell_folder(results.folder, trained[1].name)
    given = ["--grid", "tiny", "--results", str(results.folder), "--images", "5,0"]
    assert main([*given, "--layer", "stage 1"]) == 0
    said = capsys.readouterr().out
    assert "msvit scales=1,3 seed 0\n" in said
    assert "as the record of the cell says." in said
    assert "% are of scale 1, " in said
    told = json.loads((folder / "inside" / "inside.json").read_text(encoding="utf-8"))
    names = [figure["name"].partition("_")[2] for figure in told["figures"]]
    kinds = ("votes", "classes", "scales", "pairs", "differing")
    assert names == [*(f"{kind}_stage-1" for kind in kinds), "spikes_5", "spikes_0"]
    for figure in told["figures"]:
        assert (folder / "inside" / f"{figure['name']}.png").stat().st_size > 5000
        assert (folder / "inside" / f"{figure['name']}.pdf").is_file()
    votes = pd.read_parquet(folder / "inside" / "frames" / "votes.parquet")
    assert set(votes["map"]) == {"scale1", "scale3", "mask"}
    assert set(votes["image"]) == {0, 5}
    firing = pd.read_parquet(folder / "inside" / "frames" / "firing.parquet")
    mask = votes[(votes["map"] == "mask") & (votes["image"] == 5)]["value"].mean()
    own = firing["layer"].str.contains("stages.0.*attn_neuron") & (firing["image"] == 5)
    assert firing[own]["rate"].mean() == pytest.approx(mask)
    part = study_part(Drawn(results.study()))
    (inside,) = part.insides
    assert inside.said == tuple(told["said"])
    assert [p.title for p in inside.pictures][:1] == [
        "what stage 1, multi-scale attention votes for"
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--layer", "stages.0.0.atention"], "did you mean 'stages.0.0.attention'?"),
        (["--images", "0,999"], "--images 999: there are 340 test images, 0 to 339"),
        (["--classes", "10"], "--classes 10: there are 10 classes, 0 to 9"),
    ],
)
def test_what_there_is_not_is_said_in_one_line(trained, given, message, capsys):
    assert main([str(trained[1]), *given]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (trained[1] / "inside").exists()


@pytest.mark.slow
def test_without_weights_or_a_record_nothing_can_be_looked_at(trained, tmp_path, capsys):
    folder = tmp_path / "cells" / trained[1].name
    shutil.copytree(trained[1], folder)
    (folder / "weights.safetensors").unlink()
    (folder / "checkpoint.pt").unlink()
    assert main([str(folder)]) == 2
    assert "no weights are kept" in capsys.readouterr().err
    (folder / "record.json").unlink()
    assert main([str(folder)]) == 2
    assert f"{folder}: no finished cell" in capsys.readouterr().err


def test_the_command_needs_one_cell_and_one_choice_of_images(capsys):
    for given, message in (
        ([], "which cell? its folder, or --grid NAME of a study"),
        (["a", "--grid", "b"], "CELL and --grid both choose cells: give one of them"),
        (["a", "--images", "1", "--classes", "1"], "give one of them"),
        (["a", "--images", "1;2"], "whole numbers with commas are needed (got '1;2')"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(given)
        assert ended.value.code == 2
        assert message in capsys.readouterr().err
