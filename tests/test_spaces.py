"""Search spaces: what is read from them, and what is said of a wrong one before anything starts."""

import random
import re
import subprocess
import sys
import textwrap

import pytest

from msvit.options import ConfigError
from studies.search.space import largest_epochs, list_spaces, load_space, possible_share

SPACE = """
    question: Which?
    base:
      model: {name: msvit, dim: 32, depths: [1, 1, 1], heads: 4, timesteps: 2}
      data: {name: digits}
      training: {epochs: 5}
    parameters:
      model.scales: {categorical: [[1], [1, 3]]}
      model.branch_kernel: {categorical: [1d, 2d], when: {model.scales: [1, 3]}}
      training.lr: {float: [0.001, 0.1], log: true}
    objectives: {accuracy: maximize, energy_mj: minimize}
"""


@pytest.fixture
def space(tmp_path):
    """Reads a space written with some lines replaced and some added."""

    def read(more="", old="", new="", **changes):
        text = textwrap.dedent(SPACE)
        assert old in text
        path = tmp_path / "mine.yaml"
        path.write_text(text.replace(old, new) + textwrap.dedent(more))
        return load_space(str(path), **changes)

    return read


def test_every_space_of_the_harness_can_be_searched():
    assert "scales" in list_spaces()
    for name in list_spaces():
        space = load_space(name)
        assert space.trials >= 20
        source = random.Random(0)
        drawn = [space.draw(source, {}) for _ in range(50)]
        assert len({cell.id for chosen in drawn for cell in space.cells(chosen)}) > 20


def test_a_condition_decides_whether_a_parameter_is_there(space):
    found = space()
    source = random.Random(0)
    for chosen in (found.draw(source, {}) for _ in range(30)):
        assert ("model.branch_kernel" in chosen) == (chosen["model.scales"] == "[1, 3]")
        (cell,) = found.cells(chosen)
        assert list(cell.model["scales"]) == ([1, 3] if "3" in chosen["model.scales"] else [1])


def test_seeds_make_cells_that_differ_in_nothing_else(space):
    cells = space("seeds: 3").cells({"model.scales": "[1]", "training.lr": 0.01})
    assert [cell.seed for cell in cells] == [0, 1, 2]
    assert len({str((cell.model, cell.data, cell.training)) for cell in cells}) == 1


def test_a_registry_name_starts_with_its_values_of_the_parameters(space):
    found = space("start_with: [msvit_cifar10, {training.lr: 0.01}]")
    assert found.start_with[0] == {"model.scales": "[1, 3]", "model.branch_kernel": "1d"}
    assert found.start_with[1] == {"training.lr": 0.01}


def test_the_command_line_replaces_what_the_file_says(space):
    found = space("trials: 50\npruner: {name: median, grace: 2}", trials=7, sampler="nsga2")
    assert (found.trials, found.sampler, found.pruner.name) == (7, "nsga2", "median")
    assert space(pruner="none").pruner.name == "none"


def test_the_default_energy_model_has_its_own_name_too(space):
    named = "{accuracy: maximize, energy_mj:sop_spikformer: minimize}"
    found = space(old="{accuracy: maximize, energy_mj: minimize}", new=named)
    assert found.objectives == {"accuracy": "maximize", "energy_mj": "minimize"}
    found = space(more="constraints: ['energy_mj:sop_spikformer <= 0.2']")
    assert found.constraints[0].excess({"energy_mj": 0.3}) == pytest.approx(0.1)
    twice = "[energy_mj, 'energy_mj:sop_spikformer']"
    with pytest.raises(ConfigError, match="'energy_mj:sop_spikformer' appears twice"):
        space(old="{accuracy: maximize, energy_mj: minimize}", new=twice)


def test_early_stopping_needs_an_objective_that_is_known_early(space):
    found = space(old="{accuracy: maximize, energy_mj: minimize}", new="[energy_mj]")
    assert found.pruner.name == "none"
    assert largest_epochs(space(more="  ", old="epochs: 5", new="epochs: 9")) == 9


