"""Cells: one id per meaning, every default written out, errors that name the key."""

import hashlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msvit.cells import Cell, resolve_cell
from msvit.options import ConfigError
from msvit.recipes import load_recipe
from msvit.yaml_files import parse_yaml, write_yaml


def raw(model=(), data=(), training=(), **rest):
    return {
        "model": {"name": "msvit", "dim": 48, "heads": 4, **dict(model)},
        "data": {"name": "digits", **dict(data)},
        "training": dict(training),
        **rest,
    }


def test_the_id_is_the_hash_of_the_canonical_text():
    cell = Cell({"name": "m", "scales": [1, 3]}, {"name": "d"}, {"lr": 0.001}, 7)
    text = (
        '{"data":{"name":"d"},"model":{"name":"m","scales":[1,3]},'
        '"schema":1,"seed":7,"training":{"lr":0.001}}'
    )
    assert cell.id == hashlib.sha256(text.encode()).hexdigest()[:12]


@settings(deadline=None)  # the first one reads the zoo
@given(st.permutations(["dim", "heads", "timesteps", "tau"]), st.permutations(["lr", "epochs"]))
def test_the_order_of_keys_does_not_matter(model_keys, training_keys):
    model = {"dim": 48, "heads": 4, "timesteps": 2, "tau": 2.5}
    training = {"lr": 0.01, "epochs": 3}
    shuffled = raw({k: model[k] for k in model_keys}, (), {k: training[k] for k in training_keys})
    assert resolve_cell(shuffled, "t").id == resolve_cell(raw(model, (), training), "t").id


@pytest.mark.parametrize(
    "other",
    [
        raw({"scales": [1]}),
        raw(data={"image_size": 32}),
        raw(training={"lr": 0.5}),
        raw(seed=1),
    ],
    ids=["model", "data", "training", "seed"],
)
def test_every_part_counts_for_the_id(other):
    assert resolve_cell(other, "t").id != resolve_cell(raw(), "t").id


def test_a_default_written_out_is_the_same_cell():
    cell = resolve_cell(raw(), "t")
    assert resolve_cell(raw({"tau": cell.model["tau"]}, seed=0), "t").id == cell.id
    assert resolve_cell(cell.as_dict(), "t") == cell


def test_a_cell_survives_json():
    cell = resolve_cell(raw(seed=3), "t")
    again = Cell.from_dict(json.loads(json.dumps(cell.as_dict())))
    assert again == cell
    assert again.id == cell.id


def test_options_that_came_and_went_leave_ids_as_they_were():
    cell = resolve_cell(
        {
            "model": {"name": "spikformer", "dim": 16, "heads": 2, "depths": [1], "timesteps": 2},
            "data": {"name": "digits", "image_size": 8, "train_per_class": 13},
            "training": {"epochs": 2, "batch_size": 32, "precision": "fp32"},
            "seed": 0,
        },
        "t",
    )
    assert cell.id == "3d6f459bf47f"
    old = {**cell.as_dict(), "training": {**cell.training, "compile": "default"}}
    assert Cell.from_dict(old).as_dict() == old  # a record of then is read as it is


def test_the_model_takes_its_sizes_from_the_data():
    model = resolve_cell(raw(data={"image_size": 32}), "t").model
    assert (model["image_size"], model["in_channels"], model["num_classes"]) == (32, 1, 10)
    colour = resolve_cell(raw({"num_classes": 12}, {"name": "cifar10"}), "t").model
    assert (colour["image_size"], colour["in_channels"], colour["num_classes"]) == (32, 3, 12)


