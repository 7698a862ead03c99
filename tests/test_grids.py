"""Grid files: what they expand to, and what is said of a wrong one before anything starts."""

import textwrap

import pytest

from msvit.options import ConfigError
from studies.grids import list_grids, load_study
from studies.resources import notes_on_workers

BASE = """
    question: Which?
    base:
      model: {name: msvit, dim: 48, depths: [1, 1, 1], heads: 4, timesteps: 2}
      data: {name: digits}
      training: {epochs: 3}
"""


@pytest.fixture
def grid(tmp_path):
    """Writes a grid file and returns its path."""

    def write(more="", base=BASE, name="mine.yaml"):
        path = tmp_path / name
        path.write_text(textwrap.dedent(base) + textwrap.dedent(more))
        return str(path)

    return write


def groups(study):
    return list(dict.fromkeys(entry.group for entry in study.cells))


def test_every_grid_of_the_harness_can_be_run():
    assert {"scales", "timesteps"} <= set(list_grids())
    for name in list_grids():
        study = load_study(name)
        assert len({entry.cell.id for entry in study.cells}) == len(study.cells)
        # A recipe may train other models than its own beside them.
        assert [note for note in study.notes if not note.startswith("recipe ")] == []


def test_scales_compares_four_scale_counts_and_two_baselines():
    study = load_study("scales")
    assert groups(study) == [
        "msvit scales=1",
        "msvit scales=1,3",
        "msvit scales=1,3,5",
        "msvit scales=1,3,5,7",
        "spikformer",
        "qkformer",
    ]
    assert [entry.cell.seed for entry in study.cells] == [0, 1, 2] * 6
    for key in ("dim", "timesteps", "image_size", "neuron", "heads"):
        assert len({entry.cell.model[key] for entry in study.cells}) == 1
    assert len({str(entry.cell.training) for entry in study.cells}) == 1


def test_the_grids_of_the_harness_share_cells():
    scales, timesteps, deltas = (
        {entry.cell.id for entry in load_study(name).cells}
        for name in ("scales", "timesteps", "deltas")
    )
    assert len(scales & timesteps) == 3
    assert len(scales & deltas) == 6


def test_the_manifest_lists_the_cells_in_grid_order():
    study = load_study("timesteps", seeds=2)
    manifest = study.manifest()
    assert manifest["grid_file"] == "studies/grids/timesteps.yaml"
    assert manifest["axes"] == ["model.timesteps"]
    assert [(c["group"], c["seed"], c["label"]) for c in manifest["cells"]][:3] == [
        ("msvit timesteps=1", 0, "msvit timesteps=1 seed 0"),
        ("msvit timesteps=1", 1, "msvit timesteps=1 seed 1"),
        ("msvit timesteps=2", 0, "msvit timesteps=2 seed 0"),
    ]
    assert [c["id"] for c in manifest["cells"]] == [entry.cell.id for entry in study.cells]


def test_axes_are_crossed_and_the_first_varies_slowest(grid):
    study = load_study(grid("axes: {model.timesteps: [1, 2], training.lr: [0.1, 1e-2]}"))
    assert groups(study) == [
        "msvit timesteps=1 lr=0.1",
        "msvit timesteps=1 lr=0.01",
        "msvit timesteps=2 lr=0.1",
        "msvit timesteps=2 lr=0.01",
    ]


def test_names_can_be_axes(grid):
    study = load_study(grid("axes: {model.name: [msvit, qkformer], data.image_size: [8, 16]}"))
    assert groups(study)[1:3] == ["msvit image_size=16", "qkformer image_size=8"]
    assert study.cells[2].cell.model["image_size"] == 8


def test_without_axes_the_base_is_a_configuration(grid):
    assert groups(load_study(grid())) == ["msvit"]
    assert groups(load_study(grid("include: [{training: {epochs: 5}}]"))) == [
        "msvit",
        "msvit epochs=5",
    ]


def test_null_is_a_value_like_others(grid):
    study = load_study(grid("axes: {training.clip_grad: [null, 1], model.tau: [3]}"))
    assert groups(study) == ["msvit clip_grad=none tau=3.0", "msvit clip_grad=1.0 tau=3.0"]


def test_another_model_inherits_what_it_has_too(grid):
    base = BASE.replace("dim: 48", "dim: 48, scales: [1, 5], tau: 3.0")
    study = load_study(grid("include: [{model: {name: spikformer, heads: 6}}]", base))
    model = study.cells[-1].cell.model
    assert (model["dim"], model["tau"], model["timesteps"], model["heads"]) == (48, 3.0, 2, 6)
    assert "scales" not in model


