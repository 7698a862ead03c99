"""``studies/hpo.py`` from outside: real processes, real Ray Tune, a real Optuna study."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis import search_figures
from analysis.search import Search, collect_search
from analysis.search_report import trial_table, write_search_report
from msvit.records.energy import sop_spikformer
from msvit.records.measures import mean_measures
from msvit.records.optuna_storage import mend_journal, open_storage
from msvit.records.store import (
    cell_folder,
    iter_records,
    read_record,
    search_folder,
    write_search,
)
from studies.grids import load_study
from studies.hpo import main, manifest
from studies.search.best_grid import best_trials
from studies.search.comparison import hypervolume, report
from studies.search.ledger import Ledger
from studies.search.space import load_space
from studies.search.tuner import PastTrial, make_scheduler
from tests.results_folder import make_cell, make_record

ROOT = Path(__file__).resolve().parent.parent
HPO = ROOT / "studies" / "hpo.py"

TINY = """
    question: Does it search?
    base:
      model: {name: msvit, dim: 16, heads: 2, depths: [1, 1], widths: [0.5, 1.0], timesteps: 1}
      data: {name: digits, image_size: 8, train_per_class: 40}
      training: {epochs: 4, batch_size: 16, warmup_epochs: 0}
    parameters:
      model.scales: {categorical: [[1], [1, 3]]}
      training.lr: {float: [1.0e-4, 3.0e-2], log: true}
    objectives: {accuracy: maximize, energy_mj: minimize}
    constraints: [parameters <= 10000]
    trials: 8
    pruner: {name: asha, grace: 1, reduction: 2}
    start_with: [{model.scales: [1, 3], training.lr: 0.02}]
"""


@pytest.fixture
def tiny(tmp_path):
    """Writes a space of trials that take seconds."""

    def write(old="", new="", name="tiny.yaml", more=""):
        assert old in textwrap.dedent(TINY)
        path = tmp_path / name
        path.write_text(textwrap.dedent(TINY).replace(old, new) + textwrap.dedent(more))
        return path

    return write


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, str(HPO), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run(*arguments, code=0):
    process = start(*arguments)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == code, output
    assert "Traceback" not in output, output
    return output


def study_of(results, name="tiny"):
    storage = open_storage(str(search_folder(results, name) / "study.journal"))
    return optuna.load_study(study_name=name, storage=storage)


def states(results, name="tiny"):
    return [trial.state.name for trial in study_of(results, name).get_trials()]


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A search of eight trials, run once."""
    folder = tmp_path_factory.mktemp("searched")
    space = folder / "tiny.yaml"
    space.write_text(textwrap.dedent(TINY))
    output = run("--space", space, "--results", folder / "results")
    return folder / "results", space, output


@pytest.mark.slow
def test_a_search_uses_its_budget_and_tells_optuna_what_the_records_say(searched):
    results, _, output = searched
    trials = study_of(results).get_trials()
    assert len(trials) == 8
    assert {trial.state.name for trial in trials} <= {"COMPLETE", "PRUNED"}
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    assert complete
    for trial in complete:
        (cell_id,) = trial.user_attrs["cells"]
        record = read_record(results, cell_id)
        assert record["cell"]["training"]["lr"] == trial.params["training.lr"]
        epoch = record["history"][record["selected_epoch"] - 1]
        assert trial.values == [epoch["val_accuracy"], sop_spikformer(record["operations"])]
        assert trial.constraints == {"parameters <= 10000": record["parameters"] - 10000}
    # What was given to start with came first.
    assert trials[0].params == {"model.scales": "[1, 3]", "training.lr": 0.02}
    assert re.search(r"trial 0: validation accuracy \d+\.\d%, energy [\d.]+ [µn]J", output)


@pytest.mark.slow
def test_stopped_trials_have_no_record_and_are_on_no_front(searched):
    results, _, output = searched
    search = collect_search(results, "tiny")
    stopped = search.trials[search.trials["state"] == "stopped"]
    assert len(stopped) >= 1, search.trials
    assert stopped["rank"].isna().all()
    assert (stopped["epochs"] < 4).all()
    said = dict(re.findall(r"trial (\d+): stopped after epoch (\d+)", output))
    assert {
        str(n): str(e) for n, e in zip(stopped["number"], stopped["epochs"], strict=True)
    } == said
    study = study_of(results)
    for number in stopped["number"]:
        trial = study.get_trials()[number]
        assert trial.values is None
        assert read_record(results, trial.user_attrs["cells"][0]) is None
    assert {t.number for t in study.best_trials} == set(search.front["number"])