def test_a_recipe_is_written_out_and_gives_way_to_what_is_set():
    training = resolve_cell(raw(training={"recipe": "digits", "lr": 0.5}), "t").training
    assert "recipe" not in training
    assert training["lr"] == 0.5
    assert training["batch_size"] == load_recipe("digits")["batch_size"]


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        (raw({"name": "msvti"}), ("t.model.name", "'msvti'", "'msvit'")),
        (raw({"scalse": [1]}), ("t.model", "scalse", "'scales'")),
        (raw({"scales": [2]}), ("t.model", "scales", "odd")),
        (raw({"dim": "48"}), ("t.model", "dim", "'48'")),
        (raw({"dim": -1}), ("t.model", "dim", "-1")),
        (raw({"num_classes": 5}), ("t.model.num_classes", "10 classes")),
        (raw({"image_size": 32}), ("t.model.image_size", "16", "32")),
        (raw({"in_channels": 3}), ("t.model.in_channels", "1", "3")),
        (raw(data={"name": "digit"}), ("t.data.name", "'digits'")),
        (raw(data={"imagesize": 8}), ("t.data", "'image_size'")),
        (raw(training={"epoch": 3}), ("t.training.epoch", "'epochs'")),
        (raw(training={"epochs": 0}), ("t.training.epochs", "0")),
        (raw(training={"compile": "default"}), ("t.training.compile", "CUDA graph")),
        (raw(training={"recipe": "digit"}), ("t.training.recipe", "'digits'")),
        (raw() | {"training": [1]}, ("t.training", "mapping")),
        (raw(seed=-1), ("t.seed", "-1")),
        (raw(seed=True), ("t.seed", "True")),
        (raw(seed=2**32), ("t.seed", "4294967296")),
        (raw(sed=1), ("t.sed", "'seed'")),
        (raw({"hard_reset": "no"}), ("t.model", "hard_reset", "true or false")),
        ({"data": {"name": "digits"}}, ("t.model.name", "needed")),
    ],
)
def test_what_cannot_be_is_named(values, parts):
    with pytest.raises(ConfigError) as caught:
        resolve_cell(values, "t")
    assert all(part in str(caught.value) for part in parts), caught.value
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("-2E5", -2e5),
        (".5e1", 5.0),
        ("[1, 3]", [1, 3]),
        ("1e", "1e"),
        ("", None),
        ("010", 10),
        ("1_000", 1000),
        ("1:30", "1:30"),
        ("2026-01-02", "2026-01-02"),
        ("no", "no"),
        ("%YAML 1.1\n---\n010", 10),
    ],
)
def test_numbers_are_read_as_people_write_them(text, value):
    parsed = parse_yaml(text, "t")
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a: 1\nb: 2\na: 3", ("line 3", "'a'", "twice")),
        ("a: [1\nb: 2", ("line 2",)),
        ("{[1]: 2}", ("one word",)),
        ("a: !!int x", ("'x'",)),
        ("[" * 1000, ("nested too deeply",)),
        ("&a [*a]", ("anchors",)),
    ],
)
def test_yaml_that_would_be_misread_is_refused(text, parts):
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "grid.yaml")
    assert all(part in str(caught.value) for part in ("grid.yaml", *parts)), caught.value


def test_what_is_written_is_read_as_it_was():
    texts = ["yes", "010", "1:30", "1e-3", "2026-01-02", "null", "", "a: b", "1_000", "=", "é"]
    value = {
        "texts": texts,
        "numbers": [10, 1e-5, 0.01, -3],
        "others": [None, True],
        "again": texts,
    }
    assert parse_yaml(write_yaml(value), "t") == value