def test_another_neuron_inherits_what_it_has_too(grid):
    base = BASE.replace("dim: 48", "dim: 48, tau: 3.0, surrogate: atan")
    study = load_study(grid("axes: {model.neuron: [lif, psn]}", base))
    lif, psn = (entry.cell.model for entry in study.cells)
    assert (lif["tau"], lif["surrogate"], psn["surrogate"]) == (3.0, "atan", "atan")
    assert "tau" not in psn
    assert study.notes == ()
    again = load_study(grid(base=base), ["model.neuron=psn"])
    assert again.cells[0].cell == study.cells[1].cell


def test_what_a_choice_leaves_without_effect_is_not_inherited(grid):
    base = BASE.replace("dim: 48", "dim: 48, fusion: token_channel")
    study = load_study(grid("axes: {model.scales: [[1], [1, 3]]}", base))
    assert [entry.cell.model["fusion"] for entry in study.cells] == ["token", "token_channel"]
    base = BASE.replace("epochs: 3", "epochs: 3, min_lr: 1e-6")
    study = load_study(grid("axes: {training.schedule: [cosine, constant]}", base))
    assert [entry.cell.training["min_lr"] for entry in study.cells] == [1e-6, 1e-5]


@pytest.mark.parametrize("more", ["include: [{model: {name: NAME}}]", "axes: {model.name: [NAME]}"])
@pytest.mark.parametrize(("name", "lost"), [("sdt", "heads: 4"), ("vit", "timesteps: 2")])
@pytest.mark.parametrize("base_name", ["name: spikformer, ", ""])
def test_what_does_nothing_in_another_model_is_not_inherited(grid, more, name, lost, base_name):
    base = BASE.replace("name: msvit, ", base_name).replace("depths: [1, 1, 1]", "depths: [2]")
    study = load_study(grid(more.replace("NAME", name), base))
    usual = {"heads": 8, "timesteps": 1}
    option = lost.partition(":")[0]
    assert lost in base
    assert study.cells[-1].cell.model[option] == usual[option]
    assert study.cells[-1].cell.model["dim"] == 48


def test_what_does_nothing_in_any_model_is_refused_in_a_base_without_a_name(grid):
    base = BASE.replace("name: msvit, ", "neuron: psn, tau: 3.0, ")
    with pytest.raises(ConfigError, match="tau: the neuron 'psn' has no such option"):
        load_study(grid("axes: {model.name: [msvit, qkformer]}", base))


def test_a_combination_of_axes_is_without_what_it_does_not_have(grid):
    study = load_study(grid("axes: {model.neuron: [lif, psn], model.tau: [2.0, 3.0]}"))
    assert groups(study) == [
        "msvit neuron=lif tau=2.0",
        "msvit neuron=lif tau=3.0",
        "msvit neuron=psn",
    ]
    assert study.notes == ("mine.yaml: axes: same as 'msvit neuron=psn', run once",)
    more = "axes: {model.scales: [[1], [1, 3]], model.fusion: [token, token_channel]}"
    assert len(groups(load_study(grid(more)))) == 3
    models = load_study(grid("axes: {model.name: [msvit, qkformer], model.scales: [[1], [1, 3]]}"))
    assert groups(models) == ["msvit scales=1", "msvit scales=1,3", "qkformer"]


def test_overrides_mean_the_same_in_any_order(grid):
    path = grid("axes: {model.neuron: [lif, psn]}")
    study = load_study(path, ["model.tau=3"])
    assert [entry.cell.model.get("tau") for entry in study.cells] == [3.0, None]
    for overrides in (["model.neuron=psn", "model.tau=3"], ["model.tau=3", "model.neuron=psn"]):
        with pytest.raises(ConfigError, match=r"tau: the neuron 'psn' has no such option"):
            load_study(path, overrides)


@pytest.mark.parametrize(
    ("model", "more"),
    [
        ("neuron: psn, tau: 3.0", ""),
        ("neuron: psn, tau: 3.0", "axes: {model.dim: [32, 64]}"),
        ("neuron: psn", "axes: {model.tau: [2.0, 3.0]}"),
        ("neuron: psn", "include: [{model: {tau: 3.0}}]"),
    ],
)
def test_an_option_that_a_neuron_does_not_have_is_refused_where_it_is_set(grid, model, more):
    path = grid(more, BASE.replace("dim: 48", f"dim: 48, {model}"))
    with pytest.raises(ConfigError, match=r"mine\.yaml.*tau: the neuron 'psn' has no such option"):
        load_study(path)


