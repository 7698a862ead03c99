"""``studies/run.py`` from outside: real processes, real Ray, tiny real cells."""

import contextlib
import copy
import json
import os
import pty
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from msvit.cells import Cell, resolve_cell
from msvit.data import data_options
from msvit.records.schema import RecordError
from msvit.records.store import (
    cell_folder,
    iter_failures,
    iter_records,
    read_failure,
    read_record,
    write_failure,
    write_record,
)
from msvit.training import train_cell
from studies.cluster import Place
from studies.executor import RESUBMISSIONS, run_cells
from studies.grids import load_study
from studies.hpo import main as search
from studies.progress import Display
from studies.run import main
from studies.worker import failure_of, run_cell
from tests.results_folder import make_record

ROOT = Path(__file__).resolve().parent.parent
RUN = ROOT / "studies" / "run.py"

TINY = """
question: Does it run?
base:
  model: {name: msvit, dim: 16, heads: 2, depths: [1, 1], widths: [0.5, 1.0], timesteps: 2}
  data: {name: digits, image_size: 8, train_per_class: 13}
  training: {epochs: 3, batch_size: 16}
axes:
  model.scales: [[1], [1, 3]]
seeds: 2
"""
BROKEN = """
include:
  - label: too fast  # weights grow ninefold with every step
    training: {lr: 10, weight_decay: 1, schedule: constant, warmup_epochs: 0}
"""


