"""What ``studies/speed.py`` does on a GPU, on a CPU in its place."""

from __future__ import annotations

import csv
import os

import pytest

from studies import speed
from studies.timing import gpu_measure
from studies.timing.gpu_cases import OURS, PLAIN, GpuCase, gpu_cases, quick_cases
from studies.timing.gpu_report import KINDS, PASSES, kind_of, peaks_for, step_rows
from studies.timing.roofline import Work, roofline_seconds

LIMITS = {
    "device": "GPU X",
    "torch": "2",
    "processor": "Processor X",
    "labels": {"bf16": "bf16", "fp32": "fp32"},
    "products": {"bf16": 8e5, "fp32": 5e4},
    "copy": 3000.0,
}
WORK = {"product_flops": 10**9, "conv_flops": 10**9, "first_flops": 0, "currents": 0, "spikes": 0}


def found(*seconds):
    work = {"work": WORK, "warm_up": 5.0, "how": "graph", "kernels": "fused", "peak_gb": 4.0}
    return {"seconds": sorted(seconds), **work}


def case(variant, precision="bf16"):
    return GpuCase("msvit_cifar10", "cifar", 64, precision, "train", variant, {})


def test_ours_is_compared_with_plain_of_the_same_size_and_precision():
    measured = [
        (case(OURS), found(0.02, 0.01, 0.03)),
        (case(PLAIN), found(0.08)),
        (case(OURS, "fp32"), {"problem": "OutOfMemoryError: 80 GB"}),
        (case(PLAIN, "fp32"), found(0.5)),
    ]
    ours, plain, failed, _ = step_rows(LIMITS, measured)
    assert (ours["ms_median"], ours["ms_min"], ours["ms_max"]) == (20.0, 10.0, 30.0)
    assert ours["times_plain"] == 4.0
    assert ours["images_per_second"] == 3200.0
    assert "times_plain" not in plain
    bound = roofline_seconds(Work(**WORK), 64, "bf16", "train", peaks_for(case(OURS), LIMITS))
    assert ours["roofline_share"] == pytest.approx(bound / 0.02, abs=1e-4)
    assert bound == pytest.approx(64 * 3 * 2e9 / 8e14)  # convolutions at the peak of products
    assert failed["problem"].startswith("OutOfMemoryError")
    assert "ms_median" not in failed


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("backward", PASSES),
        ("nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NNT", "products, convolutions"),
        ("sm90_xmma_fprop_implicit_gemm_bf16", "products, convolutions"),
        ("void cudnn::ops::nchwToNhwcKernel<...>", "products, convolutions"),
        ("Memcpy DtoD (Device -> Device)", "copies, casts"),
        ("void at::native::unrolled_kernel<direct_copy_kernel>", "copies, casts"),
        (
            "at::native::vectorized_elementwise_kernel<4, add>",
            "torch's elementwise",
        ),
        ("void at::native::reduce_kernel<512, 1, ReduceOp<double>>", "torch's reductions"),
        ("void multi_tensor_apply_kernel<FusedAdamMathFunctor>", "optimizer"),
    ],
)
def test_kernels_have_kinds(kernel, kind):
    assert kind_of(kernel) == kind
    assert kind in (*KINDS, PASSES)


def test_the_most_wanted_case_comes_first_and_plain_has_a_partner():
    cases = gpu_cases()
    assert cases[0].key == ("msvit_cifar10", "cifar", 64, "bf16", "train", OURS)
    ours = {c.key[:-1] for c in cases if c.variant == OURS}
    assert {c.key[:-1] for c in cases if c.variant == PLAIN} <= ours
    assert len({c.key for c in cases}) == len(cases)


TINY = """
question: Does it run?
base:
  model: {name: msvit, dim: 16, heads: 2, depths: [1, 1], widths: [0.5, 1.0], timesteps: 2}
  data: {name: digits, image_size: 8, train_per_class: 13}
  training: {epochs: 1, batch_size: 16, warmup_epochs: 0}
seeds: 1
"""


@pytest.mark.slow
def test_it_writes_what_it_has_and_goes_on_past_what_fails(tmp_path, monkeypatch):
    grid = tmp_path / "tiny.yaml"
    grid.write_text(TINY)
    broken = GpuCase("msvit_cifar10", "tiny", 4, "bf16", "train", OURS, {"dim": 7})
    said = []

    def say(text):
        said.append(text)
        assert not said[1:] or (tmp_path / "out" / "speed.md").exists()

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    cases = [broken, *quick_cases()[:2]]
    ways = {"packed": ()}
    gpu_measure.run(tmp_path / "out", cases, 5.0, say, ways, str(grid), quick=True)
    with open(tmp_path / "out" / "step.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["problem"].startswith("ConfigError")
    assert [row["variant"] for row in rows[1:]] == [OURS, PLAIN]
    assert all(float(row["ms_median"]) > 0 and row["how"] == "eager" for row in rows[1:])
    assert float(rows[1]["times_plain"]) > 0
    with open(tmp_path / "out" / "grids.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["way"], row["cells"]) == ("packed", "1")
    assert float(row["seconds"]) > 0
    text = (tmp_path / "out" / "speed.md").read_text()
    assert "not measured: ConfigError" in text
    assert "## Where the time goes: msvit_cifar10 tiny 4 bf16 train ours" in text
    assert "| packed | 1 |" in text
    assert len(said) == 5


def test_without_time_nothing_is_begun(tmp_path, monkeypatch):
    class Server:
        def ask(self, task, seconds):
            return LIMITS if task["kind"] == "limits" else found(0.1)

        def stop(self):
            pass

    monkeypatch.setattr(gpu_measure, "Server", Server)
    out = tmp_path / "out"
    gpu_measure.run(out, [case(OURS), case(PLAIN)], 0.01, lambda _: None, {"packed": ()})
    text = (out / "speed.md").read_text()
    assert text.count("not measured: the time was up") == 3


def test_a_gpu_has_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(speed, "gpu_here", lambda: True)
    asked = []

    def measure(out, cases, minutes, say, grids, quick):
        asked.append((out, [c.model for c in cases], minutes, grids, quick))
        (out / "speed.md").write_text("measured")

    monkeypatch.setattr(speed, "measure_gpu", measure)
    assert speed.main(["--models", "qkformer", "--minutes", "2"]) == 0
    out, models, minutes, grids, quick = asked[0]
    assert (str(out), minutes, grids, quick) == (
        "results/speed-gpu",
        2.0,
        gpu_measure.GRIDS,
        False,
    )
    assert set(models) == {"qkformer_cifar10"}
    assert os.listdir(tmp_path / "results") == ["speed-gpu"]