@pytest.mark.slow
def test_a_search_that_is_over_trains_nothing_and_a_larger_budget_goes_on(searched, tmp_path):
    results, space, _ = searched
    before = {path: path.stat().st_mtime_ns for path in results.glob("cells/*/record.json")}
    begun = time.monotonic()
    output = run("--space", space, "--results", results)
    assert time.monotonic() - begun < 60
    assert "running" not in output
    assert {p: p.stat().st_mtime_ns for p in results.glob("cells/*/record.json")} == before
    run("--space", space, "--results", results, "--trials", 9)
    assert len(study_of(results).get_trials()) == 9


@pytest.mark.slow
def test_tables_and_figures_of_a_search(searched):
    results, _, _ = searched
    folder = write_search_report(collect_search(results, "tiny"))
    names = {path.name for path in folder.glob("figures/*.png")}
    assert {"history.png", "pareto.png", "parallel.png", "slices.png"} <= names
    assert all(path.stat().st_size > 5000 for path in folder.glob("figures/*.png"))
    search = collect_search(results, "tiny")
    table = (folder / "trials.md").read_text()
    assert table.count("\n| ") == 2 + len(search.trials)
    assert "stopped at" in table
    assert "never by test accuracy" in table
    front = (folder / "front.csv").read_text().splitlines()
    assert len(front) == 1 + len(search.front)
    assert r"\toprule" in (folder / "front.tex").read_text()


@pytest.mark.slow
def test_the_best_trials_become_a_grid_of_seeds_that_won_nothing(searched, tmp_path):
    results, space, _ = searched
    out = tmp_path / "again.yaml"
    output = run("--space", space, "--results", results, "--best", 2, "--grid-out", out)
    assert "written" in output
    study = load_study(str(out))
    search = collect_search(results, "tiny")
    best = int(search.front["number"].iloc[0])
    assert study.cells[0].group == f"trial {best}"
    assert [entry.cell.seed for entry in study.cells[:3]] == [1, 2, 3]  # the search's is 0
    more = load_study(str(out), seeds=5)
    assert [entry.cell.seed for entry in more.cells[:5]] == [1, 2, 3, 4, 5]
    assert not any(read_record(results, entry.cell.id) for entry in study.cells)
    assert f"python studies/run.py --grid {out} --results {results}" in output
    assert len({entry.group for entry in study.cells}) == 2


@pytest.mark.slow
def test_another_meaning_needs_another_name(searched, tmp_path, capsys):
    results, _, _ = searched
    changed = tmp_path / "tiny.yaml"
    changed.write_text(textwrap.dedent(TINY).replace("3.0e-2", "5.0e-2"))
    assert main(["--space", str(changed), "--results", str(results)]) == 2
    error = capsys.readouterr().err
    assert "parameters changed" in error
    assert "--name" in error


@pytest.mark.slow
def test_a_repeated_proposal_costs_nothing(tiny, tmp_path):
    # One choice: after the first trial every other one is the same cell.
    space = tiny("{float: [1.0e-4, 3.0e-2], log: true}", "{categorical: [0.02]}")
    space.write_text(space.read_text().replace("[[1], [1, 3]]", "[[1, 3]]"))
    results = tmp_path / "results"
    output = run("--space", space, "--results", results, "--trials", 5)
    assert states(results) == ["COMPLETE"] * 5, output
    (record,) = iter_records(results)
    assert len(record["history"]) == 4
    log = (cell_folder(results, record["id"]) / "log.txt").read_text()
    assert log.count("attempt") == 1


def wait_for(condition, seconds=180):
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return result