@pytest.mark.parametrize(
    ("name", "beside", "option", "value", "meant"),
    [
        ("msvit", {"scales": [1]}, "fusion", "token_channel", {"scales": [1, 3]}),
        ("msvit", {"scales": [1, 1]}, "branch_kernel", "2d", {"scales": [3]}),
        ("msvit", {"scales": [1]}, "projections", "shared", {"scales": [3]}),
        ("msvit", {"stages": []}, "fusion", "token_channel", {"stages": [1]}),
        ("msvit", {"stages": [1, 2, 3]}, "batch_coupled", True, {"stages": [1]}),
        ("maxformer", {"mixers": ["identity"] * 3}, "attn_threshold", 1.0, {}),
        ("spikformer", {"depths": [1]}, "drop_path", 0.1, {"depths": [2]}),
        ("spikformer", {"timesteps": 1}, "hard_reset", False, {"timesteps": 2}),
        ("spikformer", {"timesteps": 1}, "detach_reset", False, {}),
        ("spikformer", {"timesteps": 1, "neuron": "clif"}, "tau", 3.0, {"timesteps": 1}),
        (
            *("qkformer", {"timesteps": 1, "heads": 4}, "hard_reset", False),
            {"timesteps": 1, "heads": 4, "batch_coupled": True},
        ),
        ("sdt", {}, "heads", 7, {"attn_pool": True, "dim": 56}),
        ("training", {"schedule": "constant"}, "min_lr", 0.0, {}),
        ("training", {"warmup_epochs": 0}, "warmup_lr", 0.0, {}),
    ],
)
def test_an_option_without_effect_is_not_set(name, beside, option, value, meant):
    def cell(**options):
        if name == "training":
            return resolve_cell(raw(training=options), "t")
        own = {"name": name, "dim": 48} | options
        return resolve_cell({"model": own, "data": {"name": "digits"}}, "t")

    with pytest.raises(ConfigError, match=rf"\.{option}: "):
        cell(**beside, **{option: value})
    plain = cell(**beside)
    section = plain.training if name == "training" else plain.model
    assert cell(**beside, **{option: section[option]}).id == plain.id
    assert cell(**meant, **{option: value}).id != cell(**meant).id


@pytest.mark.parametrize(
    ("name", "said", "plainly", "other"),
    [
        ("msvit", {"stages": [2, 1, 1]}, {}, {"stages": [1]}),
        ("msvit", {"stages": [], "scales": [1, 5]}, {"stages": []}, {"stages": [], "scales": [3]}),
        (
            *("msvit", {"stages": [], "scales": [3, 5]}, {"stages": [], "scales": [3]}),
            {"stages": [1], "scales": [3]},
        ),
        ("msvit", {"surrogate_alpha": 4.0}, {}, {"surrogate_alpha": 2.0}),
        (
            *("msvit", {"surrogate": "atan", "surrogate_alpha": 2.0}, {"surrogate": "atan"}),
            {"surrogate": "atan", "surrogate_alpha": 4.0},
        ),
        ("metaspikeformer", {"last_dim": 60}, {}, {"last_dim": 72}),
        ("training", {"weight_decay": -0.0}, {"weight_decay": 0.0}, {"weight_decay": 0.1}),
        ("training", {"mixup": -0.0}, {}, {"mixup": 0.5}),
    ],
)
def test_what_can_be_said_in_several_ways_is_one_cell(name, said, plainly, other):
    def cell(options):
        if name == "training":
            return resolve_cell(raw(training=options), "t")
        own = {"name": name, "dim": 48, "heads": 4 if name == "msvit" else 6} | options
        return resolve_cell({"model": own, "data": {"name": "digits"}}, "t")

    assert cell(said) == cell(plainly)
    assert cell(said).id == cell(plainly).id
    assert cell(other).id != cell(plainly).id
    assert resolve_cell(cell(said).as_dict(), "t").id == cell(said).id


def test_what_a_recipe_says_in_vain_makes_no_other_cell(monkeypatch):
    recipe = {"min_lr": 1e-6, "epochs": 3}
    monkeypatch.setattr("msvit.cells.load_recipe", lambda name: recipe)
    given = raw(training={"recipe": "digits", "schedule": "constant"})
    assert resolve_cell(given, "t") == resolve_cell(
        raw(training={"epochs": 3, "schedule": "constant"}), "t"
    )


def test_cells_of_earlier_versions_keep_their_ids():
    assert resolve_cell(raw(), "t").id == "6915033af086"
    assert resolve_cell(raw({"neuron": "plif", "tau": 3.0}), "t").id == "b833c9e37ded"