WRONG = [
    ("", "training.lr:", "training.rl:", "parameters.training.rl: ", "did you mean 'training.lr'"),
    ("", "model.scales:", "scales:", "unknown section 'scales'", "model"),
    ("", "[0.001, 0.1]", "[0.1, 0.001]", "parameters.training.lr.float", "the range is empty"),
    ("", "[0.001, 0.1]", "[-0.1, 0.1]", "parameters.training.lr.float", "above 0"),
    ("", "[0.001, 0.1]", "[0.001, 99]", "parameters.training.lr", "less than or equal to 10"),
    ("", "[0.001, 0.1]", "0.1", "parameters.training.lr.float", "[low, high]"),
    ("", "log: true", "step: 0.7", "parameters.training.lr.step", "whole number of steps"),
    ("", "log: true", "lgo: true", "parameters.training.lr.lgo", "did you mean 'log'"),
    (
        "",
        "[[1], [1, 3]]",
        "[[1], [1, 3], [2]]",
        "parameters.model (msvit)",
        "scales: kernel sizes are odd",
    ),
    ("", "[[1], [1, 3]]", "[]", "parameters.model.scales.categorical", "a list of values"),
    ("", "[[1], [1, 3]]", "[[1], [1], [1, 3]]", "parameters.model.scales", "appears twice"),
    ("", "{float: [0.001, 0.1], log: true", "{categorical: [1, 1.0]", "training.lr", "twice"),
    ("", "{model.scales: [1, 3]}", "{model.scales: [1, 5]}", "branch_kernel.when", "not one of"),
    ("", "{model.scales: [1, 3]}", "{model.dim: 3}", "branch_kernel.when", "no categorical"),
    ("", "accuracy: maximize", "test_accuracy: maximize", "objectives.test_accuracy", "accuracy"),
    ("constraints: ['test_accuracy >= 0.9']", "", "", "constraints[0]", "take accuracy"),
    ("", "energy_mj: minimize", "energy: minimize", "objectives.energy", "'energy_mj'"),
    ("", "energy_mj: minimize", "energy_mj: min", "objectives.energy_mj", "'minimize'"),
    ("", "dim: 32", "dmi: 32", "base.model.dmi", "did you mean 'dim'"),
    ("", "dim: 32", "dim: 30", "base.model", "widths"),
    ("", "question: Which?", "question: ''", "question", "a sentence"),
    ("constraints: ['energy <= 1']", "", "", "constraints[0]", "'energy_mj'"),
    ("constraints: ['energy_mj < 1']", "", "", "constraints[0]", "energy_mj <= 0.2"),
    ("constraints: ['energy_mj <= x']", "", "", "constraints[0]", "a number"),
    ("constraint: []", "", "", "constraint", "did you mean 'constraints'"),
    ("constraints: ['accuracy >= 90']", "", "", "constraints[0]", "write 0.9 for 90 %"),
    ("pruner: {name: asha, reduction: .inf}", "", "", "pruner.reduction", "above 1"),
    ("start_with: [{}]", "", "", "start_with[0]", "at least one parameter"),
    (
        "start_with: [{model.scales: [1], model.branch_kernel: 2d}]",
        *("", "", "start_with[0]", "model.branch_kernel is not there"),
    ),
    (
        "",
        "{accuracy: maximize, energy_mj: minimize}",
        "[accuracy, accuracy]",
        "objectives",
        "twice",
    ),
    ("trials: 0", "", "", "trials", "from 1"),
    ("minutes: -1", "", "", "minutes", "above 0"),
    ("sampler: tep", "", "", "sampler", "did you mean 'tpe'"),
    ("sampler: grid", "", "", "sampler", "takes no condition"),
    ("sampler: grid", ", when: {model.scales: [1, 3]}", "", "sampler", "choices for training.lr"),
    ("pruner: {name: asha, grace: 0}", "", "", "pruner.grace", "whole number of epochs"),
    ("start_with: [msvit_cifar1]", "", "", "start_with[0]", "msvit_cifar10"),
    ("start_with: [{model.scales: [3]}]", "", "", "start_with[0]", "is not one of"),
    ("start_with: [{training.lr: 1}]", "", "", "start_with[0]", "is not 0.001 to 0.1"),
    ("seeds: [1, 1]", "", "", "seeds", "twice"),
]