def at_work(results):
    return [
        path.parent
        for path in results.glob("cells/*/checkpoint.pt")
        if not (path.parent / "record.json").exists()
    ]


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_search_goes_on_with_its_trials(how, tiny, tmp_path):
    space = tiny("epochs: 4", "epochs: 12", more="sampler: random")
    results = tmp_path / "results"
    arguments = ("--space", space, "--results", results, "--trials", 4, "--pruner", "none")
    process = start(*arguments)
    wait_for(lambda: at_work(results))
    if how == signal.SIGKILL:
        os.killpg(process.pid, how)
    else:
        process.send_signal(how)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == (-9 if how == signal.SIGKILL else 130), output
    running = [t for t in study_of(results).get_trials() if t.state.name == "RUNNING"]
    assert running
    kept = {trial.number: trial.params for trial in running}
    wait_for(lambda: not _workers(results))

    output = run(*arguments)
    trials = study_of(results).get_trials()
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 4, output
    for number, params in kept.items():
        assert f"trial {number} goes on" in output
        assert trials[number].params == params
    logs = "".join(path.read_text() for path in results.glob("cells/*/log.txt"))
    assert "resuming" in logs


def _workers(results):
    """Processes that still hold the lock of a cell."""
    from studies.worker import is_locked

    return [path for path in results.glob("cells/*") if is_locked(path)]


@pytest.mark.slow
def test_a_worker_that_dies_is_started_again(tiny, tmp_path):
    space = tiny("epochs: 4", "epochs: 12")
    results = tmp_path / "results"
    process = start("--space", space, "--results", results, "--trials", 1, "--pruner", "none")
    folder = wait_for(lambda: at_work(results))[0]
    owner = (folder / "lock").read_text()
    os.kill(int(re.search(r"process (\d+)", owner)[1]), signal.SIGKILL)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert states(results) == ["COMPLETE"]
    assert "resuming" in (folder / "log.txt").read_text()


@pytest.mark.slow
def test_a_second_driver_of_a_search_is_refused(tiny, tmp_path):
    space = tiny("epochs: 4", "epochs: 12")
    results = tmp_path / "results"
    arguments = ("--space", space, "--results", results, "--trials", 1, "--pruner", "none")
    process = start(*arguments)
    wait_for(lambda: at_work(results))
    assert "another process is running the search" in run(*arguments, code=2)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output


@pytest.mark.slow
def test_a_trial_that_cannot_run_fails_alone(tiny, tmp_path):
    # With the greater weight decay, weights grow ninefold with every step.
    space = tiny(
        "  model.scales: {",
        "  training.weight_decay: {categorical: [0.0, 1.0]}\n  model.scales: {",
    )
    space.write_text(
        space.read_text()
        .replace("{float: [1.0e-4, 3.0e-2], log: true}", "{categorical: [10.0]}")
        .replace("warmup_epochs: 0", "warmup_epochs: 0, schedule: constant")
        .split("start_with")[0]
        + "sampler: grid\n"
    )
    results = tmp_path / "results"
    output = run("--space", space, "--results", results, "--pruner", "none", "--trials", 9)
    assert sorted(states(results)) == ["COMPLETE"] * 2 + ["FAIL"] * 2, output
    assert "TrainingDiverged" in output
    assert len(collect_search(results, "tiny").complete) == 2


@pytest.mark.slow
def test_a_database_holds_the_study_too(tiny, tmp_path):
    results = tmp_path / "results"
    url = f"sqlite:///{tmp_path}/study.db"
    arguments = ("--space", tiny(), "--results", results, "--trials", 2, "--storage", url)
    run(*arguments)
    assert len(collect_search(results, "tiny").trials) == 2
    assert not (search_folder(results, "tiny") / "study.journal").exists()
    assert "sqlit:///x: " in run(*arguments[:-1], "sqlit:///x", code=2)


def played(space, storage, seed=1, trials=None):
    """A ledger whose trials have measures that follow from the options: the front is known."""
    ledger = Ledger.open(space, str(storage), seed)
    while proposal := ledger.propose():
        distance = abs(np.log10(proposal.chosen["training.lr"]) + 2)
        wide = proposal.chosen["model.scales"] == "[1, 3]"
        measures = {"accuracy": 0.9 - distance / 10 + 0.02 * wide, "energy_mj": 1.0 + wide}
        ledger.complete(proposal.number, measures | {"parameters": 5000.0})
    return ledger


