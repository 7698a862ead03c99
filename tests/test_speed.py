"""The speed study: its baseline is the same function as ours, and it writes what it promises."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from spikingjelly.activation_based.functional import reset_net
from torch import nn
from torch.nn.functional import cross_entropy

from msvit import create_model, load_official, processor
from msvit.options import ConfigError
from msvit.precision import bf16_is_faster
from studies import speed
from studies.plain_models import plain_model
from studies.timing import worker
from studies.timing.cases import MODELS, step_cases
from studies.timing.kinds import kind_of
from studies.timing.probes import count_work
from studies.timing.report import COLUMNS, Machine, machine, ratios, step_row
from studies.timing.roofline import Peaks, Work, roofline_seconds

SCRIPT = Path(speed.__file__)
ROOT = SCRIPT.parent.parent
SMALL = {"dim": 32, "heads": 4, "image_size": 16, "timesteps": 3}


def twins(name: str) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """A plain model that fires in both modes, ours with its weights, and images."""
    torch.manual_seed(0)
    plain = plain_model(name, **SMALL).double()
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.8, 1.5)
            nn.init.uniform_(module.bias, 0.0, 0.8)
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.05, 0.2)
    ours = create_model(name, **SMALL).double()
    report = load_official(ours, plain.state_dict())
    assert not report.missing
    assert not report.unexpected
    return plain, ours, torch.randn(4, 3, 16, 16, dtype=torch.float64)


@pytest.mark.parametrize("name", MODELS.values())
@pytest.mark.parametrize("training", [True, False])
def test_plain_model_computes_what_ours_does(name, training):
    plain, ours, images = twins(name)
    expected = plain.train(training)(images)
    got = ours.train(training)(images).mean(0)
    assert expected.std() > 1e-3  # neurons fire, and differently for different images
    torch.testing.assert_close(got, expected, atol=1e-9, rtol=0)
    if not training:
        return
    labels = torch.arange(4)
    cross_entropy(expected, labels).backward()
    cross_entropy(got, labels).backward()
    gradients = {n: p.grad for n, p in plain.named_parameters()}
    names = ours.official_map()
    for target, parameter in ours.named_parameters():
        if parameter.grad is not None:
            theirs = torch.cat([gradients[n] for n in names.sources(target)])
            torch.testing.assert_close(
                parameter.grad.flatten(), theirs.flatten(), atol=1e-9, rtol=1e-7
            )
    reset_net(plain)
    torch.testing.assert_close(plain.eval()(images), ours.eval()(images).mean(0), atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", MODELS.values())
def test_plain_model_has_the_parameters_of_ours(name):
    def parameters(model: nn.Module) -> int:
        return sum(p.numel() for p in model.parameters())

    assert parameters(plain_model(name)) == parameters(create_model(name))


def test_plain_models_refuse_what_they_cannot_be():
    with pytest.raises(ConfigError, match="no plain sdt"):
        plain_model("sdt_cifar10")
    with pytest.raises(ConfigError, match="CIFAR-10 model"):
        plain_model("msvit_cifar10", scales=(1, 3, 5))


def test_work_of_a_model_is_counted_by_hand():
    options = {"dim": 32, "heads": 4, "image_size": 16, "timesteps": 2, "depths": (1,)}
    work = count_work("spikformer_cifar10", options)
    # Stem: 3→4 (once), 4→8, 8→16 on 16², 16→32 on 8²; the position convolution on 4².
    first = 3 * 4 * 9 * 256
    convs = 4 * 8 * 9 * 256 + 8 * 16 * 9 * 256 + 16 * 32 * 9 * 64 + 32 * 32 * 9 * 16
    tokens, dim = 16, 32
    linears = tokens * (4 * dim * dim + 2 * 4 * dim * dim) + dim * 10
    attention = 2 * tokens * dim * dim // 4  # two products, of four heads each
    assert work.first_flops == 2 * first
    assert work.conv_flops == 2 * (first + 2 * convs)
    assert work.product_flops == 2 * 2 * (linears + attention)
    units = 8 * 256 + 16 * 256 + 32 * 64 + 32 * 16 + tokens * (4 * dim + 5 * dim)
    assert work.currents == 4 * 256 + 2 * units
    assert work.spikes == 2 * (4 * 256 + units + tokens * dim)  # and the attention's neuron


def test_roofline_adds_arithmetic_and_memory():
    work = Work(product_flops=100, conv_flops=60, first_flops=10, currents=8, spikes=4)
    peaks = Peaks(product=10.0, convolution=5.0, bandwidth=2.0)
    # 2 images: products 600 / 10, convolutions (360 - 20) / 5, bytes 2·2·(80 + 20) / 2
    assert roofline_seconds(work, 2, "bf16", "train", peaks) == pytest.approx(328e-9)
    assert roofline_seconds(work, 2, "fp32", "infer", peaks) == pytest.approx(124e-9)


@pytest.mark.parametrize(
    ("operator", "kind"),
    [
        ("aten::mm", "products"),
        ("aten::convolution_backward", "convolutions"),
        ("aten::copy_", "copies, casts"),
        ("aten::add_", "additions"),
        ("aten::cudnn_convolution", "convolutions"),
        ("aten::cudnn_batch_norm_backward", "norm + neuron"),
        ("sj_lif::forward", "norm + neuron"),
        ("GeneratedBackwardFor_sj_lif_forward_defaultBackward", "norm + neuron"),
        ("aten::max_pool2d_with_indices_backward", "pooling"),
        ("aten::_fused_adamw_", "optimizer"),
        ("_NormNeuron", "norm + neuron"),
        ("_NormNeuronBackward", "norm + neuron"),
        ("autograd::engine::evaluate_function: MmBackward0", "other"),
        ("autograd::engine::evaluate_function: _NormNeuronBackward", "norm + neuron"),
        ("unpack spikes", "copies, casts"),
        ("_SpikeConvolution", "sums of spikes"),
        ("_SpikeConvolutionBackward", "sums of spikes"),
    ],
)
def test_operators_have_kinds(operator, kind):
    assert kind_of(operator) == kind


@pytest.mark.slow
def test_quick_run_writes_all_rows(tmp_path):
    command = [sys.executable, str(SCRIPT), "--quick", "--models", "spikformer"]
    command += ["--sizes", "digits", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "step.csv", newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert tuple(reader.fieldnames) == COLUMNS
    keys = {(row["variant"], row["precision"], row["mode"]) for row in rows}
    assert len(rows) == len(keys) == (8 if processor.multiplies_bf16() else 4)
    for row in rows:
        assert 0 < float(row["seconds_min"]) <= float(row["seconds_median"])
        assert float(row["seconds_median"]) <= float(row["seconds_max"])
        assert float(row["peak_gb"]) > 0
        assert float(row["gflops"]) > 0
        assert float(row["roofline_share"]) > 0
        assert row["processor"]
        assert (row["input_rate"] == "") == (row["variant"] == "plain")
        assert row["variant"] == "plain" or 0 < float(row["input_rate"]) < 0.6
    text = (tmp_path / "ratios.md").read_text()
    assert "| spikformer | fp32 against plain fp32 |" in text
    faster = bf16_is_faster(torch.device("cpu"))
    assert ("multiplies no faster in bf16" in text) == (not faster and processor.multiplies_bf16())
    assert (tmp_path / "step.png").stat().st_size > 0


def measured(
    bf16_faster: bool = True,
    amx: bool = False,
    size: str = "cifar",
    seconds: float = 2.0,
) -> tuple[list[dict], Machine]:
    """Rows of one model: plain steps take three seconds, ours two."""
    peak = {"product": 100, "convolution": 100, "bandwidth": 10}
    peaks = dict.fromkeys(("fp32", "bf16"), peak)
    limits = {"processor": "Processor X", "amx": amx, "bf16_faster": bf16_faster}
    limits |= {"kernels": True, "fp32": "fp32", "bf16": "bf16", "peaks": peaks}
    work = {"product_flops": 10**9, "conv_flops": 0, "first_flops": 0, "currents": 0, "spikes": 0}
    known = machine([limits | {"work": {"msvit_cifar10": work}}], threads=2)
    rows = []
    for case in step_cases(["msvit"], size, quick=False):
        taken = {"plain": 3.0, "ours": seconds}[case.variant]
        found = {"seconds": [taken], "peak_gb": taken, "input_rate": 0.1}
        rows.append(step_row(case, [found], known.work["msvit_cifar10"], known))
    return rows, known


def test_bars_are_those_of_a_cpu_that_multiplies_faster_in_bf16():
    text = ratios(*as_report())
    assert "## cifar: batch 16, Processor X, 2 threads\n" in text
    for row in (
        "| fp32 against plain fp32 | 1.50 × ✗ | ≥ 2.7 | 1.50 × ✗ | ≥ 3 | 0.67 ✗ | ≤ 0.5 |",
        "| bf16 against plain under bf16 autocast | 1.50 × ✗ | ≥ 2 | 1.50 × ✗ | ≥ 3 |",
        "| bf16 against plain fp32 | 1.50 × ✗ | ≥ 5 | 1.50 × |  | 0.67 ✗ | ≤ 0.3 |",
    ):
        assert row in text
    assert "| training, fp32 | 24% ✗ (plain 16%) | ≥ 90% |" in text
    assert "multiplies no faster in bf16" not in text
    small = ratios(*as_report(size="digits"))
    assert "| fp32 against plain fp32 | 1.50 × ✗ | ≥ 5 | 1.50 × |  | 0.67 |  |" in small
    amx = ratios(*as_report(amx=True, seconds=0.7))
    assert "| bf16 against plain under bf16 autocast | 4.29 × | ≥ 4 |" in amx
    assert "| bf16 against plain fp32 | 4.29 × ✗ | ≥ 10 | 4.29 × ✗ | ≥ 12 |" in amx
    assert "multiplies no faster in bf16" in ratios(*as_report(bf16_faster=False))


def as_report(size: str = "cifar", **kind: Any) -> tuple[list[dict], dict[str, Machine]]:
    rows, known = measured(size=size, **kind)
    return rows, {size: known}


@pytest.mark.parametrize(
    ("given", "folder"),
    [([], "results/speed"), (["--quick"], "results/speed-quick"), (["--out", "here"], "here")],
)
def test_what_a_cpu_did_has_its_folder(given, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(speed, "gpu_here", lambda: False)
    _, known = measured()
    limits = {**vars(known), "bf16": "bf16", "fp32": "fp32"}
    limits["peaks"] = {name: vars(peak) for name, peak in known.peaks.items()}
    limits["work"] = {name: vars(work) for name, work in known.work.items()}
    step = {"seconds": [1.0], "peak_gb": 1.0, "input_rate": 0.1}
    profile = {"operators": [["aten::mm", 0.5]]}
    answers = {"limits": limits, "step": step, "profile": profile}
    monkeypatch.setattr(speed, "measure", lambda task, threads: answers[task["kind"]])
    assert speed.main(["--models", "msvit", "--sizes", "cifar", "--rounds", "1", *given]) == 0
    written = {path.name for path in (tmp_path / folder).iterdir()}
    assert {"step.csv", "ratios.md", "operators.csv", "step.png", "kinds_cifar.png"} <= written
    assert [path.name for path in tmp_path.iterdir()] == [folder.split("/")[0]]


def test_what_a_processor_computes_number_by_number_is_left_out(tmp_path, monkeypatch, capsys):
    """As on an EPYC with AVX2 alone, where one round took more than a quarter of an hour."""
    limits = worker_limits(monkeypatch, "AuthenticAMD avx avx2 fma")
    assert set(limits["peaks"]) == {"fp32"}
    step = {"seconds": [1.0], "peak_gb": 1.0, "input_rate": 0.1}
    answers = {"limits": limits, "step": step, "profile": {"operators": [["aten::mm", 0.5]]}}
    asked = []

    def measure(task, threads):
        asked.append(task)
        return answers[task["kind"]]

    monkeypatch.setattr(speed, "measure", measure)
    given = ["--models", "msvit", "--sizes", "digits", "--growth", "--rounds", "1"]
    assert speed.main([*given, "--out", str(tmp_path)]) == 0
    assert {task.get("precision", "fp32") for task in asked} == {"fp32"}
    assert "left out: bf16" in capsys.readouterr().out
    assert "no instructions for bf16" in (tmp_path / "ratios.md").read_text()
    assert set(worker_limits(monkeypatch, "GenuineIntel avx512bw")["peaks"]) == {"fp32", "bf16"}


def worker_limits(monkeypatch, description):
    """What the process that looks for a machine's limits finds on this processor, nothing timed."""
    monkeypatch.setattr(processor, "description", lambda: description)
    monkeypatch.setattr(worker, "prepare_process", lambda: None)
    monkeypatch.setattr(worker, "measure_peaks", lambda *_: Peaks(100, 100, 10))
    options = {"dim": 32, "heads": 4, "image_size": 16}
    return worker.run(
        {"kind": "limits", "quick": True, "models": ["msvit_cifar10"], "options": options}
    )