@pytest.mark.parametrize(("more", "old", "new", "key", "hint"), WRONG)
def test_a_wrong_space_is_refused_with_file_and_key(space, more, old, new, key, hint):
    with pytest.raises(ConfigError) as caught:
        space(more, old, new)
    message = str(caught.value)
    assert message.startswith("mine.yaml: ")
    assert key in message
    assert hint in message


def test_a_pruner_cannot_judge_what_is_known_at_the_end(space):
    with pytest.raises(ConfigError, match="energy_mj is known only at the end"):
        space("pruner: asha", "{accuracy: maximize, energy_mj: minimize}", "[energy_mj, accuracy]")


def test_steps_of_a_range_stay_what_they_are_written_as(space):
    found = space(old="{float: [0.001, 0.1], log: true}", new="{float: [0.1, 0.7], step: 0.1}")
    assert found.parameters[-1].points() == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]


@pytest.mark.parametrize(
    ("text", "value", "holds"),
    [
        ("energy_mj <= 0.2", 0.2, True),
        ("energy_mj <= 0.2", 0.21, False),
        ("energy_mj >= 0.2", 0.19, False),
        ("energy_mj >= 0.2", 0.2, True),
    ],
)
def test_a_constraint_holds_on_its_side_of_the_bound(space, text, value, holds):
    (constraint,) = space(f"constraints: ['{text}']").constraints
    assert (constraint.excess({"energy_mj": value}) <= 0) == holds
    assert str(constraint) == text


def test_how_much_of_a_space_can_be_built_is_known_before(space):
    # With two heads of 16 channels every second width has no place for them.
    share, problem = possible_share(
        space(old="training.lr: {float: [0.001, 0.1], log: true}", new="model.dim: {int: [32, 64]}")
    )
    assert 0 < share < 0.5
    assert problem.startswith("model (msvit): heads: a stage of width ")
    assert possible_share(space())[0] == 1


def test_help_listing_and_errors_need_neither_torch_nor_optuna_nor_ray(tmp_path):
    script = """
import sys
from studies.hpo import main
codes = []
for arguments in (["--list"], ["--space", "scales", "--dry-run"], ["--space", "scale"]):
    codes.append(main(arguments))
assert codes == [0, 0, 2], codes
loaded = {"torch", "optuna", "ray", "matplotlib", "pandas"} & set(sys.modules)
assert not loaded, loaded
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^scales +\d+ trials", done.stdout, re.M)
    assert "did you mean 'scales'" in done.stderr


def test_a_trial_is_without_what_its_values_leave_without_effect(space):
    more = "  model.neuron: {categorical: [lif, psn]}\n  model.tau: {float: [1.5, 3.0]}\n"
    found = space(old="objectives:", new=f"{more}objectives:")
    assert possible_share(found) == (1.0, "")
    source = random.Random(0)
    cells = [found.cells(found.draw(source, {}))[0] for _ in range(20)]
    assert {(cell.model["neuron"], "tau" in cell.model) for cell in cells} == {
        ("lif", True),
        ("psn", False),
    }


def test_a_parameter_that_no_trial_has_is_refused(space):
    with pytest.raises(ConfigError, match=r"model\.tau: the neuron 'psn' has no such option"):
        space(
            old="scales: {categorical: [[1], [1, 3]]}",
            new="tau: {float: [1.5, 3.0]}\n  "
            "model.neuron: {categorical: [psn]}\n  model.scales: {categorical: [[1], [1, 3]]}",
        )
