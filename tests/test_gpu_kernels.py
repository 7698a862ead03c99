"""The Triton kernels on a GPU: against torch and spikingjelly, official outputs, and themselves."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from msvit import create_model, kernels
from msvit.kernels import NeuronSpec, reference
from msvit.neuron_kinds import SURROGATES
from tests.test_golden import CASES, build, compare_gradients
from tests.test_kernels import UNITS, Case, assert_close, outcome

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
DTYPES = (torch.float64, torch.float32, torch.bfloat16)
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 5e-2}
"""Of gradients and statistics, relative to the largest; what fires is the same in float64."""


def random_spec(choose: random.Random) -> NeuronSpec:
    return NeuronSpec(
        kind=choose.choice(["if", "lif", "plif"]),
        tau=choose.choice([1.5, 2.0, 3.0]),
        decay_input=choose.random() < 0.5,
        threshold=choose.choice([0.5, 1.0]),
        hard_reset=choose.random() < 0.5,
        surrogate=choose.choice(SURROGATES),
        surrogate_alpha=choose.choice([2.0, 4.0]),
        detach_reset=choose.random() < 0.5,
    )


def random_case(seed: int, dtype: torch.dtype) -> Case:
    """Widths of published models and odd ones, few steps and more than fit into registers."""
    choose, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    steps = choose.choice([1, 2, 4, 4, 5, 8, 11, 16])
    channels = choose.choice([1, 3, 17, 48, 64, 75, 96, 130, 192, 384, 768])
    images, height, width = choose.randint(3, 5), choose.randint(2, 9), choose.randint(2, 9)
    real = torch.promote_types(dtype, torch.float32)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator, dtype=torch.float64).to(DEVICE)

    static = choose.random() < 0.3
    y = (2 * normal(1 if static else steps, images, height, width, channels) + 0.5).to(dtype)
    norm = nn.BatchNorm1d(channels, momentum=choose.choice([0.1, 0.9, None])).to(DEVICE, real)
    with torch.no_grad():
        for vector in (norm.weight, norm.bias, norm.running_mean):
            vector.copy_(normal(channels))
        norm.running_var.copy_(normal(channels) ** 2 + 0.1)
    norm.train(choose.random() < 0.7)
    spec = random_spec(choose)
    plif_w = torch.tensor(0.4, dtype=real, device=DEVICE) if spec.kind == "plif" else None
    offset = normal(channels).to(real) if choose.random() < 0.5 else None
    shortcut = choose.random() < 0.5
    return Case(y.expand(steps, *y.shape[1:]), norm, spec, plif_w, shortcut, offset, seed)


def same_but_for_rounding(ours: dict[str, Tensor], theirs: dict[str, Tensor], dtype) -> None:
    """A potential within rounding of the threshold may fire on one side only, if not in float64."""
    flipped = (ours["out"].double() - theirs["out"].double()).abs() > 0.5
    assert flipped.double().mean() <= (0 if dtype == torch.float64 else 1e-3)
    if not flipped.any():
        assert_close(ours, theirs, TOLERANCE[dtype])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.__name__)
def test_random_units_equal_torch_and_spikingjelly(unit, dtype):
    assert kernels.available(DEVICE, dtype)
    for seed in range(6):
        case = random_case(seed, dtype)
        if unit.__name__ == "neuron":
            case = case._replace(shortcut=False)
        ours, theirs = outcome(unit(kernels), case), outcome(unit(reference), case)
        same_but_for_rounding(ours, theirs, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_random_token_attentions_equal_the_reference(dtype):
    for seed in range(6):
        choose, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        steps, heads = choose.choice([1, 4, 11, 16]), choose.choice([1, 3, 8])
        channels = heads * choose.choice([5, 12, 24, 48])
        parts, wides = choose.choice([(1, 1), (2, 0), (2, 1), (3, 2)])
        spec, shape = random_spec(choose), (steps, 2, choose.randint(3, 70))
        spikes = [
            torch.randint(2, (*shape, width), generator=generator).to(DEVICE, dtype)
            for width in (parts * channels, *[channels] * wides)
        ]
        grad_out = torch.randn(*shape, channels, generator=generator).to(DEVICE, dtype)
        found = []
        for module in (kernels, reference):
            joined, *wide = (s.clone().requires_grad_() for s in spikes)
            w = torch.tensor(0.4, dtype=torch.promote_types(dtype, torch.float32), device=DEVICE)
            w = w.requires_grad_() if spec.kind == "plif" else None
            out, mask = module.token_attention(joined, parts, wide, spec, heads, w)
            out.backward(grad_out)
            grads = {f"grad{i}": x.grad for i, x in enumerate((joined, *wide))}
            if w is not None:
                grads["w"] = w.grad
            found.append({"out": out.detach(), "mask": mask, **grads})
        same_but_for_rounding(*found, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_max_pool_breaks_ties_like_torch(dtype):
    spikes = torch.randint(2, (2, 3, 9, 14, 70), device=DEVICE).to(dtype)
    found = []
    for module in (kernels, reference):
        x = spikes.clone().requires_grad_()
        out = module.max_pool(x)
        out.backward(torch.arange(out.numel(), device=DEVICE).remainder(7).view_as(out).to(dtype))
        found.append((out, x.grad))
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)


def train_step(pool: bool = False) -> list[Tensor]:
    """What one step of a wide unit leaves: more bands of rows than fit on the device at once."""
    torch.manual_seed(0)
    y = torch.randn(4, 64, 32, 32, 96, device=DEVICE, dtype=torch.bfloat16).requires_grad_()
    norm, w = nn.BatchNorm1d(96).to(DEVICE), torch.zeros((), device=DEVICE, requires_grad=True)
    out = kernels.norm_neuron(y, norm, NeuronSpec("plif"), w, pool=pool)
    out.backward(torch.randn_like(out))
    return [out, y.grad, norm.weight.grad, norm.bias.grad, w.grad, *norm.buffers()]


@pytest.mark.parametrize("pool", [False, True])
def test_the_same_step_gives_the_same_bits(pool):
    first = train_step(pool)
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, train_step(pool), strict=True))


def units() -> dict[str, Callable[[], Tensor]]:
    """A step of every operation, and a scalar to differentiate."""
    norm, spec = nn.BatchNorm1d(48).to(DEVICE), NeuronSpec("plif")
    cumulative = nn.BatchNorm1d(48, momentum=None).to(DEVICE)
    y = torch.randn(4, 2, 8, 8, 48, device=DEVICE, requires_grad=True)
    joined = torch.randint(2, (4, 2, 8, 8, 96), device=DEVICE).float().requires_grad_()
    w = torch.zeros((), device=DEVICE, requires_grad=True)
    static = y[:1].expand_as(y)
    return {
        "norm_neuron": lambda: kernels.norm_neuron(y, norm, spec, w, shortcut=y),
        "static": lambda: kernels.norm_neuron(static, norm, spec, w),
        "cumulative": lambda: kernels.norm_neuron(y, cumulative, spec, w),
        "pool": lambda: kernels.norm_neuron(y, norm, spec, w, pool=True),
        "norm_add": lambda: kernels.norm_add(y, norm, shortcut=y),
        "neuron": lambda: kernels.neuron(y, spec, w),
        "max_pool": lambda: kernels.max_pool(y),
        "token_attention": lambda: kernels.token_attention(joined, 2, [y], spec, 8, w)[0],
    }


@pytest.fixture
def waiting_is_an_error():
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


def test_no_unit_waits_for_the_device(waiting_is_an_error):
    steps = units()
    for step in steps.values():
        step().sum().backward()  # compiled by now
    waiting_is_an_error()
    for step in steps.values():
        step().sum().backward()


@pytest.mark.slow
@pytest.mark.parametrize("kernels_are", ["on", "off"])
@pytest.mark.parametrize("case", CASES)
def test_official_outputs_on_the_device(case, kernels_are, monkeypatch):
    if kernels_are == "off":
        monkeypatch.setenv("MSVIT_KERNELS", "off")
    golden, model, x = build(case)
    model, x, target = model.to(DEVICE), x.to(DEVICE), golden["train_target"].to(DEVICE)
    for logits, mode in ((model.eval()(x).detach(), "eval"), (model.train()(x), "train")):
        expected = golden[f"{mode}_logits"].to(DEVICE)
        got = logits if expected.ndim == 3 else logits.mean(0)
        torch.testing.assert_close(got, expected, atol=1e-9, rtol=0)
    loss = F.cross_entropy(logits.mean(0), target)
    loss.backward()
    assert loss.item() == pytest.approx(float(golden["train_loss"]), abs=1e-9)
    assert compare_gradients(model, golden["grad_norms"])


def test_a_model_trains_to_the_same_bits():
    def gradients() -> list[Tensor]:
        torch.manual_seed(0)
        model = create_model("msvit", image_size=16, dim=64, heads=4).to(DEVICE)
        images = torch.randn(8, 3, 16, 16, device=DEVICE)
        with torch.autocast(DEVICE, torch.bfloat16):
            model(images).float().square().mean().backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    assert all(torch.equal(a, b) for a, b in zip(gradients(), gradients(), strict=True))
