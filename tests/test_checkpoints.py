"""What ``load_official`` takes: the files that training scripts write, and no code."""

from __future__ import annotations

import argparse
import datetime
import gzip
import os
import pathlib
import re
from collections import OrderedDict, deque

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from msvit import load_official
from msvit.checkpoints import CheckpointError
from tests.small import fire, small_input, small_model

pytestmark = pytest.mark.slow


def model(name="qkformer_cifar10", **options):
    return small_model(name, timesteps=2, **options)


def official(trained):
    """The tensors of a model under official names, q, k and v apart."""
    names, state = trained.official_map(), {}
    for target, tensor in trained.state_dict().items():
        keys = names.sources(target)
        pieces = tensor.chunk(len(keys)) if tensor.ndim else [tensor] * len(keys)
        state |= {key: piece.clone() for key, piece in zip(keys, pieces, strict=True)}
    return state


@pytest.fixture(scope="module")
def trained():
    trained = model()
    fire(trained.double())
    return trained.float()


@pytest.fixture(scope="module")
def state(trained):
    return official(trained)


def prefixed(state, prefix):
    return OrderedDict((prefix + key, value) for key, value in state.items())


def drawn(state):
    """Other weights under the same names."""
    return {k: v + 1 if v.is_floating_point() else v for k, v in state.items()}


def optimizer_state(state):
    tensors = {i: {"step": torch.tensor(3.0), "exp_avg": v} for i, v in enumerate(state.values())}
    return {"state": tensors, "param_groups": [{"lr": 1e-3, "params": list(tensors)}]}


ARGS = argparse.Namespace(lr=5e-4, epochs=300, output=pathlib.Path("out"), scales=(1, 3), ema=None)

