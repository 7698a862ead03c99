"""What goes wrong around a study: readers, disks, data, Ray. It ends in one line, or not at all."""

import contextlib
import errno
import io
import os
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from analysis import report, search_report
from analysis.canvas import slug
from msvit.allotment import GPU_SHARE
from msvit.data import check_data
from msvit.models import __main__ as models
from msvit.options import ConfigError, DataError
from msvit.printing import forgiving, print_error
from msvit.records import faults
from msvit.records.faults import disk_error, is_of_surroundings
from msvit.records.schema import RecordError
from msvit.records.store import cell_folder, read_record, write_failure
from msvit.yaml_files import parse_yaml, read_yaml
from studies import baselines, cluster, hpo, run
from studies.grids import load_study
from studies.progress import Bars
from studies.search.space import load_space
from studies.worker import failure_of, run_cell
from tests.image_sets import class_folders, pixels
from tests.results_folder import Results
from tests.test_run import RUN, TINY, bare_record, tiny

__all__ = ["tiny"]  # a fixture

# ---- Printing ----------------------------------------------------------------------------------


def full_and_ascii():
    """A standard output on a full disk, in a locale of few characters."""
    return open("/dev/full", "w", encoding="ascii")


def pipe_without_reader():
    """A standard output whose reader is gone, in the same locale."""
    reading, writing = os.pipe()
    os.close(reading)
    return open(writing, "w", encoding="ascii", buffering=1)


@pytest.mark.slow
@pytest.mark.parametrize("output", [full_and_ascii, pipe_without_reader])
def test_no_command_ends_by_what_it_prints(output, tmp_path, monkeypatch):
    Results(tmp_path).add_seeds("msvit ±", {"name": "msvit", "scales": [1]}, [0.9], [0.1])
    for main, arguments, code in (
        (run.main, ["--list"], 0),
        (run.main, ["--grid", "scales", "--dry-run"], 0),
        (run.main, ["--grid", "nowhere"], 2),
        (hpo.main, ["--list"], 0),
        (hpo.main, ["--space", "scales", "--dry-run"], 0),
        (report.main, ["--grid", "scales", "--results", str(tmp_path)], 0),
        (search_report.main, ["--space", "scales", "--results", str(tmp_path)], 2),
        (baselines.main, ["--data", "digits", "--set", "data.image_size=7"], 2),
        (models.main, ["msvit_cifar10"], 0),
    ):
        with output() as stream:
            monkeypatch.setattr(sys, "stdout", stream)
            monkeypatch.setattr(sys, "stderr", stream)
            assert main(arguments) == code, (main, arguments)
            monkeypatch.undo()


def test_characters_that_a_locale_lacks_become_question_marks():
    written = io.BytesIO()
    stream = forgiving(io.TextIOWrapper(written, encoding="ascii"))
    stream.write("99.0 ± 0.7 %\n")
    stream.flush()
    assert written.getvalue() == b"99.0 ? 0.7 %\n"


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("--grid a\x1b[31m", "--grid a\\x1b[31m"),
        ("two\nlines\tand a bell\a", "two\nlines\tand a bell\\x07"),
        ("日本 ± 1", "日本 ± 1"),
        (os.fsencode("日本").decode("ascii", "surrogateescape"), "日本"),
        (repr(os.fsencode("日本").decode("ascii", "surrogateescape")), "'日本'"),
        ("\udcff", "�"),
        (r"C:\new", r"C:\new"),
    ],
)
def test_errors_move_no_cursor_and_show_what_was_typed(given, shown, capsys):
    print_error(given)
    assert capsys.readouterr().err == f"error: {shown}\n"