@pytest.fixture
def tiny(tmp_path):
    """A grid of four tiny cells."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


def command(*arguments):
    return [sys.executable, str(RUN), *map(str, arguments)]


def start(*arguments, **environment):
    # In a session of its own, so that signals reach this run and nothing else.
    return subprocess.Popen(
        command(*arguments),
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run(*arguments, code=0, **environment):
    process = start(*arguments, **environment)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code, output
    assert "Traceback" not in output, output
    return output


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return result


def cells_at_work(results):
    """Folders of cells that have finished an epoch but have no record."""
    return [
        path.parent
        for path in results.glob("cells/*/checkpoint.pt")
        if not (path.parent / "record.json").exists()
    ]


def comparable(results):
    """All records, without what may differ between two runs of one cell."""
    records = {}
    for record in iter_records(results):
        record = copy.deepcopy(record)
        for row in record["history"]:
            del row["seconds"]
        for key in (
            *("training_seconds", "images_per_second", "data_wait"),
            *("peak_memory_gb", "environment"),
        ):
            del record[key]
        records[record["id"]] = record
    return records


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A study of four good cells and two whose training diverges, run once."""
    folder = tmp_path_factory.mktemp("undisturbed")
    # Started in a folder whose packages must not be mistaken for ours.
    for name in ("msvit", "studies"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("raise RuntimeError('the wrong package')")
    grid = folder / "mixed.yaml"
    grid.write_text(TINY + BROKEN)
    with contextlib.chdir(folder):
        output = run("--grid", grid.name, "--results", "results", "--tensorboard", code=1)
    return folder / "results", grid, output


def test_the_time_left_is_that_of_training_alone(tiny, monkeypatch, capsys):
    """Ray's start, here of 100 s, says nothing about an epoch, here of 10 s."""
    now = [0.0]
    monkeypatch.setattr("studies.progress.time.monotonic", lambda: now[0])
    entry, other = load_study(str(tiny), ["model.scales=[1]"]).cells
    display = Display([entry, other], 0, 2)
    now[0] = 100.0
    for epoch in range(4):
        display.epoch(entry, {"epoch": epoch, "epochs": 3})
        now[0] += 10.0 * (epoch < 3)
    display.finished(entry, bare_record(entry.cell))
    assert "about 0:30 left" in capsys.readouterr().out


def test_nothing_is_said_of_time_before_an_epoch_tells(tiny, monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("studies.progress.time.monotonic", lambda: now[0])
    (entry,) = load_study(str(tiny), ["model.scales=[1]"], seeds=1).cells
    display = Display([entry], 0, 1)
    display.epoch(entry, {"epoch": 0, "epochs": 3})
    now[0] = 100.0
    display.update()
    assert capsys.readouterr().out == "[0/1] running: msvit scales=1 seed 0 epoch 0/3\n"


@pytest.mark.slow
def test_a_study_trains_reports_and_goes_on_past_a_failing_cell(undisturbed):
    results, _, output = undisturbed
    assert len(list(iter_records(results))) == 4
    failures = list(iter_failures(results))
    assert [failure["error"] for failure in failures] == ["TrainingDiverged"] * 2
    assert "train_cell" in failures[0]["traceback"]
    log = cell_folder(results, failures[0]["id"]) / "log.txt"
    assert "TrainingDiverged: epoch 2, step" in log.read_text()
    assert str(log.relative_to(results.parent)) in output
    assert "2 of 6 cells failed" in output
    # One row per configuration, with both seeds.
    assert re.search(r"msvit scales=1,3 .*2/2", output)
    study = results / "studies" / "mixed"
    assert (study / "table.md").exists()
    assert list(study.glob("figures/*.png"))


@pytest.mark.slow
def test_progress_is_a_line_per_cell_where_the_output_is_no_terminal(undisturbed):
    *_, output = undisturbed
    lines = re.findall(r"^\[\d/6\] .*seed \d: .*$", output, re.MULTILINE)
    assert len(lines) == 6
    assert sum("test accuracy" in line for line in lines) == 4
    assert sum("FAILED, TrainingDiverged" in line for line in lines) == 2
    assert "\x1b" not in output


@pytest.mark.slow
def test_the_log_of_a_cell_has_every_epoch(undisturbed):
    results, *_ = undisturbed
    for record in iter_records(results):
        folder = cell_folder(results, record["id"])
        epochs = [json.loads(line) for line in (folder / "progress.jsonl").open()]
        assert [line["epoch"] for line in epochs] == [0, 1, 2, 3]
        assert (folder / "log.txt").read_text().count("val_accuracy") == 3


@pytest.mark.slow
def test_tensorboard_shows_what_cells_report_and_what_failed_cells_did(undisturbed):
    results, grid, output = undisturbed
    folder = results / "tensorboard" / grid.stem
    assert "tensorboard --logdir results/tensorboard/mixed" in output
    kinds = [path.suffix for path in folder.glob("*/seed */events.out.tfevents.*")]
    assert sorted(kinds) == 6 * [".epochs"] + 4 * [".results"]


@pytest.mark.slow
def test_a_second_run_trains_nothing_and_starts_neither_ray_nor_torch(undisturbed):
    results, grid, _ = undisturbed
    before = {path: path.stat().st_mtime_ns for path in results.glob("cells/*/*")}
    code = (
        "import sys; from studies.run import main\n"
        f"assert main(['--grid', {str(grid)!r}, '--results', {str(results)!r}]) == 1\n"
        "assert not {'torch', 'ray'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    assert {path: path.stat().st_mtime_ns for path in results.glob("cells/*/*")} == before


@pytest.mark.slow
def test_a_reader_may_leave_early(undisturbed):
    _, grid, _ = undisturbed
    hpo = RUN.with_name("hpo.py")
    for given in (
        command("--grid", grid, "--dry-run"),
        command("--list"),
        [sys.executable, str(hpo), "--space", "scales", "--dry-run"],
        [sys.executable, str(hpo), "--list"],
        [sys.executable, "-m", "msvit.models"],
    ):
        driver = subprocess.Popen(
            given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
        driver.stdout.close()  # before a line is there
        assert driver.stderr.read() == "", given
        assert driver.wait(60) == 0
    closed = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *command("--list")])
    assert closed.returncode == 0


@pytest.mark.slow
def test_a_dry_run_shows_what_is_done_and_imports_no_torch(undisturbed):
    results, grid, _ = undisturbed
    code = (
        "import sys; from studies.run import main\n"
        f"main(['--grid', {str(grid)!r}, '--results', {str(results)!r}, '--dry-run'])\n"
        "main(['--list'])\n"
        "assert not {'torch', 'ray', 'pandas', 'matplotlib'} & set(sys.modules)\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True
    )
    for entry in load_study(str(grid)).cells:
        state = "failed" if entry.group == "too fast" else "done"
        assert f"{entry.cell.id}  seed {entry.cell.seed}  {state}" in process.stdout
    assert "scales=1,3" in process.stdout
    assert "How many attention scales" in process.stdout


@pytest.mark.slow
def test_a_study_stopped_by_ctrl_c_and_then_killed_ends_as_if_undisturbed(
    undisturbed, tiny, tmp_path
):
    results = tmp_path / "results"
    arguments = ("--grid", tiny, "--results", results)

    process = start(*arguments)
    wait_for(lambda: cells_at_work(results))
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "the same command goes on" in output
    assert "Traceback" not in output

    process = start(*arguments)
    wait_for(lambda: list(iter_records(results)) and cells_at_work(results))
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    done = {path: path.stat().st_mtime_ns for path in results.glob("cells/*/record.json")}
    assert 0 < len(done) < 4

    run(*arguments)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    reference = comparable(undisturbed[0])
    assert comparable(results) == {cell: reference[cell] for cell in comparable(results)}
    assert len(comparable(results)) == 4


@pytest.mark.slow
def test_a_killed_worker_is_started_again_and_two_drivers_share_the_work(
    undisturbed, tiny, tmp_path
):
    results = tmp_path / "results"
    arguments = ("--grid", tiny, "--results", results)
    drivers = [start(*arguments), start(*arguments)]
    victim = wait_for(lambda: cells_at_work(results))[0]
    pid = int(re.search(r"process (\d+)", (victim / "lock").read_text())[1])
    os.kill(pid, signal.SIGKILL)
    outputs = [driver.communicate(timeout=300)[0] for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], outputs
    assert sum("its process died" in output for output in outputs) == 1, outputs

    reference = comparable(undisturbed[0])
    assert comparable(results) == {cell: reference[cell] for cell in comparable(results)}
    for folder in results.glob("cells/*"):
        trained = (folder / "log.txt").read_text().count("attempt")
        assert trained == (2 if folder == victim else 1)


@pytest.mark.slow
def test_a_failed_cell_is_run_again_only_when_asked_and_bars_show_it(tiny, tmp_path):
    one = ("--grid", tiny, "--results", tmp_path, "--seeds", 1, "--set", "model.scales=[1]")
    cell = load_study(str(tiny), ["model.scales=[1]"], seeds=1).cells[0].cell
    write_failure(tmp_path, failure_of(cell, "ValueError", "no luck", "Traceback", 1))
    assert "no luck" in run(*one, code=1)
    assert read_record(tmp_path, cell.id) is None

    screen, terminal = pty.openpty()
    process = subprocess.Popen(
        command(*one, "--retry-failed"),
        stdout=terminal,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "100"},
        start_new_session=True,
    )
    os.close(terminal)
    shown = b""
    with contextlib.suppress(OSError):  # what Linux says when the other end is closed
        while chunk := os.read(screen, 65536):
            shown += chunk
    os.close(screen)
    assert process.wait(timeout=60) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert re.search(r"cells .*0/1 ", text)
    assert re.search(r"msvit scales=1 seed 0 .*epoch \d/3", text)
    assert read_record(tmp_path, cell.id) is not None
    assert read_failure(tmp_path, cell.id) is None


CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
print("at", cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.mark.slow
def test_a_study_runs_on_a_cluster_that_is_there(undisturbed, tiny, tmp_path):
    environment = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    cluster = subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        env=os.environ | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        address = next(line for line in cluster.stdout if line.startswith("at ")).split()[1]
        arguments = ("--grid", tiny, "--results", tmp_path, "--seeds", 1, "--address", address)
        run(*arguments, "--set", "model.scales=[1]", **environment)
    finally:
        cluster.communicate()
    (record,) = comparable(tmp_path).items()
    assert record in comparable(undisturbed[0]).items()


@pytest.mark.slow
def test_a_study_runs_where_ray_was_imported_before(tiny, tmp_path):
    """As in a notebook, or after other tests: Ray has read its settings and reads no others."""
    arguments = ["--grid", str(tiny), "--results", str(tmp_path), "--seeds", "1"]
    code = (
        "import ray, sys; from studies.run import main\n"
        f"sys.exit(main({arguments!r} + ['--set', 'model.scales=[1]']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        start_new_session=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(comparable(tmp_path)) == 1


def bare_record(cell):
    return {
        "schema": 1,
        "id": cell.id,
        "cell": cell.as_dict(),
        "parameters": 1,
        "history": [],
        "selected_epoch": 1,
        "test": {"images": 1, "loss": 1.0, "accuracy": 0.5},
        "firing": [],
        "firing_rate": 0.1,
        "operations": [],
        "training_seconds": 1.0,
        "images_per_second": 1.0,
        "peak_memory_gb": 0.1,
        "precision": "fp32",
        "kernels": "off",
        "environment": {},
    }


@pytest.mark.slow
def test_endings_of_a_process_are_told_apart(tmp_path, tiny):
    def train(cell, folder, **_):
        with (folder / "starts").open("a") as file:
            file.write("x")
        if cell.seed == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if cell.seed == 2:
            raise ValueError("first line\nsecond line")
        if cell.seed == 3:
            sys.exit("a library that exits")
        return bare_record(cell)

    entries = load_study(str(tiny), ["model.scales=[1]"], seeds=4).cells
    display = Display(entries, 0, len(entries))
    run_cells(entries, tmp_path / "results", Place(), display, train=train)

    def starts(seed):
        return (cell_folder(tmp_path / "results", entries[seed].cell.id) / "starts").stat().st_size

    failures = [read_failure(tmp_path / "results", entry.cell.id) for entry in entries]
    assert read_record(tmp_path / "results", entries[0].cell.id) == bare_record(entries[0].cell)
    assert [failure and failure["error"] for failure in failures] == [
        None,
        "WorkerCrashedError",
        "ValueError",
        "WorkerCrashedError",
    ]
    assert [starts(seed) for seed in range(4)] == [1, 1 + RESUBMISSIONS, 1, 1 + RESUBMISSIONS]
    assert failures[1]["attempts"] == 1 + RESUBMISSIONS
    assert "died" in failures[1]["message"]
    assert "second line" in failures[2]["traceback"]


@pytest.mark.slow
def test_a_full_disk_ends_the_study_in_one_line(tmp_path, tiny):
    def train(cell, folder, **_):
        raise RecordError(f"{folder}/record.json: cannot be written (No space left on device).")

    entries = load_study(str(tiny)).cells
    with pytest.raises(RecordError) as caught:
        run_cells(entries, tmp_path, Place(), Display(entries, 0, 4), train=train)
    assert len(str(caught.value).splitlines()) == 1
    assert not list(iter_failures(tmp_path))


def after_the_first_epoch(injure):
    """``train_cell``, but something happens to its process after the first epoch."""

    def train(cell, folder, *, data_dir, report):
        def reported(progress):
            report(progress)
            injure()

        return train_cell(cell, folder, data_dir=data_dir, report=reported)

    return train


def fill_the_disk():
    """No file of this process may grow beyond 10 kB."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))


@pytest.mark.slow
def test_a_full_disk_and_an_old_failure_of_it_leave_the_record_that_was_due(
    undisturbed, tiny, tmp_path
):
    (entry,) = load_study(str(tiny), ["model.scales=[1]"], seeds=1).cells
    display, train = Display([entry], 0, 1), after_the_first_epoch(fill_the_disk)
    with pytest.raises(RecordError, match="cannot be written"):
        run_cells([entry], tmp_path, Place(), display, train=train)
    assert not list(iter_failures(tmp_path))
    assert cells_at_work(tmp_path)

    # Earlier versions have kept the library's word as the cell's failure.
    broken = "[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"
    write_failure(tmp_path, failure_of(entry.cell, "RuntimeError", broken, "", 1))
    run("--grid", tiny, "--results", tmp_path, "--seeds", 1, "--set", "model.scales=[1]")
    assert "resuming" in (cell_folder(tmp_path, entry.cell.id) / "log.txt").read_text()
    assert comparable(tmp_path).items() <= comparable(undisturbed[0]).items()
    assert len(comparable(tmp_path)) == 1


@pytest.mark.slow
def test_ray_that_dies_and_readers_that_go_leave_the_records_that_were_due(
    undisturbed, tiny, tmp_path
):
    """Under a TMPDIR too long for sockets, Ray's head is killed; then nobody can read a line."""
    results, folder = tmp_path / "results", tmp_path / ("x" * 120)
    folder.mkdir()
    process = start("--grid", tiny, "--results", results, "--seeds", 1, TMPDIR=str(folder))
    wait_for(lambda: list(results.glob("cells/*/progress.jsonl")))
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (head,) = (p for p in map(int, children) if "gcs_server" in Path(f"/proc/{p}/comm").read_text())
    os.kill(head, signal.SIGKILL)
    killed = time.monotonic()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2, output
    assert time.monotonic() - killed < 30
    told = output[output.index("running 2 cells") :].splitlines()[1:]
    assert told[-1].startswith("error: Ray has died"), output
    assert all(line.startswith("[") and "/2]" in line for line in told[:-1]), output

    with open("/dev/full", "w") as full:
        again = subprocess.run(
            command("--grid", tiny, "--results", results, "--seeds", 1),
            env=os.environ | {"PYTHONIOENCODING": "ascii"},
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=300,
        )
    assert (again.returncode, again.stderr) == (0, b"")
    reference = comparable(undisturbed[0])
    assert comparable(results) == {cell: reference[cell] for cell in comparable(results)}
    assert len(comparable(results)) == 2


@pytest.fixture
def cell():
    return Cell({"name": "msvit"}, {"name": "digits"}, {"epochs": 1}, 0)


def test_a_worker_without_the_drivers_disk_returns_the_record(cell, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "file").write_text("")
    unreachable = str(tmp_path / "file" / "results")
    outcome = run_cell(cell.as_dict(), unreachable, train=lambda cell, *_, **__: bare_record(cell))
    assert outcome == {"record": bare_record(cell)}


def test_all_output_of_a_cell_goes_to_its_log(cell, tmp_path, capfd):
    def train(cell, folder, *, data_dir, report):
        print("from Python")
        os.system("echo from a child")
        os.write(2, b"from C\n")
        report({"epoch": 1, "epochs": 1, "val_accuracy": 0.5})
        return bare_record(cell)

    run_cell(cell.as_dict(), str(tmp_path), train=train)
    log = (cell_folder(tmp_path, cell.id) / "log.txt").read_text()
    assert all(text in log for text in ("from Python", "from a child", "from C", "val_accuracy"))
    print("outside")
    assert capfd.readouterr() == ("outside\n", "")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["--grid", "--list"]),
        (["--grid", "x" * 300 + ".yaml"], ["no such grid file"]),
        (["--grid", "scales", "--data-dir", "y" * 300], ["--data-dir", "no such folder"]),
        (["--grid", "scale"], ["'scale'", "'scales'"]),
        (["--grid", "nowhere.yaml"], ["nowhere.yaml"]),
        (["--grid", "scales", "--set", "training.epoch=2"], ["'training.epochs'"]),
        (["--grid", "scales", "--set", "training.compile=default"], ["compile", "CUDA graph"]),
        (["--grid", "scales", "--set", "training.epochs=-2"], ["epochs", "-2"]),
        (["--grid", "scales", "--set", "training.lr=.nan"], ["training.lr"]),
        (["--grid", "scales", "--set", "model.name=resnet"], ["resnet", "msvit"]),
        (["--grid", "scales", "--set", "model.dim=1000000000"], ["dim", "1000000000"]),
        (["--grid", "scales", "--data-dir", "/nowhere"], ["--data-dir", "/nowhere"]),
        (["--grid", "scales", "--results", "/dev/null"], ["/dev/null", "--results"]),
        (["--grid", "scales", "--results", "/proc/nowhere"], ["/proc/nowhere", "--results"]),
        (["--grid", "scales", "--address", "127.0.0.1:9"], ["127.0.0.1:9", "no Ray cluster"]),
        (["--grid", "scales", "--address", "here"], ["here", "HOST:PORT"]),
        (["--grid", "scales", "--cpus-per-cell", "4000"], ["--cpus-per-cell 4000", "--address"]),
    ],
)
def test_wrong_input_ends_in_one_line(arguments, parts, tmp_path, capsys):
    results = [] if "--results" in arguments else ["--results", str(tmp_path)]
    assert main([*arguments, *results]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert len(message.splitlines()) == 1
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--grid", "scales", "--seeds", "0"], ["--seeds", "'0'"]),
        (["--grid", "scales", "--seeds", "many"], ["--seeds", "'many'"]),
        (["--grid", "scales", "--cpus-per-cell", "nan"], ["--cpus-per-cell", "'nan'"]),
        (["--grid", "scales", "--gpus-per-cell", "1.5"], ["--gpus-per-cell", "'1.5'"]),
        (["--grid", "scales", "--result", "x"], ["--result"]),
        (["--grid", "scales", "--grid", "timesteps"], ["--grid", "given twice"]),
        (["--grid", "scales", "--seeds", "2", "--seeds=3"], ["--seeds", "given twice"]),
        (["--grid", "scales", "--results", ""], ["--results", "empty"]),
        (["--grid", "scales", "--results="], ["--results", "empty"]),
        (["--grid", "scales", "--data-dir", " "], ["--data-dir", "empty"]),
    ],
)
def test_a_wrong_command_line_ends_in_one_line(arguments, parts, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1
    assert all(part in message for part in parts), message


def test_a_damaged_record_ends_the_run_before_anything_starts(tmp_path, tiny, capsys):
    entry = load_study(str(tiny)).cells[1]
    path = cell_folder(tmp_path, entry.cell.id) / "record.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"schema": 1, "id"')
    assert main(["--grid", str(tiny), "--results", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert str(path) in message
    assert "Delete it" in message
    assert not (tmp_path / "studies").exists()


def image_folder(root, shade):
    """Ten classes of images of 32×32 pixels, as CIFAR-10 is laid out."""
    for split, count in (("train", 3), ("test", 1)):
        for label in range(10):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (32, 32), (shade, label, number)).save(folder / f"{number}.png")
    return root


def test_a_record_is_not_shown_for_other_images_than_its_own(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("studies.run._report", lambda study, records, energy: 0)
    grid = tmp_path / "mine.yaml"
    grid.write_text("question: Which images?\nbase: {model: {name: msvit}, data: {name: cifar10}}")
    here, there = (image_folder(tmp_path / f"{shade}", shade) for shade in (1, 2))
    cell = load_study(str(grid)).cells[0].cell
    images = data_options("cifar10", {}, "test").fingerprint(here)
    results = tmp_path / "results"
    given = ["--grid", str(grid), "--results", str(results)]
    record = make_record(cell, 0.5, 1e-3)
    write_record(results, record | {"data": images})

    assert main([*given, "--data-dir", str(here)]) == 0
    assert "1 done" in capsys.readouterr().out
    assert main(given) == 0  # a finished study needs no images
    capsys.readouterr()
    for more in ([], ["--dry-run"]):
        assert main([*given, "--data-dir", str(there), *more]) == 2
        out, error = capsys.readouterr()
        assert "done" not in out
        for part in (cell.id, images["digest"], f"--data-dir {there}", "--results"):
            assert part in error
        assert len(error.splitlines()) == 1

    write_record(results, record)  # as earlier versions wrote it
    assert main([*given, "--data-dir", str(there)]) == 0


def test_a_search_does_not_take_over_records_of_other_images(tmp_path, capsys):
    here, there = (image_folder(tmp_path / f"{shade}", shade) for shade in (1, 2))
    cell = resolve_cell({"model": {"name": "msvit"}, "data": {"name": "cifar10"}}, "test")
    images = data_options("cifar10", {}, "test").fingerprint(here)
    results = tmp_path / "results"
    write_record(results, make_record(cell, 0.5, 1e-3) | {"data": images})
    space = tmp_path / "mine.yaml"
    space.write_text(
        "question: Which?\nbase: {model: {name: msvit}, data: {name: cifar10}}\n"
        "parameters: {training.lr: {float: [0.001, 0.1]}}\nobjectives: {accuracy: maximize}\n"
    )
    given = ["--space", str(space), "--results", str(results), "--data-dir", str(there)]
    assert search(given) == 2
    assert f"{cell.id} was trained on other images" in capsys.readouterr().err
