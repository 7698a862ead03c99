"""The training step as a CUDA graph, as far as no GPU is needed: numbers, rates, no waiting."""

from __future__ import annotations

import contextlib
import logging

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import msvit.training.cell as cell_module
from msvit import create_model, kernels
from msvit.data.splits import Images
from msvit.models import model_options, zoo
from msvit.neurons import NEURONS
from msvit.precision import choose_precision
from msvit.recipes import TrainingOptions
from msvit.training import train_cell
from msvit.training.augmentation import Augmentation
from msvit.training.batches import Normalise, train_batches
from msvit.training.graph import WARM_UP, CannotRecord, Graphed
from msvit.training.loading import Loader
from msvit.training.optimization import (
    RECORDABLE,
    Rates,
    make_mixup,
    make_optimizer,
    make_schedule,
    restore_optimizer,
)
from msvit.training.randomness import seed_everything
from msvit.training.step import TrainingStep, choose_recorder
from tests.small import SMALL
from tests.test_training import Stopped, comparable, stop_after, tiny_cell

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
GPU = torch.device("cuda", 0)


class Tape:
    """A recorder for the CPU: buffers as those of a CUDA graph, work at every replay."""

    def __init__(self, waits: str = "", refuses: str = "", breaks: str = "") -> None:
        self.waits, self.refuses, self.breaks = waits, refuses, breaks
        self.recorded = self.replayed = 0

    def aside(self, run):
        return run(), self.waits

    def record(self, run):
        if self.refuses:
            raise CannotRecord(self.refuses)
        self.recorded += 1
        outputs = []

        def replay():
            if self.breaks and self.replayed == 2:
                raise CannotRecord(self.breaks)
            self.replayed += 1
            found = run()
            outputs[:] = outputs or [x.clone() for x in found]
            for kept, new in zip(outputs, found, strict=True):
                kept.copy_(new)
            return tuple(outputs)

        return replay


def test_calls_of_one_shape_are_replayed_and_others_run():
    tape = Tape()
    run = Graphed(lambda x: (2 * x,), tape)
    for value in range(6):
        assert run(torch.full((3,), float(value)))[0].tolist() == [2.0 * value] * 3
        assert run(torch.ones(2))[0].tolist() == [2.0, 2.0]
    assert (tape.recorded, tape.replayed) == (1, 6 - WARM_UP)
    assert run.recorded
    assert not run.problem


@pytest.mark.parametrize(
    "why", [{"waits": "the host waits"}, {"refuses": "no such thing"}, {"breaks": "no more"}]
)
def test_what_cannot_be_recorded_runs_on_with_one_line(why, caplog):
    tape = Tape(**why)
    run = Graphed(lambda x: (x + 1,), tape)
    with caplog.at_level(logging.INFO, "msvit"):
        for value in range(8):
            assert float(run(torch.tensor(float(value)))[0]) == value + 1
    assert not run.recorded
    assert run.problem in why.values()
    assert [record.getMessage() for record in caplog.records] == [
        f"no CUDA graph, so slower: {run.problem}"
    ]


VARIED = {"mixup": 0.5, "clip_grad": 1.0, "hflip": True, "loss": "tet"}


@pytest.mark.parametrize(
    ("options", "how"),
    [
        ({}, "graph"),
        pytest.param(VARIED | {"optimizer": "sgd"}, "graph", marks=pytest.mark.slow),
        ({"optimizer": "lamb", "clip_grad": 1.0}, "graph without optimizer"),
    ],
)
def test_a_recorded_training_gives_the_record_of_an_eager_one(options, how, tmp_path, monkeypatch):
    cell = tiny_cell(epochs=2, precision="fp32", **options)
    eager = train_cell(cell, tmp_path / "eager")
    tape = Tape()
    monkeypatch.setattr(cell_module, "choose_recorder", lambda *_: (tape, ""))
    recorded = train_cell(cell, tmp_path / "recorded")
    assert (eager.pop("step"), recorded.pop("step")) == ("eager", how)
    assert comparable(recorded) == comparable(eager)
    assert tape.recorded == 1  # two validations are too few to be recorded
    with pytest.raises(Stopped):
        train_cell(cell, tmp_path / "stopped", report=stop_after(1))
    resumed = train_cell(cell, tmp_path / "stopped")
    assert resumed.pop("step") == f"eager: {Graphed(tuple, tape).problem}" or how
    assert comparable(resumed) == comparable(eager)


def test_a_cpu_and_a_scaled_loss_have_no_graph():
    assert choose_recorder(choose_precision("fp32", CPU), CPU) == (None, "")
    half = choose_precision("fp16", CPU)
    recorder, why = choose_recorder(half, GPU)
    assert recorder is None
    assert why.startswith("fp16")


