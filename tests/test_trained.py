"""The network that a cell leaves: loaded by its id or folder, it computes what was measured."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import msvit
from msvit.cells import resolve_cell
from msvit.checkpoints import CheckpointError
from msvit.data import data_options, load_splits
from msvit.metrics import measure
from msvit.records.energy import sop_spikformer
from msvit.records.store import cell_folder, write_record
from msvit.training import train_cell
from msvit.training.trained import Prepare, save_trained
from tests.test_training import tiny_cell

CELL = tiny_cell(precision="fp32")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A results folder with one cell, and its record."""
    results = tmp_path_factory.mktemp("results")
    record = train_cell(CELL, cell_folder(results, CELL.id))
    write_record(results, record)
    return results, record


@pytest.fixture
def results(finished, tmp_path):
    """A copy that a test may spoil."""
    shutil.copytree(finished[0], tmp_path / "results")
    return tmp_path / "results"


@pytest.fixture(scope="module")
def test_images():
    return load_splits(data_options("digits", {"image_size": 8}, "test")).test


@pytest.mark.parametrize("kept", ["weights", "checkpoint", "file alone"])
def test_a_trained_model_scores_what_its_record_says(kept, finished, results, test_images):
    _, record = finished
    folder = cell_folder(results, CELL.id)
    if kept == "checkpoint":  # as a cell of an earlier version
        (folder / "weights.safetensors").unlink()
        model = msvit.load_trained(results, CELL.id)
    elif kept == "weights":
        (folder / "checkpoint.pt").unlink()
        model = msvit.load_trained(str(folder))
    else:
        shutil.move(folder / "weights.safetensors", results / "sent.safetensors")
        model = msvit.load_trained(results / "sent.safetensors")
    assert not model.training
    images = model.prepare(test_images.images)
    with torch.no_grad():
        hits = (model(images).mean(0).argmax(-1) == test_images.labels).sum()
    assert int(hits) == round(record["test"]["accuracy"] * len(test_images))
    energy = measure(model, [images]).energy_mj["sop_spikformer"]
    assert energy == pytest.approx(sop_spikformer(record["operations"]))


def test_the_weights_stand_there_before_the_record_and_say_what_they_are(finished):
    results, record = finished
    folder = cell_folder(results, CELL.id)
    weights = folder / "weights.safetensors"
    assert weights.stat().st_mtime_ns <= (folder / "record.json").stat().st_mtime_ns
    with safe_open(weights, "pt") as file:
        facts = file.metadata()
    assert facts["cell"] == record["id"]
    assert facts["architecture"] == "msvit"
    assert facts["commit"] == (record["environment"]["commit"] or "")
    assert json.loads(facts["configuration"])["model"] == record["cell"]["model"]
    assert {path.name for path in folder.iterdir()} == {
        "checkpoint.pt", "record.json", "weights.safetensors"
    }  # fmt: skip


def test_the_weights_load_into_a_model_made_by_hand(finished):
    results, _ = finished
    model = msvit.create_model(**CELL.model)
    report = msvit.load_official(model, cell_folder(results, CELL.id) / "weights.safetensors")
    trained = msvit.load_trained(results, CELL.id)
    assert report.loaded == len(model.state_dict())
    for name, tensor in trained.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    report = msvit.load_official(model, cell_folder(results, CELL.id) / "checkpoint.pt")
    assert report.taken.endswith("checkpoint.pt (best)")


def test_what_is_not_kept_is_said(results):
    folder = cell_folder(results, CELL.id)

    def told(what, *where):
        with pytest.raises(CheckpointError, match=what):
            msvit.load_trained(*where)

    told("no such cell", results, "0" * 12)
    told(rf"weights\.safetensors or the folder .*{folder}", folder / "checkpoint.pt")
    weights = folder / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    told(r"weights\.safetensors: not a file of safetensors", folder)
    weights.unlink()
    (folder / "checkpoint.pt").rename(folder / "gone")
    told(r"neither weights\.safetensors nor checkpoint\.pt.*run the cell again", folder)
    torch.save({"cell": "another", "best": {}}, folder / "checkpoint.pt")
    told(f"not the checkpoint of cell {CELL.id}", folder)
    (folder / "record.json").unlink()
    told("not trained to its end", results, CELL.id)


def test_weights_that_are_no_numbers_are_not_used(results):
    file = cell_folder(results, CELL.id) / "checkpoint.pt"
    file.with_name("weights.safetensors").unlink()
    state = torch.load(file, weights_only=True)
    state["best"]["head.linear.bias"][0] = float("inf")
    torch.save(state, file)
    with pytest.raises(CheckpointError, match=r"the norm of head\.linear\.bias is inf"):
        msvit.load_trained(results, CELL.id)


def test_images_of_any_kind_become_the_same_input():
    grey = Prepare(channels=1, size=8, mean=(0.5,), std=(0.25,))
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    expected = ((torch.from_numpy(pixels).float() / 255 - 0.5) / 0.25)[None, None]
    image = Image.fromarray(pixels)
    tensor = torch.from_numpy(pixels)[None]
    for given in (pixels, pixels[..., None], image, image.convert("RGBA"), tensor, tensor[None]):
        assert torch.allclose(grey(given), expected, atol=1e-6)
    assert torch.allclose(grey([image, pixels]), torch.cat([expected, expected]), atol=1e-6)
    colours = Prepare(channels=3, size=8, mean=(0.5,) * 3, std=(0.25,) * 3)
    assert torch.allclose(colours(image), expected.expand(1, 3, 8, 8), atol=1e-6)
    rgb = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert torch.equal(colours(rgb), colours(torch.from_numpy(rgb).permute(2, 0, 1)))


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (torch.zeros(1, 8, 8), "bytes"),
        (np.zeros((8, 8)), "bytes"),
        (Image.new("I;16", (8, 8)), "8 bits"),
        (Image.new("F", (8, 8)), "8 bits"),
        (Image.new("L", (9, 8)), r"\(1, 8, 8\), not of \(1, 8, 9\)"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), r"not of \(3, 8, 8\)"),
        (torch.zeros(8, 8, dtype=torch.uint8), r"not of \(8, 8\)"),
        (Image.new("RGBA", (8, 8), (0, 0, 0, 254)), "seen through"),
        (Image.new("LA", (8, 8)), "seen through"),
        (np.zeros((8, 8, 4), np.uint8), "seen through"),
        (np.zeros((1, 8, 8), np.uint8), r"\[H, W\].* not of \(1, 8, 8\)"),
        (np.zeros((2, 8, 8, 1), np.uint8), r"not of \(2, 8, 8, 1\)"),
        (np.zeros(8, np.uint8), r"not of \(8,\)"),
        (np.zeros((8, 8, 5), np.uint8), r"not of \(8, 8, 5\)"),
        ([], "the list is empty"),
    ],
)
def test_images_that_the_model_does_not_know_are_refused(image, said):
    with pytest.raises(ValueError, match=said):
        Prepare(channels=1, size=8, mean=(0.5,), std=(0.25,))(image)


def test_options_that_an_earlier_version_has_recorded_for_nothing_are_no_obstacle(tmp_path):
    cell = resolve_cell(
        {
            "model": {"name": "msvit", "neuron": "psn", "dim": 16, "heads": 2},
            "data": {"name": "digits", "image_size": 8},
        },
        "test",
    )
    then = replace(cell, model={**cell.model, "tau": 2.0, "threshold": 1.0, "detach_reset": True})
    weights = msvit.create_model(**cell.model).state_dict()
    save_trained(tmp_path, then, weights, (0.5,), (0.5,), None)
    model = msvit.load_trained(tmp_path)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in weights.items())