def test_another_data_set_inherits_what_it_has_too(grid):
    base = BASE.replace("name: digits", "name: digits, image_size: 16, train_per_class: 50")
    study = load_study(grid("include: [{data: {name: fashion_mnist}}]", base))
    cell = study.cells[-1].cell
    assert cell.data["train_per_class"] == 50
    assert cell.model["image_size"] == 32
    assert study.cells[-1].group == "msvit data=fashion_mnist"


def test_labels_can_be_given(grid):
    study = load_study(grid("include: [{model: {name: spikformer}, label: Spikformer (2023)}]"))
    assert groups(study)[-1] == "Spikformer (2023)"


def test_the_same_cell_is_run_once_and_that_is_said(grid):
    study = load_study(grid("axes: {model.timesteps: [1, 2]}\ninclude: [{model: {timesteps: 2}}]"))
    assert groups(study) == ["msvit timesteps=1", "msvit timesteps=2"]
    assert study.notes == ("mine.yaml: include[0]: same as 'msvit timesteps=2', run once",)


def test_the_same_cell_has_the_same_id_in_two_grids(grid):
    one = load_study(grid("axes: {model.timesteps: [1, 2]}", name="one.yaml"))
    two = load_study(grid("axes: {training.epochs: [3]}", name="two.yaml"))
    assert two.cells[0].cell.id == one.cells[1].cell.id


def test_two_configurations_with_one_label_are_refused(grid):
    more = "include: [{model: {dim: 64}, label: a}, {model: {dim: 96}, label: a}]"
    with pytest.raises(ConfigError, match=r"include\[1\].*'a'.*label"):
        load_study(grid(more))


@pytest.mark.parametrize(("seeds", "expected"), [("3", [0, 1, 2]), ("[5, 1]", [5, 1]), ("1", [0])])
def test_seeds(grid, seeds, expected):
    study = load_study(grid(f"seeds: {seeds}"))
    assert [entry.cell.seed for entry in study.cells] == expected


@pytest.mark.parametrize(
    ("own", "expected"), [("5", [0, 1, 2]), ("[7, 3]", [3, 4, 5]), ("[1]", [1, 2, 3])]
)
def test_a_number_of_seeds_counts_from_the_smallest_of_the_grid(grid, own, expected):
    study = load_study(grid(f"seeds: {own}"), seeds=3)
    assert [entry.cell.seed for entry in study.cells] == expected


def test_there_is_an_end_of_seeds(grid):
    with pytest.raises(ConfigError, match="--seeds 3: more than 2, counted from 4294967294"):
        load_study(grid("seeds: [4294967294]"), seeds=3)


def test_overrides_hold_everywhere(grid):
    path = grid("include: [{model: {name: spikformer, dim: 96}, training: {epochs: 9}}]")
    study = load_study(path, ["training.epochs=2", "model.dim=32", "training.lr=1e-3"])
    for entry in study.cells:
        assert entry.cell.training["epochs"] == 2
        assert entry.cell.training["lr"] == 1e-3
        assert entry.cell.model["dim"] == 32
    assert study.manifest()["overrides"][1:] == ["model.dim=32", "training.lr=1e-3"]


def test_an_override_leaves_models_alone_that_do_not_have_the_option():
    study = load_study("scales", ["model.scales=[1, 9]"])
    assert groups(study) == ["msvit scales=1,9", "spikformer", "qkformer"]
    assert len(study.notes) == 3  # what were three more scale counts is now the same cell