def test_wrong_names_end_in_one_line(capsys):
    assert speed.main(["--models", "mvsit"]) == 2
    assert "did you mean 'msvit'?" in capsys.readouterr().err
    assert speed.main(["--sizes", "digit"]) == 2
    assert "did you mean 'digits'?" in capsys.readouterr().err
    assert speed.main(["--rounds", "0"]) == 2


def test_help_needs_no_torch():
    script = (
        "import sys, runpy\n"
        f"sys.argv = [{str(SCRIPT)!r}, '--help']\n"
        f"sys.path.insert(0, {str(SCRIPT.parent)!r})\n"
        "try:\n"
        f"    runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--rounds" in done.stdout


def test_the_page_on_speed_quotes_what_was_measured():
    with open(ROOT / "results" / "speed" / "step.csv", newline="") as file:
        rows = [r for r in csv.DictReader(file) if (r["model"], r["size"]) == ("msvit", "cifar")]
    order = [("plain", "fp32"), ("ours", "fp32"), ("plain", "bf16"), ("ours", "bf16")]
    step = {(r["variant"], r["precision"]): r for r in rows if r["mode"] == "train"}
    cells = " | ".join(
        f"{float(step[key]['seconds_median']):.2f} s, {float(step[key]['peak_gb']):.1f} GB"
        for key in order
    )
    page = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    assert f"| training step | {cells} |" in page
