"""Published recipes: what they are for, where they are from, and that each can train."""

from __future__ import annotations

import math

import pytest
import torch
import yaml

import msvit.recipes as recipes_module
from msvit import create_model
from msvit.cells import left_out_of_recipe, resolve_cell
from msvit.data import DATASETS
from msvit.data.splits import Images
from msvit.models import zoo
from msvit.options import ConfigError
from msvit.precision import choose_precision
from msvit.recipes import TrainingOptions, list_recipes, load_recipe, read_recipe
from msvit.training.augmentation import Augmentation
from msvit.training.batches import Normalise, train_batches
from msvit.training.loading import Loader
from msvit.training.loop import Taken, Trainer
from msvit.training.optimization import Rates, make_erasing, make_mixup, make_optimizer
from msvit.training.randomness import seed_everything
from msvit.training.step import TrainingStep
from studies.grids import load_study
from studies.run import main

CPU = torch.device("cpu")
MINE = {"about": "mine", "training": {}}
PAPERS = ("msvit", "qkformer", "spikformer", "spikingformer", "sdt", "metaspikeformer")
PAPERS += ("spikingresformer", "maxformer")


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_says_where_it_is_from_and_fits_what_it_is_for(name):
    recipe = read_recipe(name)
    assert recipe.about
    assert recipe.source
    architectures = {entry["architecture"] for entry in zoo().values()}
    assert set(recipe.models) <= {*zoo(), *architectures}
    assert set(recipe.data) <= set(DATASETS)
    for model in recipe.models or ("msvit",):
        for data in recipe.data:
            sections = {"model": {"name": model}, "data": {"name": data}}
            cell = resolve_cell({**sections, "training": {"recipe": name}}, "t")
            assert cell.training.items() >= written(load_recipe(name)).items()
            assert recipe.note(model, zoo()[model]["architecture"], data) is None


PUBLISHED = """
maxformer-cifar10            adamw      0.0015    1e-05    0.06    400+10  128   20
maxformer-cifar100           adamw      0.0015    1e-05    0.06    400+10  64    20
maxformer-cifar10dvs         adamw      0.005     1e-05    0.06    96+10   16    10
maxformer-dvs128             adamw      0.005     1e-05    0.06    150+10  16    10
maxformer-imagenet-384       adamw      0.0027    2.5e-06  0.05    200+0   512   5
maxformer-imagenet-512       adamw      0.0027    1e-06    0.05    200+0   512   5
maxformer-imagenet-768       adamw      0.0027    1e-05    0.05    200+0   512   5
metaspikeformer-imagenet     lamb+clip  0.0024    1e-06    0.05    200+0   1024  10
metaspikeformer-imagenet-t4  lamb+clip  1.5e-05   1e-06    0.05    50+0    192   5
msvit-cifar10                adamw      0.001     1e-05    0.06    400+10  64    20
msvit-cifar100               adamw      0.001     1e-05    0.06    400+10  64    20
msvit-cifar10dvs             adamw      0.005     1e-05    0.06    96+10   16    10
msvit-dvs128                 adamw      0.001     2e-05    0.06    192+10  16    10
msvit-imagenet               adamw      0.000225  1e-07    0.05    200+0   96    5
qkformer-cifar10             adamw      0.001     1e-05    0.06    400+10  64    20
qkformer-cifar100            adamw      0.001     1e-05    0.06    400+10  64    20
qkformer-cifar10dvs          adamw      0.005     1e-05    0.06    96+10   16    10
qkformer-dvs128              adamw      0.001     2e-05    0.06    192+10  16    10
qkformer-imagenet            adamw      0.0012    1e-06    0.05    200+0   512   5
sdt-cifar10                  adamw      0.0003    1e-05    0.06    300+10  64    20
sdt-cifar100                 adamw      0.0003    1e-05    0.06    300+10  64    20
sdt-cifar10dvs               adamw      0.0075    0.0003   0.0001  200+10  32    10
sdt-dvs128                   lamb       0.0003    1e-05    0.06    200+10  16    10
sdt-imagenet-8-512           lamb       0.0015    1.5e-05  0.01    300+10  48    20
sdt-imagenet-8-768           lamb       0.001     2e-05    0.01    300+10  36    20
spikformer-cifar10           adamw      0.0005    1e-05    0.06    300+10  128   20
spikformer-cifar10dvs        adamw      0.001     1e-05    0.06    96+10   16    10
spikformer-imagenet          adamw      0.0005    1e-05    0.05    300+10  192   20
spikingformer-cifar10        adamw      0.0005    1e-05    0.06    400+10  64    20
spikingformer-cifar100       adamw      0.0005    1e-05    0.06    400+10  64    20
spikingformer-cifar10dvs     adamw      0.001     1e-05    0.06    96+10   16    10
spikingformer-dvs128         adamw      0.001     1e-05    0.06    192+10  16    10
spikingformer-imagenet       adamw      0.0005    1e-05    0.05    300+10  288   20
spikingresformer-cifar10     adamw      0.0005    1e-05    0.01    600+0   128   3
spikingresformer-cifar100    adamw      0.0005    1e-05    0.01    600+0   128   3
spikingresformer-cifar10dvs  adamw      0.0005    1e-05    0.05    300+0   8     3
spikingresformer-dvs128      adamw      0.0001    1e-05    0.05    300+0   8     3
spikingresformer-imagenet-l  adamw      0.0005    1e-05    0.01    320+0   128   3
spikingresformer-imagenet-m  adamw      0.0008    1e-05    0.01    320+0   224   3
spikingresformer-imagenet-s  adamw      0.001     1e-05    0.01    320+0   256   3
"""
"""Recipe, optimizer, rate of the whole batch, rate at the end, weight decay, epochs and those of
the cooldown, batch of all GPUs, epochs of the warm-up: as the files that each names have them."""