def test_rates_in_tensors_are_those_of_timm():
    options = TrainingOptions(epochs=4, lr=1e-2, warmup_epochs=1)
    weight = nn.Linear(2, 2)
    plain = make_optimizer(weight, options)
    schedule = make_schedule(plain, options, steps=5)
    on_gpu = make_optimizer(weight, options, GPU)
    with FakeTensorMode(allow_non_fake_inputs=True):
        rates = Rates(on_gpu, options, 5, GPU)
    assert all(tensor.device == GPU for tensor in rates.tensors)
    rates.tensors = [torch.zeros(()) for _ in on_gpu.param_groups]
    for update in range(20):
        schedule.step_update(update)
        rates.set(update)
        expected = [group["lr"] for group in plain.param_groups]
        assert rates.current == expected[0]
        assert [float(group["lr"]) for group in on_gpu.param_groups] == pytest.approx(expected)
        kept = [group["lr"] for group in on_gpu.param_groups]
        assert all(a is b for a, b in zip(kept, rates.tensors, strict=True))


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_an_optimizer_goes_on_as_it_steps_here(name):
    """One that was begun on a CPU, or by an earlier version, must not undo what a graph needs."""
    options = TrainingOptions(optimizer=name)
    begun, here = (make_optimizer(nn.Linear(2, 2), options, device) for device in (CPU, GPU))
    ways = [(g["fused"], g.get("capturable")) for g in here.param_groups]
    restore_optimizer(here, begun.state_dict())
    assert [(g["fused"], g.get("capturable")) for g in here.param_groups] == ways
    assert all(fused for fused, _ in ways)
    assert all(capturable for _, capturable in ways) == (name == "adamw")


# ---- Nothing in a step waits for the device ------------------------------------------------------

META = torch.device("meta")
"""A device that holds no numbers: whoever wants to read one is refused, as by a graph."""


class NothingMade(TorchFunctionMode):
    """Refuses to make a tensor on the device of numbers on the host, an index list included."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        made = func in (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor)
        assert not made or kwargs.get("device", "cpu") == "cpu", "numbers are sent to the device"
        if func is torch.Tensor.__getitem__:
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            assert not any(isinstance(part, list) for part in index), "an index list is sent"
        return func(*args, **kwargs)


class NothingMoved(TorchDispatchMode):
    """Refuses to move tensors from the host to the device, or back.

    A scalar on the host may stand in an operation on the device: it goes along with the kernel.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = tensors_in((args, kwargs))
        fused = "_fused_" in str(func)  # has a kernel, and none that only tells shapes
        assert not fused or func._overloadname == "tensor_lr", "the rate is a number"
        out = None if fused else func(*args, **kwargs)
        moves = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        where = {x.device.type for x in (*given, *tensors_in(out)) if x.dim() or moves}
        assert len(where) < 2, f"{func} moves tensors between host and device"
        return out


def tensors_in(tree):
    leaves = torch.utils._pytree.tree_leaves(tree)
    return [x for x in leaves if isinstance(x, torch.Tensor)]


class Exact:
    """fp32 on a device that autocast has never heard of."""

    dtype = torch.float32

    def autocast(self, device):
        return contextlib.nullcontext()


def learn_on_meta(model: nn.Module, **training) -> None:
    """Forward, loss, backward and clipping, from bytes or mixed images, where nothing waits."""
    options = TrainingOptions.parse({"batch_size": 4, **training}, "test")
    size, channels = model.options.image_size, model.options.in_channels
    optimizer = torch.optim.SGD(model.to(META).train().parameters(), lr=0.1)
    normalise = Normalise((0.5,) * channels, (0.2,) * channels, META)
    step = TrainingStep(model, options, optimizer, normalise, Exact())
    images = torch.empty((4, channels, size, size), dtype=torch.uint8, device=META)
    target = torch.empty(4, dtype=torch.long, device=META)
    mixup = make_mixup(options, 10)
    with NothingMade(), NothingMoved():
        if mixup:
            images, target = mixup(normalise(images), target)
        loss, hits, norm = step.learn(images, target)
    assert {x.device for x in (loss, hits, norm)} == {META}
    assert all(w.grad is not None for n, w in model.named_parameters() if n.endswith("r.weight"))


@pytest.mark.parametrize("name", RECORDABLE)
def test_no_recorded_optimizer_waits_for_the_device(name):
    """On tensors that say they are on a GPU and are nowhere."""
    options = TrainingOptions(optimizer=name)
    with FakeTensorMode():
        model = nn.Linear(3, 3, device=GPU)
        optimizer = make_optimizer(model, options, GPU)
        rates = Rates(optimizer, options, 10, GPU)
        step = TrainingStep(model, options, optimizer, Normalise((0.5,), (0.2,), GPU), Exact())
        with NothingMade(), NothingMoved():
            for update in range(2):
                rates.set(update)
                for weight in model.parameters():
                    weight.grad = torch.empty_like(weight)
                assert step.update(torch.empty((), device=GPU)).device == GPU