def test_an_override_can_change_the_model_and_the_data():
    study = load_study("timesteps", ["model.name=spikformer", "data.name=fashion_mnist"])
    assert groups(study)[0] == "spikformer timesteps=1"
    assert study.cells[0].cell.model["image_size"] == 32


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        ("sedes: 3", ("sedes", "'seeds'")),
        ("axes: {model.scalse: [[1]]}", ("axes.model", "scalse", "'scales'")),
        ("axes: {modle.scales: [[1]]}", ("axes.modle.scales", "'model'")),
        ("axes: {model: [1]}", ("axes.model", "model.OPTION")),
        ("axes: {model.scales: 1}", ("axes.model.scales", "list")),
        ("axes: {model.scales: []}", ("axes.model.scales", "list")),
        ("axes: {model.scales: [[2]]}", ("axes.model", "scales", "odd")),
        ("axes: {model.dim: [48, x]}", ("axes.model", "dim", "'x'")),
        ("axes: {seed: [1]}", ("axes.seed", "'seeds'")),
        ("axes: [model.scales]", ("axes", "mapping")),
        ("include: {model: {name: spikformer}}", ("include", "list")),
        ("include: [{model: {name: spikfromer}}]", ("include[0].model.name", "'spikformer'")),
        ("include: [{model: {name: spikformer, scales: [1]}}]", ("include[0].model", "scales")),
        ("include: [{model: spikformer}]", ("include[0].model", "mapping")),
        ("include: [{lable: a}]", ("include[0]", "lable", "'label'")),
        ("include: [{label: 3}]", ("include[0].label", "3")),
        ("include: [{training: {recipe: digit}}]", ("include[0].training.recipe", "'digits'")),
        ("include: [7]", ("include[0]", "mapping")),
        ("seeds: 0", ("seeds", "0")),
        ("seeds: -1", ("seeds", "-1")),
        ("seeds: [1, 1]", ("seeds", "twice")),
        ("seeds: [1.5]", ("seeds", "1.5")),
        ("seeds: .nan", ("seeds", "nan")),
        ("seeds: 1000000000", ("seeds", "1000000000")),
        ("seeds: 1\nseeds: 2", ("line", "'seeds' appears twice")),
        ("axes: {model.scales: [[1]", ("not valid YAML",)),
    ],
)
def test_a_wrong_grid_names_the_file_the_key_and_what_is_valid(grid, more, parts):
    with pytest.raises(ConfigError) as caught:
        load_study(grid(more))
    message = str(caught.value)
    assert all(part in message for part in ("mine.yaml", *parts)), message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("dim: 48", "dmi: 48", ("base.model", "dmi", "'dim'")),
        ("dim: 48", "dim: 50", ("base.model", "50")),
        ("epochs: 3", "epochs: none", ("base.training.epochs", "'none'")),
        ("epochs: 3", "lr: .inf", ("base.training.lr",)),
        ("name: digits", "name: mnist", ("base.data.name", "'mnist'", "fashion_mnist")),
        ("name: digits", "nam: digits", ("base.data", "needed")),
        ("data: {name: digits}", "dataset: {name: digits}", ("base", "dataset", "'data'")),
        ("question: Which?", "question: ", ("question", "sentence")),
        ("question: Which?", "", ("question", "sentence")),
    ],
)
def test_what_is_wrong_with_the_base_is_said_of_the_base(grid, old, new, parts):
    assert old in BASE
    path = grid("axes: {model.timesteps: [1, 2]}", BASE.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        load_study(path)
    message = str(caught.value)
    assert all(part in message for part in ("mine.yaml", *parts)), message


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("training.epochs", ("--set training.epochs", "section.option=value")),
        ("training.epoch=3", ("--set training.epoch=3", "'training.epochs'")),
        ("epochs=3", ("--set epochs=3", "'training.epochs'")),
        ("training.epochs=many", ("--set training.epochs=many", "'many'")),
        ("training.epochs=0", ("--set training.epochs=0", "epochs")),
        ("training.epochs=", ("--set training.epochs=", "epochs")),
        ("training.epochs=[1", ("--set training.epochs=[1", "not valid YAML")),
        ("model.scales=[2]", ("--set model.scales=[2]", "odd")),
        ("model.name=msvti", ("--set model.name=msvti", "'msvit'")),
        ("seed=3", ("--set seed=3", "--seeds")),
        ("modell.dim=3", ("--set modell.dim=3", "'model.dim'")),
    ],
)
def test_a_wrong_override_is_named(override, parts):
    with pytest.raises(ConfigError) as caught:
        load_study("scales", [override])
    message = str(caught.value)
    assert all(part in message for part in parts), message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("scale", ("'scale'", "'scales'")),
        ("missing.yaml", ("missing.yaml", "no such")),
        ("/tmp", ("/tmp", "no such")),
    ],
)
def test_a_grid_that_is_not_there_is_named(name, parts):
    with pytest.raises(ConfigError) as caught:
        load_study(name)
    assert all(part in str(caught.value) for part in parts), caught.value