def test_null_is_a_value_that_was_chosen(tiny, tmp_path):
    varied = "  training.clip_grad: {categorical: [null, 1.0]}\n  training.lr: {float"
    space = load_space(str(tiny("  training.lr: {float", varied)), sampler="random", trials=8)
    folder = search_folder(tmp_path, space.name)
    played(space, folder / "study.journal")
    write_search(tmp_path, manifest(space, "study.journal"))
    search = collect_search(tmp_path, space.name)
    assert set(search.trials["training.clip_grad"]) == {"none", 1.0}
    table = trial_table(search)
    place = table.headers.index("clip grad")
    assert {row[place].text for row in table.rows} == {"none", "1"}
    panel = next(a for a in search_figures.slices(search).axes if a.get_xlabel() == "clip grad")
    assert [t.get_text() for t in panel.get_xticklabels()] == ["1.0", "none"]


@pytest.mark.parametrize(
    "sampler", ["tpe", pytest.param("gp", marks=pytest.mark.slow), "nsga2", "random"]
)
def test_every_sampler_uses_the_budget(sampler, tiny, tmp_path):
    ledger = played(load_space(str(tiny()), sampler=sampler, trials=30), tmp_path / "j")
    assert len(ledger.study.get_trials()) == 30
    assert max(trial.values[0] for trial in ledger.study.best_trials) > 0.9


def test_the_default_sampler_learns(tiny, tmp_path):
    """Its later trials lie nearer to the best learning rate than those of chance."""
    spread = {}
    for sampler in ("tpe", "random"):
        rates = []
        for seed in range(3):
            space = load_space(str(tiny()), sampler=sampler, trials=30)
            ledger = played(space, tmp_path / f"{sampler}{seed}", seed)
            rates += [t.params["training.lr"] for t in ledger.study.get_trials()[15:]]
        spread[sampler] = np.mean(np.abs(np.log10(rates) + 2))
    assert spread["tpe"] < 0.7 * spread["random"], spread


def test_a_search_that_goes_on_draws_something_new(tiny, tmp_path):
    for budget in (6, 12):
        space = load_space(str(tiny()), sampler="random", trials=budget)
        ledger = played(space, tmp_path / "j")
    rates = [trial.params["training.lr"] for trial in ledger.study.get_trials()]
    assert len(set(rates)) == 12


def test_a_grid_goes_on_with_the_points_that_are_left(tiny, tmp_path):
    path = tiny("{float: [1.0e-4, 3.0e-2], log: true}", "{categorical: [0.01, 0.02]}")
    for budget, expected in ((2, 2), (3, 3), (9, 4)):
        ledger = played(load_space(str(path), sampler="grid", trials=budget), tmp_path / "j")
        run = ledger.study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
        assert len({tuple(trial.params.values()) for trial in run}) == len(run) == expected
    assert ledger.left() == 0


def test_failed_trials_count_and_say_why(tiny, tmp_path):
    path = tiny("training.lr: {float: [1.0e-4, 3.0e-2], log: true}", "model.dim: {int: [16, 64]}")
    path.write_text(path.read_text().split("start_with")[0])
    ledger = Ledger.open(load_space(str(path), trials=12), str(tmp_path / "j"), seed=1)
    while proposal := ledger.propose():
        ledger.fail(proposal.number, "no reason")
    assert [t.state.name for t in ledger.study.get_trials()] == ["FAIL"] * 12
    assert ledger.impossible
    assert all("dim" in problem for _, problem in ledger.impossible)


@pytest.mark.parametrize("pruner", ["asha", "hyperband", "median"])
def test_pruners_stop_what_is_worse_than_all_earlier_trials(pruner, tiny, tmp_path):
    """The scheduler that a search starts with has seen the trials of the study."""
    space = load_space(str(tiny()), sampler="random", pruner=pruner, trials=40)
    ledger = Ledger.open(space, str(tmp_path / "j"), seed=1)
    for _ in range(20):
        proposal = ledger.propose()
        for epoch in (1, 2, 3, 4):
            ledger.epoch(proposal.number, epoch, 0.5 + 0.1 * epoch)
        ledger.prune(proposal.number)
    scheduler = make_scheduler(space, ledger)
    decisions = {}
    for name, value in (("good", 0.99), ("bad", 0.01)):
        stopped = 0
        for number in range(10):  # HyperBand's brackets are drawn
            trial = PastTrial(f"{name}{number}")
            scheduler.on_trial_add(None, trial)
            told = (
                scheduler.on_trial_result(None, trial, {"epoch": epoch, "value": value})
                for epoch in (1, 2, 3)
            )
            stopped += "STOP" in told  # asks no further
        decisions[name] = stopped
    assert decisions["good"] == 0
    assert decisions["bad"] >= (10 if pruner != "hyperband" else 1)