def test_rates_and_lengths_are_the_published_ones():
    found = []
    for name in set(list_recipes()) - {"digits", "fashion_mnist"}:
        options = TrainingOptions.parse(load_recipe(name), name)
        optimizer = options.optimizer + ("+clip" if options.trust_clip else "")
        rates = (f"{value:g}" for value in (options.peak_lr, options.min_lr, options.weight_decay))
        epochs = f"{options.epochs}+{options.cooldown_epochs}"
        row = (name, optimizer, *rates, epochs, options.batch_size, f"{options.warmup_epochs:g}")
        found.append([str(value) for value in row])
    assert sorted(found) == [line.split() for line in PUBLISHED.strip().splitlines()]


def test_a_rate_grows_with_the_batch_that_it_is_not_meant_for():
    options = TrainingOptions(lr=1e-3, lr_base_size=256, batch_size=512)
    optimizer = make_optimizer(torch.nn.Linear(2, 2), options)
    assert {group["lr"] for group in optimizer.param_groups} == {2e-3}


def written(training):
    """As a cell holds it: what is at its default and came later is left out."""
    return {
        key: value
        for key, value in TrainingOptions.parse(training, "t").model_dump(mode="json").items()
        if key in training
    }


def test_every_paper_has_its_settings():
    known = {tuple(name.split("-")[:2]) for name in list_recipes()}
    for paper in PAPERS:
        assert (paper, "imagenet") in known
    for paper in set(PAPERS) - {"metaspikeformer"}:
        assert (paper, "cifar10") in known
        assert (paper, "cifar10dvs") in known


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_takes_a_step(name):
    """Of a few small images or events, by a small model: with all that is done to them before."""
    training = load_recipe(name)
    batch = max(4, training.get("grad_accum_steps", 1))
    small = {"batch_size": batch, "precision": "fp32"}
    if "lr_base_size" in training:  # as far from the batch as it was
        small["lr_base_size"] = round(training["lr_base_size"] * batch / training["batch_size"])
    options = TrainingOptions.parse(training | small, name)
    events = any(DATASETS[data].events for data in read_recipe(name).data)
    channels, shape = (2, (3, 2, 8, 8)) if events else (3, (3, 8, 8))
    seed_everything(0, 0)
    model = create_model(
        "spikformer",
        dim=8,
        heads=2,
        depths=(1,),
        image_size=8,
        in_channels=channels,
        timesteps=3 if events else 2,
        threshold=0.2,
    )
    before = {key: value.clone() for key, value in model.state_dict().items()}
    normalise = Normalise((0.5,) * channels, (0.25,) * channels, CPU)
    optimizer = make_optimizer(model, options, CPU)
    step = TrainingStep(model, options, optimizer, normalise, choose_precision("fp32", CPU))
    rates = Rates(optimizer, options, 2, CPU)
    trainer = Trainer(
        *(model, step, rates, normalise, make_mixup(options, 10), options.mixup_off_epoch),
        erase=make_erasing(options, CPU),
        erasing_first=options.erasing_first,
    )
    images = torch.randint(0, 256, (2 * batch + 1, *shape), dtype=torch.uint8)
    loader = Loader(Images(images, torch.arange(len(images)) % 10), options.batch_size, CPU)
    augment = Augmentation(options, (0.5,) * channels, CPU)
    # Behind the warm-up, whose first rate may be 0.
    epoch = math.ceil(options.warmup_epochs) + 1
    batches = train_batches(loader, options, augment, seed_everything(0, epoch))
    loss, _ = trainer.train_epoch(batches, epoch, Taken.none_yet(2, CPU))
    assert math.isfinite(loss)
    assert rates.current == pytest.approx(options.peak_lr, rel=0.3)
    assert any(not torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_another_use_is_said_once_and_not_forbidden(tmp_path):
    overrides = ["training.recipe=msvit-cifar10"]
    notes = load_study("scales", overrides).notes
    recipe = "recipe msvit-cifar10 is made for msvit on cifar10; here it trains"
    assert [note for note in notes if "recipe" in note] == [
        f"{recipe} {model} on digits" for model in ("msvit", "spikformer", "qkformer")
    ]
    assert not [note for note in load_study("scales").notes if "recipe" in note]


@pytest.mark.parametrize("data", sorted(DATASETS))
def test_what_a_recipe_says_in_vain_of_these_data_is_left_out(data):
    """Events where images are, and the other way round: of what is set itself it is refused."""
    model = "spikformer" if DATASETS[data].events else "vit"
    for name in list_recipes():
        sections = {"model": {"name": model}, "data": {"name": data}}
        raw = {**sections, "training": {"recipe": name}}
        cell = resolve_cell(raw, "t")
        left_out, recipe = left_out_of_recipe(raw), load_recipe(name)
        assert left_out.keys() <= {"event_augmentation", "rand_augment", "crop_pct"} & set(recipe)
        assert not left_out.keys() & cell.training.keys()
        for option in left_out:
            own = {"recipe": name, option: recipe[option]}
            with pytest.raises(ConfigError, match=f"{option}: it is for"):
                resolve_cell({**sections, "training": own}, "t")


def test_what_is_left_out_of_a_recipe_is_said():
    """The epochs of the manual's example are over before mixup would be switched off."""
    overrides = ["data.name=cifar10", "training.recipe=msvit-cifar10", "training.epochs=50"]
    study = load_study("scales", overrides)
    assert all("mixup_off_epoch" not in cell.cell.training for cell in study.cells)
    (note,) = [note for note in study.notes if "left out" in note]
    assert note.startswith("recipe msvit-cifar10: mixup_off_epoch is left out: ")
    assert "(200) must be below all epochs (60)" in note
    overrides = ["data.name=simulated_events", "data.frames_number=4"]
    notes = " ".join(load_study("scales", [*overrides, "training.recipe=msvit-cifar10"]).notes)
    assert "rand_augment is left out: it is for images" in notes


def test_other_time_steps_and_weights_that_lack_are_said():
    overrides = ["training.recipe=metaspikeformer-imagenet-t4", "model.timesteps=2"]
    notes = load_study("scales", overrides).notes
    name = "recipe metaspikeformer-imagenet-t4"
    assert f"{name} is made for 4 time steps; here are 2" in notes
    assert f"{name} goes on from trained weights; training.start_from names none" in notes
    overrides = [overrides[0], "model.timesteps=4", "training.start_from=0123456789ab"]
    told = [note for note in load_study("scales", overrides).notes if note.startswith(name)]
    assert not [note for note in told if "time steps" in note or "weights" in note]


def test_recipes_are_listed_with_their_source(capsys):
    assert main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in list_recipes():
        (line,) = [line for line in lines if line.startswith(f"{name} ")]
        assert read_recipe(name).source in line


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"training": {"epochs": 3}}, "keys about, source, for, training"),
        ({"about": "mine", "training": {}, "fro": {}}, "keys about, source, for, training"),
        ({"about": "mine", "training": {"epoch": 3}}, "did you mean 'epochs'"),
        ({"about": 3, "training": {}}, "about: a text is needed"),
        ({"about": "mine", "training": [1]}, "training: a mapping of options"),
        (MINE | {"for": ["msvit"]}, "for: a mapping is needed"),
        (MINE | {"for": {"model": ["msvit"]}}, r"for\.model: unknown key; did you mean 'models'"),
        (MINE | {"for": {"models": "msvit"}}, r"for\.models: a list of names is needed"),
        (MINE | {"for": {"models": ["msvitt"]}}, r"for\.models: no 'msvitt'; did you mean 'msvit'"),
        (MINE | {"for": {"data": ["cifar"]}}, r"for\.data: no 'cifar'; did you mean 'cifar10'"),
        (MINE | {"for": {"timesteps": "4"}}, r"for\.timesteps: a whole number"),
    ],
)
def test_a_recipe_that_cannot_be_used_names_its_file(content, said, tmp_path, monkeypatch):
    monkeypatch.setattr(recipes_module, "_FOLDER", tmp_path)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=rf"mine\.yaml.*{said}"):
        load_recipe("mine")


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"event_augmentation": "snn_wide"}, "event_augmentation: it is for events"),
        ({"crop_pct": 0.9}, "crop_pct: it is for images that are cut out"),
        ({"mixup_off_epoch": 3}, "mixup_off_epoch: nothing is mixed"),
        ({"warmup_epochs": 10, "min_lr": 1.0}, "(?s)warmup_epochs.*min_lr .* must not be above"),
        ({"warmup_epochs": 10, "crop_pct": 0.9}, "(?s)crop_pct: it is .*warmup_epochs .* below"),
        ({"recipe": "msvit-cifar10", "epochs": 20}, r"warmup_epochs \(20\) must be below"),
        ({"recipe": "msvit-cifar10", "epochs": 50, "mixup_off_epoch": 200}, "or never comes"),
        ({"mixup": 0.5, "mixup_switch_prob": 0.3}, "mixup_switch_prob: mixup and cutmix"),
        ({"random_erasing_mode": "pixel"}, "random_erasing_mode: nothing is erased"),
        ({"crop_ratio": [1.0, 1.0]}, "crop_ratio: images are not cropped"),
        ({"crop_scale": 0.5}, r"crop_scale: from and to are needed .* \[0\.5, 1\.0\]"),
        ({"crop_scale": [0.5, 1.5]}, "crop_scale ends at 1"),
        ({"crop_scale": [0.5, 0.1]}, "the smaller one first"),
        ({"cooldown_epochs": 2, "schedule": "constant"}, "cooldown_epochs: a constant"),
        ({"warmup_prefix": True, "warmup_epochs": 0}, "warmup_prefix: there is no warm-up"),
        ({"trust_clip": True}, "trust_clip: only lamb"),
        ({"lr_base_size": 64}, "lr_base_size: lr is for this batch_size"),
        ({"lr_base_size": 1024, "min_lr": 1e-4}, "min_lr .* must not be above lr"),
        ({"grad_accum_steps": 3}, "multiple of grad_accum_steps"),
        ({"cutmix": 1.0, "batch_size": 3}, "cutmix needs an even batch_size"),
        ({"mixup": 0.5, "mixup_off_epoch": 10}, "must be below all epochs"),
    ],
)
def test_what_would_do_nothing_or_cannot_be_is_refused(training, said):
    sections = {"model": {"name": "msvit"}, "data": {"name": "digits"}}
    with pytest.raises(ConfigError, match=said):
        resolve_cell({**sections, "training": training}, "t")


def test_images_in_place_of_events_are_augmented_as_images():
    sections = {"model": {"name": "qkformer_dvs128"}, "data": {"name": "dvs128"}}
    with pytest.raises(ConfigError, match="rand_augment: it is for images"):
        resolve_cell({**sections, "training": {"rand_augment": "rand-m9"}}, "t")
