"""Errors of configurations: parts while they travel, one line each when they are shown."""

import pickle

import pytest

from msvit.cells import resolve_cell
from msvit.options import ConfigError, Options, Problem, later
from studies.grids import load_study

WRONG = {
    "model": {"name": "msvit", "dmi": 48, "tau": "2"},
    "data": {"name": "digits"},
}


def parts(error):
    return [(problem.where, problem.key) for problem in error.problems]


def test_an_error_knows_where_which_option_and_what():
    with pytest.raises(ConfigError) as caught:
        resolve_cell({"model": {"name": "msvit"}, "data": {"name": "digit"}}, "mine.yaml: base")
    error = caught.value
    assert (error.where, error.key) == ("mine.yaml: base", "data.name")
    assert error.message.startswith("unknown data set 'digit'; did you mean 'digits'?")
    assert str(error) == f"mine.yaml: base.data.name: {error.message}"


def test_all_that_is_wrong_is_said_a_line_each():
    with pytest.raises(ConfigError) as caught:
        resolve_cell(WRONG, "t")
    assert parts(caught.value) == [("t", "model (msvit).tau"), ("t", "model (msvit).dmi")]
    assert str(caught.value).splitlines() == [str(problem) for problem in caught.value.problems]


def test_an_error_seen_from_outside_keeps_its_way_in():
    error = ConfigError("training", "lr", "too large")
    assert str(error.within("base")) == "base.training.lr: too large"
    assert str(error.within("base").within("a.yaml", ": ")) == "a.yaml: base.training.lr: too large"
    assert str(ConfigError("", "", "too large").within("a.yaml", ": ")) == "a.yaml: too large"


def test_overrides_are_the_place_of_what_is_wrong_with_them():
    overrides = ["training.epochs=0", "model.tau=x"]
    with pytest.raises(ConfigError) as caught:
        load_study("scales", overrides)
    given = "--set training.epochs=0 --set model.tau=x"
    assert parts(caught.value) == [(given, "model (msvit).tau")]
    assert str(caught.value).startswith(f"{given}: model (msvit).tau: ")


def test_an_error_crosses_processes_whole():
    error = ConfigError.of([Problem("a", "b", "c"), Problem("d", "e", "f", ": ")])
    again = pickle.loads(pickle.dumps(error))
    assert again.problems == error.problems
    assert str(again) == "a.b: c\nd: e: f"


@pytest.mark.parametrize(
    ("section", "name", "meant"),
    [
        ("data", "CIFAR-10", "cifar10"),
        ("data", "Fashion MNIST", "fashion_mnist"),
        ("model", "MSVIT", "msvit"),
        ("model", "QKFormer-CIFAR10", "qkformer_cifar10"),
    ],
)
def test_the_nearest_name_is_found_whatever_its_case_and_dashes(section, name, meant):
    raw = {"model": {"name": "msvit"}, "data": {"name": "digits"}} | {section: {"name": name}}
    with pytest.raises(ConfigError, match=f"did you mean '{meant}'"):
        resolve_cell(raw, "t")


def test_an_upper_case_neuron_is_understood():
    with pytest.raises(ConfigError, match="did you mean 'lif'"):
        resolve_cell({"model": {"name": "msvit", "neuron": "LIF"}, "data": {"name": "digits"}}, "t")


@pytest.mark.parametrize("given", ["1,3", "3", "1 3", "(1,3)", "(1, 3)", "1;3"])
def test_a_list_without_brackets_is_told_how_to_write_it(given):
    with pytest.raises(ConfigError, match="write it as") as caught:
        load_study("scales", [f"model.scales={given}"])
    written = str(caught.value).rpartition("write it as ")[2]
    assert written == ("[3]" if given == "3" else "[1,3]")
    load_study("scales", [f"model.scales={written}"])


def test_none_is_told_to_be_null_where_it_may_be():
    with pytest.raises(ConfigError, match=r"training\.clip_grad: .*'none'\); write null"):
        load_study("scales", ["training.clip_grad=none"])
    load_study("scales", ["training.clip_grad=null"])
    with pytest.raises(ConfigError) as caught:
        load_study("scales", ["training.lr=none"])
    assert "null" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "meant"),
    [("model=msvit", "model.name"), ("training=digits", "training.recipe")],
)
def test_a_section_that_is_set_is_told_what_names_it(given, meant):
    with pytest.raises(ConfigError, match=f"did you mean '{meant}'"):
        load_study("scales", [given])


def test_an_option_of_a_later_version_is_written_only_where_it_is_set():
    class Grown(Options):
        width: int = 8
        ema: float | None = later(None, gt=0, lt=1)

    assert Grown.parse({}, "here").model_dump() == {"width": 8}
    assert Grown.parse({"ema": None}, "here").model_dump() == {"width": 8}
    assert Grown.parse({"ema": 0.5}, "here").model_dump(mode="json") == {"width": 8, "ema": 0.5}
    with pytest.raises(ConfigError, match=r"here\.ema"):
        Grown.parse({"ema": 1.0}, "here")