@pytest.mark.slow
def test_time_that_is_up_begins_no_trial_and_loses_none(tiny, tmp_path):
    results = tmp_path / "results"
    output = run("--space", tiny(), "--results", results, "--minutes", 0.001)
    assert "time is up" in output
    assert "COMPLETE" not in states(results)
    run("--space", tiny(), "--results", results, "--trials", 1)
    assert states(results).count("COMPLETE") == 1


def test_a_journal_cut_in_the_middle_of_a_line_goes_on(tiny, tmp_path):
    path = tmp_path / "study.journal"
    played(load_space(str(tiny()), trials=4), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert mend_journal(path)
    assert not mend_journal(path)
    assert (tmp_path / "study.journal.bak").read_bytes() == whole[:-20]
    ledger = played(load_space(str(tiny()), trials=6), path)
    assert len([t for t in ledger.study.get_trials() if t.state.name == "COMPLETE"]) == 6


def test_a_foreign_journal_is_refused_in_one_line(tiny, tmp_path, capsys):
    journal = tmp_path / "results" / "searches" / "tiny" / "study.journal"
    journal.parent.mkdir(parents=True)
    journal.write_text("foreign\n")
    assert main(["--space", str(tiny()), "--results", str(tmp_path / "results")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{journal}: no readable Optuna study" in error


def test_a_password_is_not_written_down(tiny, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--space", str(tiny()), "--storage", "postgresql://me:secret@host/db"])
    error = capsys.readouterr().err
    assert "PGPASSWORD" in error
    assert "secret" not in error


def test_repeated_trials_are_on_no_front(tiny, tmp_path):
    path = tiny("{float: [1.0e-4, 3.0e-2], log: true}", "{categorical: [0.01, 0.02]}")
    results, journal = tmp_path / "results", tmp_path / "j"
    space = load_space(str(path), sampler="random", trials=20)
    played(space, journal)
    write_search(results, manifest(space, str(journal)))
    search = collect_search(results, "tiny")
    kept = search.trials[search.trials["same_as"].isna()]
    assert len(kept) == 4
    assert set(search.front["number"]) <= set(kept["number"])
    assert len(best_trials(search, 10)) == 4


@pytest.mark.slow
def test_best_trials_of_another_space_are_not_written(searched, tmp_path, capsys):
    results, _, _ = searched
    path = tmp_path / "tiny.yaml"
    path.write_text(textwrap.dedent(TINY).replace("dim: 16", "dim: 32"))
    arguments = ["--space", str(path), "--results", str(results), "--best", "1"]
    assert main([*arguments, "--grid-out", str(tmp_path / "g.yaml")]) == 2
    assert "base changed since the search was run" in capsys.readouterr().err
    arguments[1] = str(searched[1])
    assert main([*arguments, "--grid-out", str(path)]) == 2
    assert "was not written by a search" in capsys.readouterr().err
    assert "objectives" in path.read_text()


def test_a_comparison_says_what_the_repetitions_say(tiny, tmp_path, capsys):
    results, names = tmp_path / "results", {}
    for sampler in ("tpe", "random"):
        names[sampler] = [f"tiny-{sampler}-{seed}" for seed in range(2)]
        for seed, name in enumerate(names[sampler]):
            space = load_space(str(tiny()), sampler=sampler, trials=10, name=name)
            played(space, tmp_path / name, seed)
            write_search(results, manifest(space, str(tmp_path / name)))
    report(results, space, names, tmp_path / "out")
    text = (tmp_path / "out" / "hypervolume.md").read_text()
    assert text in capsys.readouterr().out
    assert "95% t interval of the difference" in text
    curves = pd.read_csv(tmp_path / "out" / "hypervolume.csv")
    assert len(curves) == 2 * 2 * 10
    assert (curves.groupby(["sampler", "repeat"])["hypervolume"].diff().dropna() >= 0).all()
    assert curves["hypervolume"].between(0, 1).all()
    assert (tmp_path / "out" / "hypervolume.png").stat().st_size > 5000


def test_constraints_keep_trials_off_the_front(tiny, tmp_path):
    space = load_space(str(tiny("parameters <= 10000", "energy_mj <= 1.5")), trials=10)
    ledger = Ledger.open(space, str(tmp_path / "c.journal"), seed=1)
    while proposal := ledger.propose():
        wide = proposal.chosen["model.scales"] == "[1, 3]"
        ledger.complete(proposal.number, {"accuracy": 0.8 + 0.1 * wide, "energy_mj": 1.0 + wide})
    assert {trial.params["model.scales"] for trial in ledger.study.best_trials} == {"[1]"}


def test_means_over_seeds_are_the_score():
    cells = [make_cell({"name": "msvit", "scales": [1]}, seed) for seed in (0, 1)]
    records = [make_record(cell, 0.9, 0.1 * (1 + cell.seed)) for cell in cells]
    for record, accuracy in zip(records, (0.5, 0.7), strict=True):
        record["history"][1]["val_accuracy"] = accuracy
        record["cell"]["training"]["batch_size"] = 32
    measures = mean_measures(records)
    assert measures["accuracy"] == pytest.approx(0.6)
    assert measures["energy_mj"] == pytest.approx(0.15)
    assert measures["test_accuracy"] == 0.9
    assert measures["step_time"] == pytest.approx(32 / records[0]["images_per_second"])


@pytest.mark.slow
def test_several_seeds_of_a_trial_are_cells_of_their_own(tiny, tmp_path):
    results = tmp_path / "results"
    run("--space", tiny(more="seeds: 2"), "--results", results, "--trials", 1)
    (trial,) = study_of(results).get_trials()
    records = [read_record(results, cell) for cell in trial.user_attrs["cells"]]
    assert [record["cell"]["seed"] for record in records] == [0, 1]
    assert trial.values[0] == mean_measures(records)["accuracy"]


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=12),
    st.integers(0, 2**16),
)
@settings(max_examples=50, deadline=None, derandomize=True, database=None)
def test_hypervolume_is_the_dominated_share_of_the_square(points, seed):
    samples = np.random.default_rng(seed).random((4000, 2))
    losses = np.array(points).reshape(-1, 2)
    dominated = (losses[None] <= samples[:, None]).all(-1).any(1).mean() if points else 0.0
    assert hypervolume(losses) == pytest.approx(dominated, abs=0.05)


def test_importance_asks_what_makes_a_trial_good(tiny, tmp_path):
    """The learning rate decides what is best, the scales what is worst; and about energy."""
    results = tmp_path / "results"
    space = load_space(str(tiny()), trials=40, sampler="random")
    storage = str(tmp_path / "i.journal")
    ledger = Ledger.open(space, storage, seed=1)
    while proposal := ledger.propose():
        lr = np.log10(proposal.chosen["training.lr"])
        wide = proposal.chosen["model.scales"] == "[1, 3]"
        accuracy = 0.9 + lr / 100 if lr > -1.8 else 0.5 - 0.1 * wide
        measures = {"accuracy": accuracy, "energy_mj": 1.0 + wide}
        ledger.complete(proposal.number, measures | {"parameters": 5000.0})
    write_search(results, manifest(space, storage))
    figure = search_figures.importance(collect_search(results, "tiny"))
    widths = {
        (bars.get_label(), place): bar.get_width()
        for bars in figure.axes[0].containers
        for place, bar in zip(("scales", "lr"), bars, strict=True)
    }
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["scales", "lr"]  # barh counts from below: the more important one on top
    assert widths["validation accuracy", "lr"] > 0.7
    assert widths["energy", "scales"] > 0.7


@pytest.mark.slow
def test_the_pareto_figure_marks_published_results(searched, monkeypatch):
    results, _, _ = searched
    search = collect_search(results, "tiny")
    assert "no published result on digits" in _text(search_figures.pareto(search))
    cifar = Search(**{**vars(search), "data": "cifar10"})
    text = _text(search_figures.pareto(cifar))
    assert "msvit-4-384†" in text
    assert "energy not published" in text


def _text(figure):
    from matplotlib.text import Text

    return " ".join(artist.get_text() for artist in figure.findobj(Text))


@pytest.mark.slow
def test_the_manifest_says_where_everything_is(searched):
    results, space, _ = searched
    content = json.loads((search_folder(results, "tiny") / "search.json").read_text())
    assert content["space_file"] == str(space)
    assert content["objectives"][0] == ["accuracy", "maximize"]
    assert content["storage"] == "study.journal"  # the folder may be moved