CONTAINERS = {
    "plain": lambda s: s,
    "qkformer, max-former, spikingformer, msvit on imagenet": lambda s: {
        "model": s, "optimizer": optimizer_state(s), "epoch": 3, "scaler": {}, "args": ARGS
    },
    "timm": lambda s: {
        "epoch": 3, "arch": "qkformer", "state_dict": s, "args": ARGS, "version": 2,
        "metric": np.float64(95.1), "optimizer": optimizer_state(s),
    },
    "timm with an average": lambda s: {"state_dict": drawn(s), "state_dict_ema": s},
    "an average in a wrapper": lambda s: {
        "model": drawn(s), "model_ema": prefixed(s, "module."), "scores": [np.float32(0.5)]
    },
    "net": lambda s: {"net": s, "acc": np.float32(95.0), "epoch": np.int64(7)},
    "model_state_dict": lambda s: {"model_state_dict": s, "loss": 0.1, "history": np.arange(4.0)},
    "another word": lambda s: {"weights": {"of": {"student": s}}},
    "a pair": lambda s: (s, 17),
    "data parallel": lambda s: prefixed(s, "module."),
    "compiled": lambda s: {"model": prefixed(s, "_orig_mod.")},
    "compiled, then data parallel": lambda s: prefixed(s, "module._orig_mod."),
    "compiled in parts": lambda s: {k.replace(".", "._orig_mod.", 1): v for k, v in s.items()},
    "lightning": lambda s: {
        "state_dict": prefixed(s, "model.") | {"criterion.weight": torch.ones(10)},
        "pytorch-lightning_version": "2.4", "hyper_parameters": {"args": ARGS},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.9)}},
    },
    "lightning with an average": lambda s: {
        "state_dict": prefixed(drawn(s), "model.") | prefixed(s, "ema.module.")
    },
    "teacher and student": lambda s: {
        "teacher": {k: torch.cat([v, v]) if v.ndim else v for k, v in s.items()}, "student": s
    },
    "thop": lambda s: s | {
        f"{module}{count}": torch.zeros(1, dtype=torch.float64)
        for module in ("", "head.", "stage1.0.mlp.")
        for count in ("total_ops", "total_params")
    },
    "a head for distillation": lambda s: s | {
        "head_dist.weight": torch.ones(10, 32), "head_dist.bias": torch.zeros(10)
    },
}  # fmt: skip


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container_is_looked_through(container, trained, state, tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save(CONTAINERS[container](state), path)
    loaded = model()
    report = load_official(loaded, path)
    assert report.loaded == len(state)
    assert not report.missing
    assert not report.unexpected
    for name, tensor in trained.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_one_line_says_what_was_taken_and_what_was_left(state, tmp_path):
    path = tmp_path / "best.pth"
    content = {"state_dict": drawn(state), "state_dict_ema": state, "epoch": 3, "args": ARGS}
    torch.save(content, path)
    report = load_official(model(), path)
    assert str(report).splitlines()[0] == (
        f"{len(state)} tensors loaded from {path} (state_dict_ema); "
        "left there: state_dict, epoch, args"
    )
    assert f"as good a fit: {path} (state_dict)" in str(report)
    raw = model()
    load_official(raw, content["state_dict"])
    assert torch.equal(raw.head.linear.bias, state["head.bias"] + 1)
    lightning = prefixed(state, "net.") | {"criterion.weight": torch.ones(10)}
    report = load_official(model(), {"state_dict": lightning, "epoch": 3})
    assert report.taken == "the given mapping (state_dict.net)"
    assert report.left == ["epoch", "state_dict.criterion.weight"]


def test_another_classifier_is_left_and_said(state):
    report = load_official(model(), CONTAINERS["a head for distillation"](state))
    assert report.ignored == ["head_dist.weight", "head_dist.bias"]
    assert any("head_dist, another classifier, was left" in line for line in report.remarks)
    for extra in ({"neck.weight": torch.ones(32, 32)}, {"stage4.0.weight": torch.ones(10, 32)}):
        with pytest.raises(CheckpointError, match=f"1 unexpected: {next(iter(extra))}"):
            load_official(model(), state | extra)


@pytest.mark.parametrize("name", ["qkformer_cifar10", "spikingresformer_cifar10", "vit_cifar10"])
def test_a_backbone_takes_another_classifier(name, tmp_path):
    theirs, path = official(small_model(name)), tmp_path / "checkpoint.pth"
    torch.save({"model": theirs}, path)
    ours = small_model(name, num_classes=7)
    with pytest.raises(CheckpointError, match="head=False loads all but the classifier") as error:
        load_official(ours, path)
    assert str(path) in str(error.value)
    fresh = {k: v.clone() for k, v in ours.state_dict().items() if "head.linear" in k}
    report = load_official(ours, path, head=False)
    assert report.loaded == len(theirs) - len(fresh)
    assert len(report.left) == len(fresh)
    assert all(torch.equal(ours.state_dict()[name], value) for name, value in fresh.items())
    without = {key: value for key, value in theirs.items() if key not in report.left}
    assert load_official(ours, without, head=False).loaded == report.loaded


def test_a_checkpoint_that_does_not_fit_is_told_by_file_and_tensor(state, tmp_path):
    path = tmp_path / "checkpoint.pth"

    def told(content, *parts, **options):
        torch.save(content, path)
        with pytest.raises(CheckpointError) as error:
            load_official(model(**options), path)
        for part in (str(path), *parts):
            assert part in str(error.value)

    first = "patch_embed1.proj_conv.weight"
    without = {key: value for key, value in state.items() if key != first}
    told({"net": without}, f"1 missing: {first}")
    told(state | {"head.scale": torch.ones(1)}, "1 unexpected: head.scale")
    told({"net": state}, f"mismatched: {first} (4, 3, 3, 3)", "sizes?", dim=64)
    told({"epoch": 3}, "none at all")
    deep = {"a": {"b": {"c": {"d": {"e": state}}}}}
    torch.save(deep, path)
    assert load_official(model(), path).taken.endswith("(a.b.c.d.e)")
    told({"conv1": torch.ones(3), "fc.weight": torch.ones(2)}, "none of QKFormer: conv1, fc.weight")
    told(state | {first: state[first] * float("nan")}, "not finite")


CONV, NORM = "patch_embed1.proj_conv.weight", "patch_embed1.proj_bn"


UNUSABLE = {
    "infinite once rounded": (CONV, lambda v: torch.full_like(v, 1e200, dtype=torch.float64)),
    "a variance below 0": (f"{NORM}.running_var", lambda v: v - 10),
    "truths": (CONV, lambda v: v > 0),
    "complex": (CONV, lambda v: v.to(torch.complex64)),
    "whole numbers": (CONV, lambda v: v.int()),
    "two counts": (f"{NORM}.num_batches_tracked", lambda v: torch.stack([v, v])),
    "quantised": (CONV, lambda v: torch.quantize_per_tensor(v, 0.1, 0, torch.qint8)),
    "sparse": (CONV, lambda v: v.to_sparse()),
    "without memory": (CONV, lambda v: v.to("meta")),
}


@pytest.mark.filterwarnings("ignore:.*quantiz.*")
@pytest.mark.parametrize("kind", UNUSABLE)
def test_tensors_that_cannot_be_weights_are_refused_by_name(kind, state):
    key, spoil = UNUSABLE[kind]
    ours = "embeddings.0.units.0." + ("conv.weight" if key == CONV else "norm")
    loaded = model()
    before = {name: tensor.clone() for name, tensor in loaded.state_dict().items()}
    with pytest.raises(CheckpointError, match=re.escape(ours)):
        load_official(loaded, state | {key: spoil(state[key])})
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_state_dict_in_another_precision_is_taken(trained, state):
    loaded = model()
    load_official(loaded, {key: tensor.double() for key, tensor in state.items()})
    for name, tensor in trained.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_an_average_of_torch_is_taken_its_counter_left(trained):
    report = load_official(model(), torch.optim.swa_utils.AveragedModel(trained).state_dict())
    assert report.loaded == len(trained.state_dict())
    assert report.ignored == ["n_averaged"]


def test_arrays_of_numpy_are_told_what_they_are(state):
    arrays = {key: tensor.numpy() for key, tensor in state.items()}
    with pytest.raises(CheckpointError, match=r"only numpy arrays: .*torch\.from_numpy"):
        load_official(model(), {"weights": arrays})


@pytest.mark.parametrize("source", [None, 3, [1.0]])
def test_what_is_neither_file_nor_mapping_is_refused(source):
    with pytest.raises(CheckpointError, match=f"not {type(source).__name__}"):
        load_official(model(), source)


def test_plain_values_of_the_library_are_no_code(state, tmp_path):
    path = tmp_path / "checkpoint.pth"
    beside = {
        "losses": deque([0.5, 0.25], maxlen=9),
        "saved": datetime.datetime.now(datetime.timezone(datetime.timedelta(hours=1))),
        "random": [np.random.default_rng(0), np.random.RandomState(0)],
    }
    torch.save({"model": state, **beside}, path)
    report = load_official(model(), path)
    assert (report.loaded, report.left) == (len(state), [*beside])


def test_a_checkpoint_with_code_in_it_is_refused_unread(tmp_path):
    path, proof = tmp_path / "checkpoint.pth", tmp_path / "proof"

    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(proof),)

    torch.save({"model": {"a": torch.ones(1)}, "args": Hostile()}, path)
    with pytest.raises(CheckpointError, match=r"mkdir") as error:
        load_official(model(), path)
    assert str(path) in str(error.value)
    assert not proof.exists()
    torch.save(nn.Linear(2, 2), path)
    with pytest.raises(CheckpointError, match=r"Linear.*model.state_dict\(\)"):
        load_official(model(), path)