def test_a_file_name_that_cannot_name_a_study_is_refused(grid):
    with pytest.raises(ConfigError, match="letters"):
        load_study(grid(name="my grid.yaml"))


def test_what_overrides_change_is_a_study_of_its_own():
    names = [
        load_study("scales", overrides).name
        for overrides in (
            [],
            ["training.epochs=3"],
            ["model.scales=[1, 3]", "training.epochs=3"],
            ["training.epochs=3", "model.scales=[1, 3]"],
            ["training.lr=" + "0" * 200 + "1"],
        )
    ]
    assert names[:4] == [
        "scales",
        "scales+training.epochs=3",
        "scales+model.scales=1,3+training.epochs=3",
        "scales+model.scales=1,3+training.epochs=3",
    ]
    assert len(names[4]) == 100
    longer = load_study("scales", ["training.lr=" + "0" * 201 + "1"]).name
    assert longer != names[4]


def test_an_option_that_is_set_twice_is_refused():
    with pytest.raises(ConfigError, match=r"--set training.epochs: given twice"):
        load_study("scales", ["training.epochs=3", "training.epochs=4"])


# ---- Resources ---------------------------------------------------------------------------------


def resources(study):
    return [entry.resources.model_dump(exclude_none=True) for entry in study.cells]


def test_resources_are_of_a_grid_an_include_or_the_command_line_and_of_no_cell(grid):
    more = """
    resources: {gpus: 8}
    include:
      - training: {epochs: 5}
        resources: {gpus: 1, cpus: 2}
    """
    plain, large = load_study(grid("include: [{training: {epochs: 5}}]")), load_study(grid(more))
    assert resources(plain) == [{}, {}]
    assert resources(large) == [{"gpus": 8}, {"gpus": 1, "cpus": 2.0}]
    assert [entry.resources.count for entry in large.cells] == [8, 1]
    given = load_study(grid(more), ["resources.gpus=4", "resources.nodes=2"])
    assert resources(given) == [{"gpus": 4, "nodes": 2}, {"gpus": 4, "cpus": 2.0, "nodes": 2}]
    for study in (large, given):  # another place to run, and the same study
        assert study.manifest() == plain.manifest()


@pytest.mark.parametrize(
    ("more", "overrides", "message"),
    [
        ("resources: {gpu: 8}", [], "mine.yaml: resources.gpu: unknown option; .* 'gpus'"),
        ("resources: 8", [], "resources: a mapping of options is needed"),
        ("include: [{resources: {nodes: 0}}]", [], r"include\[0\].resources.nodes"),
        ("", ["resources.gpus=many"], "--set resources.gpus=many: .* integer"),
        ("", ["resources=8"], "write it as resources.OPTION=VALUE"),
        ("", ["resources.gpus=8", "resources.gpus=4"], "given twice"),
        ("", ["resources.workers=2", "resources.gpus=3"], "3 GPUs do not go with 2 workers"),
        ("", ["resources.workers=4", "resources.nodes=3"], "4 workers .* evenly over 3 nodes"),
        ("resources: {gpus: 3}", [], "3 workers cannot share a batch of 64 images evenly"),
        ("", ["resources.gpus=3"], "--set resources.gpus=3: .*3 workers cannot share a batch"),
        (
            "base: {model: {name: msvit}, data: {name: digits}, training: {mixup: 0.5}}",
            ["resources.gpus=64"],
            "64 workers cannot share a batch of 64 images evenly, in pairs",
        ),
        (
            "base: {model: {name: msvit}, data: {name: digits, train_per_class: 13}, "
            "training: {batch_size: 512, mixup: 0.5}}",
            ["resources.workers=2"],
            "--set resources.workers=2: .*2 workers cannot share a batch of 130 images evenly",
        ),
    ],
)
def test_resources_that_cannot_be_are_refused(grid, more, overrides, message):
    base = "question: Which?\n" if more.startswith("base") else BASE
    with pytest.raises(ConfigError, match=message):
        load_study(grid(more, base), overrides)


def test_a_study_tells_when_results_depend_on_the_number_of_workers(grid):
    def told(*overrides):
        cells = load_study(grid("include: [{training: {epochs: 5}}]"), overrides).cells
        return notes_on_workers((entry.cell, entry.resources) for entry in cells)

    (note,) = told("resources.workers=2")
    assert note.startswith("training.sync_batchnorm is off: each worker normalises its own images")
    assert told() == told("resources.workers=2", "training.sync_batchnorm=true") == []