def test_arguments_that_are_refused_move_no_cursor(capsys):
    with pytest.raises(SystemExit):
        run.main(["--no\x1b[31m"])
    assert "--no\\x1b[31m" in capsys.readouterr().err
    assert run.main(["--grid", "scales", "--set", "model.dim\x1b[31m=3"]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_bars_outlive_their_terminal(tiny, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    entry = load_study(str(tiny)).cells[0]
    with open("/dev/full", "w") as screen:
        monkeypatch.setattr(sys, "stdout", forgiving(screen))
        with Bars([entry], 0, 1) as bars:
            bars.epoch(entry, {"epoch": 1, "epochs": 3})
            bars.update()
            bars.finished(entry, bare_record(entry.cell))
        monkeypatch.undo()


def test_a_cell_may_print_anything_into_its_log(tmp_path, monkeypatch, tiny):
    """Also where the process's locale has ASCII alone, and where the log's disk is full."""
    cell = load_study(str(tiny)).cells[0].cell

    def train(cell, folder, **_):
        print("0.5 µJ ± \udcff")
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
        for _ in range(3):
            print("more", flush=True)
        raise ValueError("scales 1 × 3")

    monkeypatch.setattr("locale.getpreferredencoding", lambda *_: "ascii")
    outcome = run_cell(cell.as_dict(), str(tmp_path), train=train)
    assert outcome["failure"]["message"] == "scales 1 × 3"
    assert "0.5 µJ ± ?" in (cell_folder(tmp_path, cell.id) / "log.txt").read_text("utf-8")


# ---- Disks -------------------------------------------------------------------------------------


def torch_on_a_full_disk():
    """What ``torch.save`` raises: the system's word is in what was raised before."""

    class Full(io.RawIOBase):
        def writable(self):
            return True

        def write(self, content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises((RuntimeError, OSError)) as caught:
        torch.save({"a": torch.zeros(10)}, Full())
    return caught.value


def test_a_disk_is_recognised_behind_what_a_library_says(tmp_path, monkeypatch):
    full = "No space left on device"
    hidden = RuntimeError("unexpected pos 64 vs 0")
    hidden.__context__ = OSError(errno.ENOSPC, full, str(tmp_path / "checkpoint.pt"))
    in_words = ValueError(f'IoError(Os {{ code: 28, kind: StorageFull, message: "{full}" }})')
    for error in (torch_on_a_full_disk(), hidden, in_words):
        message = str(disk_error(error, tmp_path))
        assert message.startswith(str(tmp_path))
        assert full in message
        assert "Free some space" in message
    read_only = disk_error(OSError(errno.EROFS, "Read-only file system"), tmp_path)
    assert "Read-only" in str(read_only)
    assert disk_error(ValueError("a bug"), tmp_path / "not" / "there") is None

    def refused(**_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(faults.tempfile, "TemporaryFile", refused)
    assert "Read-only" in str(disk_error(RuntimeError("cannot open"), tmp_path))


# ---- Data and other surroundings -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "message", "again"),
    [
        ("DataError", "x.png: cannot be decoded", True),
        ("FileNotFoundError", "no such file", True),
        ("ModuleNotFoundError", "No module named 'timm'", True),
        ("OutOfMemoryError", "CUDA out of memory", True),
        ("RuntimeError", "DefaultCPUAllocator: can't allocate memory: you tried", True),
        ("RuntimeError", "CUDA error: an illegal memory access was encountered", True),
        ("RuntimeError", "shapes cannot be multiplied", False),
        ("TrainingDiverged", "epoch 1, step 1 of 8", False),
        ("BrokenPipeError", "[Errno 32] Broken pipe", True),
        ("RuntimeError", "unable to mmap 64 bytes: Cannot allocate memory (12)", True),
        ("RuntimeError", "can't start new thread", True),
        ("RuntimeError", "unable to open shared memory object: Too many open files (24)", True),
        ("RuntimeError", "No CUDA GPUs are available", True),
        ("RuntimeError", "Found no NVIDIA driver on your system.", True),
        ("RuntimeError", "CUDA unknown error - this may be due to an incorrect setup", True),
        ("RuntimeError", "DataLoader worker (pid 7) is killed by signal: Bus error.", True),
        ("WorkerCrashedError", "the process died 3 times", True),  # killed for memory, most often
        ("LostPeers", "workers were lost 3 times", True),
        ("NoRoom", "waited 1:00:00 for room", True),
        ("UnevenWorkers", "2 workers cannot share a batch of 130 images evenly", True),
        ("ConfigError", "a batch of 2 images cannot be had in 4 parts", False),
        ("LocalRayletDiedError", "the node's raylet died", True),
        ("RuntimeEnvSetupError", "the working directory cannot be unpacked", True),
        ("ValueError", "out of memory of what was meant", False),
    ],
)
def test_what_is_tried_again(error, message, again, tiny, tmp_path):
    cell = load_study(str(tiny)).cells[0].cell
    failure = failure_of(cell, error, message, "", 1)
    assert is_of_surroundings(failure) == again
    write_failure(tmp_path, failure)
    states = run.states_of(load_study(str(tiny)), run.Records(tmp_path, run.observe))
    assert states[cell.id] == ("hindered" if again else "failed")


OF_ANY_SIZE = TINY.replace("image_size: 8, ", "")


def test_missing_data_end_a_study_before_anything_starts(tmp_path, capsys):
    path, results, data = (tmp_path / name for name in ("own.yaml", "results", "data"))
    own = "image_folder, num_classes: 10, image_size: 32"
    path.write_text(OF_ANY_SIZE.replace("digits", own))
    grid = str(path)
    assert run.main(["--grid", grid, "--results", str(results)]) == 2
    assert "image_folder needs --data-dir" in capsys.readouterr().err
    for split in ("train", "test"):
        for name in range(10):
            (data / split / str(name)).mkdir(parents=True)
    assert run.main(["--grid", grid, "--results", str(results), "--data-dir", str(data)]) == 2
    assert "no .jpg or .png file" in capsys.readouterr().err
    assert not results.exists()


def test_an_image_cut_short_ends_a_study_in_one_line_before_ray_starts(
    tmp_path, monkeypatch, capsys
):
    path, data = tmp_path / "cifar.yaml", tmp_path / "data"
    path.write_text(OF_ANY_SIZE.replace("digits", "cifar10"))
    for split in ("train", "test"):
        class_folders(data, pixels(20, 32), np.arange(20) % 10, split)
    file = data / "train" / "class_003" / "00013.png"
    file.write_bytes(file.read_bytes()[:2000])
    monkeypatch.setattr("studies.cluster.start_ray", lambda _: pytest.fail("Ray was started"))
    arguments = ["--grid", str(path), "--results", str(tmp_path), "--data-dir", str(data)]
    assert run.main(arguments) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert error.startswith(f"error: {file}: ")


def test_missing_data_end_a_search_before_ray_starts(tmp_path, monkeypatch, capsys):
    space = tmp_path / "space.yaml"
    space.write_text(
        OF_ANY_SIZE.split("axes")[0]
        + "parameters: {data.name: {categorical: [digits, tiny_imagenet]}}\n"
        + "objectives: {accuracy: maximize}\n"
    )
    monkeypatch.setattr("studies.cluster.start_ray", lambda _: pytest.fail("Ray was started"))
    assert hpo.main(["--space", str(space), "--results", str(tmp_path / "results")]) == 2
    assert "tiny_imagenet needs --data-dir" in capsys.readouterr().err


def test_files_are_opened_before_a_study_starts(tmp_path):
    for part in ("train", "t10k"):
        for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"):
            (tmp_path / f"{part}-{kind}").write_bytes(b"\0\0\x08\1\0\0\0\0")
    check_data([{"name": "fashion_mnist"}], tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(b"<html>")
    with pytest.raises(DataError, match="t10k-labels-idx1-ubyte: not an idx file"):
        check_data([{"name": "digits"}, {"name": "fashion_mnist"}], tmp_path)


# ---- Searches ------------------------------------------------------------------------------------

SPACE = """
question: Does it search?
base:
  model: {name: msvit, dim: 16, heads: 2, depths: [1, 1], widths: [0.5, 1.0], timesteps: 2}
  data: {name: digits, image_size: 8}
  training: {epochs: 2, batch_size: 16}
parameters: {model.scales: {categorical: [[1], [1, 3]]}}
objectives: {accuracy: maximize}
trials: 2
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "ending",
    [
        {"epoch": 2, "broken": "results: cannot be written (No space left on device)."},
        {"epoch": 2, "failure": "DataError: no images", "hindered": True},
    ],
)
def test_a_trial_that_its_surroundings_end_goes_on_next_time(ending, tmp_path):
    from studies.packing import Packing
    from studies.search.ledger import Ledger
    from studies.search.tuner import make_proposer

    path = tmp_path / "space.yaml"
    path.write_text(SPACE)
    space, said = load_space(str(path)), []
    ledger = Ledger.open(space, str(tmp_path / "study.journal"), seed=0)
    shares = Packing(tmp_path, None, 0.0)
    proposer = make_proposer(space, ledger, tmp_path, None, None, said.append, shares)
    assert proposer.suggest("a") != "FINISHED"
    proposer.on_trial_complete("a", ending)
    assert [trial.state.name for trial in ledger.study.get_trials()] == ["RUNNING"]
    if "broken" in ending:
        assert isinstance(proposer.broken, RecordError)
        assert proposer.suggest("b") == "FINISHED"
    else:
        assert "DataError: no images" in said[-1]
        assert proposer.hindered == 1
    again = Ledger.open(space, str(tmp_path / "study.journal"), seed=0).propose()
    assert (again.number, again.resumed) == (0, True)


@pytest.mark.slow
def test_a_trial_says_what_ended_it(tmp_path, monkeypatch, tiny):
    from ray import tune

    from studies.search import trial

    cell = load_study(str(tiny)).cells[0].cell
    task = {"cells": [cell.as_dict()], "results": str(tmp_path), "data_dir": None, "gpus": 0}
    config = {"task": trial.json.dumps(task | {"every_epoch": None})}
    told = []
    monkeypatch.setattr(tune, "report", told.append)
    monkeypatch.setenv(GPU_SHARE, "1")  # set by the trial, and put back with it

    def full(*_, **__):
        raise RecordError("results: cannot be written (No space left on device).")

    monkeypatch.setattr(trial, "run_cell", full)
    trial.run_trial(config)
    for error in ("DataError", "ValueError"):
        failure = failure_of(cell, error, "why", "", 1)
        outcome = {"failure": failure}
        monkeypatch.setattr(trial, "run_cell", lambda *_, outcome=outcome, **__: outcome)
        trial.run_trial(config)
    assert "No space left" in told[0]["broken"]
    assert [row["hindered"] for row in told[1:]] == [True, False]


def test_a_line_that_a_full_disk_has_cut_short_is_left_out(tmp_path):
    from studies.worker import trained_before

    (tmp_path / "checkpoint.pt").write_text("")
    lines = [
        '{"epoch": 1, "loss": 2.0}',
        '{"epoch": 2, "lo{"epoch": 0}',
        '{"epoch": 2, "loss": 1.0}',
    ]
    (tmp_path / "progress.jsonl").write_text("\n".join([*lines, '{"epoch": 3']))
    assert [row["loss"] for row in trained_before(tmp_path)] == [2.0, 1.0]


# ---- Ray -----------------------------------------------------------------------------------------


def test_an_address_where_something_else_answers_is_refused_at_once(tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            connection, _ = server.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.0 400 Bad request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        given = ["--grid", "scales", "--results", str(tmp_path), "--address", address]
        assert run.main(given) == 2
    error = capsys.readouterr().err
    assert error == f"error: --address {address}: no Ray cluster there (another service answers)\n"


def test_sockets_find_a_short_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/var/tmp")
    assert cluster.socket_folder() == "/var/tmp/ray"
    monkeypatch.setenv("TMPDIR", str(tmp_path / ("x" * 120)))
    assert cluster.socket_folder() == "/tmp/ray"
    monkeypatch.setattr(cluster, "SOCKET_BYTES", 10)
    with pytest.raises(ConfigError, match="RAY_TMPDIR: a folder"):
        cluster.socket_folder()


def test_whatever_ray_raises_at_its_start_is_one_line(capfd):
    @cluster.one_line("Ray does not start")
    def init():
        os.write(2, b"[2026-01-01 W] rpc_client.h: Failed to connect\n")
        raise Exception("The node timed out\nwith a long story")

    with pytest.raises(cluster.RayLost) as caught:
        init()
    assert str(caught.value) == "Ray does not start: The node timed out"
    assert capfd.readouterr().err == ""


LOST_NODE = """
from studies.cluster import calm_ray
calm_ray()
from ray._private.worker import print_to_stdstream
lines = ["Raylet is terminated. Last 20 lines of the Raylet logs:\\n    [state-dump]\\n", ""]
for line in lines:
    print_to_stdstream({"lines": [line], "pid": "raylet", "is_err": False}, ignore_prefix=False)
"""


@pytest.mark.slow
def test_what_ray_says_of_a_lost_node_is_not_shown():
    code = [sys.executable, "-c", LOST_NODE]
    done = subprocess.run(code, capture_output=True, text=True, cwd=RUN.parent.parent)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


INTERRUPTED = """
import os, runpy, signal, sys
class Interrupt:
    @staticmethod
    def find_spec(name, *_):
        if name == "pydantic":
            os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Interrupt)
sys.argv = [sys.argv[1], "--list"]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    "script",
    [
        *("studies/run.py", "studies/hpo.py", "studies/benchmark_search.py", "studies/speed.py"),
        *("studies/baselines.py", "analysis/report.py", "analysis/search_report.py"),
    ],
)
def test_ctrl_c_while_modules_load_says_nothing(script):
    code = [sys.executable, "-c", INTERRUPTED, str(RUN.parent.parent / script)]
    done = subprocess.run(code, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_ctrl_c_while_the_zoo_loads_torch_says_nothing():
    program = INTERRUPTED.replace('"pydantic"', '"torch"').replace(
        'run_path(sys.argv[0], run_name="__main__")', "_run_module_as_main(sys.argv[0])"
    )
    code = [sys.executable, "-c", program, "msvit.models"]
    done = subprocess.run(code, capture_output=True, text=True, cwd=RUN.parent.parent)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


# ---- Files ---------------------------------------------------------------------------------------


def test_yaml_that_nothing_can_hold_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="nested too deeply"):
        parse_yaml("[" * 5000, "x.yaml")
    with pytest.raises(ConfigError, match=r"x\.yaml: "):
        parse_yaml("a: &a [*a]", "x.yaml")
    laughs = "".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]\n" for i in range(1, 9))
    with pytest.raises(ConfigError, match="anchors written out"):
        parse_yaml("l0: &l0 ha\n" + laughs, "x.yaml")
    path = tmp_path / "large.yaml"
    path.write_text("# comment\n" * 1_000_000)
    with pytest.raises(ConfigError, match=r"10\.0 MB"):
        read_yaml(path)
    for text in ("question: µ".encode("utf-16"), "question: µ".encode("latin-1")):
        path.write_bytes(text)
        with pytest.raises(ConfigError, match="not UTF-8"):
            read_yaml(path)


@pytest.mark.parametrize(
    ("label", "said"),
    [(r"a\e[31m", "control"), (r"two\nlines", "control"), ("x" * 600, "600 characters")],
)
def test_labels_that_cannot_be_shown_are_refused(label, said, tmp_path):
    path = tmp_path / "labels.yaml"
    path.write_text(f'{TINY}include: [{{label: "{label}", training: {{epochs: 2}}}}]\n')
    with pytest.raises(ConfigError, match=rf"labels.yaml: include\[0\].label: .*{said}"):
        load_study(str(path))
    path.write_text(TINY.replace("Does it run?", f'"{label * 10}"').replace("\\n", " \\e"))
    with pytest.raises(ConfigError, match=r"labels.yaml: question: "):
        load_study(str(path))


def test_names_fit_into_file_systems(tmp_path):
    assert len(slug("msvit " * 100)) <= 100
    path = tmp_path / f"{'x' * 120}.yaml"
    path.write_text(TINY)
    with pytest.raises(ConfigError, match="more than 100 characters"):
        load_study(str(path))


def test_bf16_where_it_has_no_instructions_is_told_before_it_starts(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("msvit.processor.description", lambda: "AuthenticAMD avx2")
    monkeypatch.setattr("studies.executor.run_cells", lambda *_, **__: None)
    for precision, expected in (("bf16", True), ("fp32", False)):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            asked = f"training.precision={precision}"
            run.main(["--grid", str(tiny), "--results", str(tmp_path), "--set", asked])
        assert ("a step takes minutes" in out.getvalue()) == expected
    assert read_record(tmp_path, "0") is None