@pytest.fixture
def plain(monkeypatch):
    """torch and spikingjelly alone, whose operations know such a device."""
    monkeypatch.setenv("MSVIT_KERNELS", "off")


@pytest.mark.parametrize("name", SMALL)
def test_no_model_waits_for_the_device(name, plain):
    drop = {} if name in ("vit", "spikingresformer") else {"drop_path": 0.2}
    options = {"image_size": 16 if name != "vit" else 32} | SMALL[name]
    if zoo()[name]["architecture"] == "metaspikeformer":
        options["depths"] = (1, 1, 1, 1, 1)
    model = create_model(name, **(model_fields(name, options) | drop))
    learn_on_meta(model, clip_grad=1.0)


def model_fields(name, options):
    known = type(model_options(name, {})).model_fields
    return {key: value for key, value in options.items() if key in known}


@pytest.mark.parametrize("neuron", NEURONS)
def test_no_neuron_waits_for_the_device(neuron, plain):
    options = {"dim": 16, "heads": 2, "depths": (1, 1), "widths": (0.5, 1.0), "timesteps": 2}
    model = create_model("msvit", image_size=8, neuron=neuron, **options)
    learn_on_meta(model, mixup=0.5, optimizer="sgd", loss="tet", label_smoothing=0.1)


@pytest.fixture
def triton_on_meta(monkeypatch):
    """The Triton passes on a device that holds no numbers, their kernels left out."""
    triton = pytest.importorskip("triton")
    from msvit.kernels.cuda import kernels as triton_kernels
    from msvit.kernels.cuda import passes

    class Nothing:
        def __getitem__(self, grid):
            return lambda *args, **kwargs: None

    for name, value in vars(triton_kernels).items():
        if isinstance(value, triton.JITFunction):
            monkeypatch.setattr(triton_kernels, name, Nothing())
    monkeypatch.setattr(kernels, "backend_for", lambda device, dtype: passes.backend(dtype))


@pytest.mark.parametrize("name", ["msvit", "spikformer", "spikingformer", "maxformer"])
def test_no_triton_pass_waits_for_the_device(name, triton_on_meta):
    model = create_model(name, **(model_fields(name, SMALL[name]) | {"image_size": 16}))
    learn_on_meta(model)
    learn_on_meta(model)  # what the first step has made once is there now


@pytest.mark.parametrize(
    "slip",
    [
        lambda x: x * float(x.detach().sum()),
        lambda x: x * x.detach().sum().item(),
        lambda x: x * torch.tensor([2.0], device=x.device),
        lambda x: x[:, [0, 1, 2, 3]],
        lambda x: x * torch.ones(1).to(x.device),
        lambda x: x * x.detach().cpu().mean(),
        lambda x: x * (x > 0).nonzero().sum(),
    ],
    ids=["float", "item", "from numbers", "index list", "upload", "download", "nonzero"],
)
def test_these_tests_notice_a_step_that_waits(slip, plain):
    model = create_model("spikformer", dim=16, heads=2, depths=(1,), image_size=8, timesteps=2)
    model.head.register_forward_hook(lambda module, inputs, output: slip(output))
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError)):
        learn_on_meta(model)


def test_batches_come_to_a_device_without_waiting(monkeypatch):
    """Drawn on the host and pinned: the same on every device."""
    from msvit.training import loading
    from msvit.training.augmentation import crops, moves, rand_augment

    text = "rand-m9-n2-p1-mstd0.5-inc1"
    options = TrainingOptions(
        batch_size=4, hflip=True, shift=2, rand_augment=text, crop_scale=(0.3, 1.0)
    )
    augment = Augmentation(options, (0.5,), torch.device("cpu"))
    images = torch.randint(0, 256, (10, 1, 8, 8), dtype=torch.uint8)
    data = Loader(Images(images, torch.arange(10)), 4, torch.device("cpu"))

    def epoch():
        return list(train_batches(data, options, augment, seed_everything(0, 1)))

    expected, moved = epoch(), []

    def to_device(x, device):
        moved.append(x.device.type)
        return x

    for module in (loading, crops, moves, rand_augment):
        monkeypatch.setattr(module, "to_device", to_device)
    for batch, other in zip(expected, epoch(), strict=True):
        assert torch.equal(batch.images, other.images)
        assert torch.equal(batch.labels, other.labels)
    # The order; then corners, rows and columns, who gets what and how much of it.
    assert moved == ["cpu"] * (1 + 5 * len(expected))