@pytest.mark.parametrize(
    "content", [b"", b"<!DOCTYPE html>", b"PK\3\4 cut", b"\x10\0\0\0\0\0\0\0{"]
)
def test_what_is_no_checkpoint_is_told_by_its_path(content, tmp_path):
    path = tmp_path / "checkpoint.pth"
    for source in (path, tmp_path):
        with pytest.raises(CheckpointError, match="file") as error:
            load_official(model(), source)
        assert str(source) in str(error.value)
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="not a checkpoint") as error:
        load_official(model(), path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "git lfs pull"),
        (gzip.compress(b"weights"), "gzip: unpack it"),
        (b"<!DOCTYPE html>", "a web page"),
        (b"", "empty"),
        (b"PK\3\4 cut", "cut short"),
        (b'{"weights": 1}', "neither by torch.save nor as safetensors"),
    ],
    ids=["pointer", "gzip", "page", "empty", "cut", "json"],
)
def test_what_a_file_is_instead_is_told(content, told, tmp_path):
    path = tmp_path / "checkpoint.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=told):
        load_official(model(), path)


@pytest.mark.parametrize("size", [5000, 3000, 200])
def test_a_file_cut_short_is_told(size, tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": {f"layer{n}": torch.ones(50, 50) for n in range(5)}}, path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match="cut short, its end is missing"):
        load_official(model(), path)


def test_safetensors_are_read_whatever_their_name(trained, state, tmp_path):
    path = tmp_path / "weights.bin"
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    loaded = model()
    load_official(loaded, path)
    x = small_input(loaded, 2, torch.float32)
    assert torch.equal(loaded.eval()(x), trained.eval()(x))


def test_weights_under_our_own_names_are_taken_too(trained, tmp_path):
    path = tmp_path / "checkpoint.pt"
    last = drawn(trained.state_dict())
    torch.save({"cell": "0123", "model": last, "best": trained.state_dict(), "history": []}, path)
    loaded = model()
    report = load_official(loaded, path)
    assert report.taken == f"{path} (best)"
    assert not any("coupling" in remark for remark in report.remarks)
    assert torch.equal(loaded.head.linear.weight, trained.head.linear.weight)


def test_branches_that_nobody_published_are_missing_in_words(state, tmp_path):
    shared = model("msvit_cifar10", projections="shared")
    with pytest.raises(CheckpointError, match=r"branches\.query"):
        load_official(shared, state)
    torch.save(shared.state_dict(), tmp_path / "ours.pt")
    load_official(model("msvit_cifar10", projections="shared"), tmp_path / "ours.pt")
