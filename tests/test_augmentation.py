"""Augmentation of a batch on the device: what timm does to one image, with what timm draws."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import NAME_TO_OP, rand_augment_transform
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms import functional

from msvit.data.encoded import Encoded
from msvit.data.splits import Images, Streamed
from msvit.data.views import Centre
from msvit.options import ConfigError
from msvit.recipes import TrainingOptions
from msvit.recipes.rand_augment import OPERATIONS, RandAugmentSettings
from msvit.training.augmentation import Augmentation, rand_augment
from msvit.training.augmentation.crops import RandomCrops, resized_parts
from msvit.training.augmentation.moves import mirror_and_shift
from msvit.training.augmentation.rand_augment import RandAugment
from msvit.training.cell import as_scored
from msvit.training.loop import Trainer
from msvit.training.optimization import make_erasing, make_mixup
from msvit.training.randomness import random_state, restore_random_state, seed_everything
from tests.test_graph import META, NothingMade, NothingMoved

CPU = torch.device("cpu")
MEAN = (0.49, 0.48, 0.45)
FILL = tuple(round(255 * x) for x in MEAN)


def pictures(count=12, size=16, channels=3):
    """Smooth ones and noise, and one that is all of one colour."""
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(count, channels, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(small, (size, size), mode="bilinear")
    noise = torch.rand(smooth.shape, generator=generator)
    images = torch.cat([smooth, noise, torch.full((1, channels, size, size), 0.7)])
    return (255 * images).to(torch.uint8)


def as_pil(image):
    return Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy())


def as_tensor(image):
    pixels = torch.from_numpy(np.array(image))
    return pixels.reshape(image.height, image.width, -1).permute(2, 0, 1)


def by_timm(image, drawn):
    """timm's own operations on one image."""
    channels = len(image)
    image = as_pil(image)
    for name, arguments in drawn:
        if name.startswith("Posterize") and arguments == (0,):
            image = Image.new(image.mode, image.size)  # which newer Pillow refuses
            continue
        fill = FILL if channels == 3 else FILL[0]
        options = {"fillcolor": fill, "resample": Image.Resampling.BICUBIC}
        image = NAME_TO_OP[name](image, *arguments, **options)
    return as_tensor(image)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("text", ["rand-m9-p1-n1-mstd3-inc1", "rand-m9-p1-n1-mstd3"])
def test_every_operation_is_timms_on_the_same_image(text, channels):
    images = pictures(channels=channels)
    ours = RandAugment(text, MEAN[:channels], CPU)
    seed_everything(0, 1)
    seen, changed = Counter(), 0
    for _ in range(12):
        drawn = [ours.draw() for _ in images]
        found = ours.apply(images, drawn)
        for image, own, got in zip(images, drawn, found, strict=True):
            ((name, arguments),) = own
            difference = (got.int() - by_timm(image, own).int()).abs()
            # torchvision multiplies where Pillow has a table; between pixels, sums are rounded.
            exact = name not in ("AutoContrast", "Rotate") and "X" not in name and "Y" not in name
            assert difference.max() <= (0 if exact else 1), (name, arguments)
            changed += int((difference > 0).sum())
            seen[name] += 1
    assert len(seen) == 15
    assert changed < 0.01 * seen.total() * images[0].numel()


def test_several_operations_happen_in_turn():
    images = pictures()
    ours = RandAugment("rand-m9-n3-p0.7-inc1", MEAN, CPU)
    seed_everything(0, 2)
    safe = {"Invert", "Equalize", "SolarizeIncreasing", "SolarizeAdd", "PosterizeIncreasing"}
    drawn = [[op for op in ours.draw() if op[0] in safe] for _ in images]
    assert {len(own) for own in drawn} >= {0, 1, 2}
    assert torch.equal(
        ours.apply(images, drawn),
        torch.stack([by_timm(image, own) for image, own in zip(images, drawn, strict=True)]),
    )


def test_what_is_drawn_is_what_timm_draws():
    """The same operations, in the same order, with the same arguments from the same seeds."""
    text, noted = "rand-m9-n2-mstd0.5-inc1", []
    theirs = rand_augment_transform(text, {"img_mean": FILL})
    for operation in theirs.ops:

        def note(image, *arguments, name=operation.name, **_):
            noted.append((name, arguments))
            return image

        operation.aug_fn = note
    ours, found = RandAugment(text, MEAN, CPU), []
    seed_everything(3, 1)
    for _ in range(200):
        found += ours.draw()
    seed_everything(3, 1)
    for _ in range(200):
        theirs(None)
    assert found == noted
    strengths = [abs(arguments[0]) for name, arguments in found if name == "Rotate"]
    assert max(strengths) <= 30
    assert min(strengths) > 20  # magnitude 9 of 10, deviation 0.5


def test_the_small_set_draws_from_its_five_operations():
    ours = RandAugment("rand-m9-n1-p1-tsnn", MEAN, CPU)
    seed_everything(0, 1)
    assert {ours.draw()[0][0] for _ in range(100)} == set(OPERATIONS["snn"])


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("rand-inc1-n1-m9-mstd0.40", "rand-m9-n1-mstd0.4-inc1"),
        ("rand-m9-n2-p0.5-mmax10", "rand-m9"),
        ("rand", "rand-m10"),
        ("rand-tsnn-m9", "rand-m9-tsnn"),
    ],
)
def test_texts_that_say_the_same_have_one_form(text, form):
    assert TrainingOptions.parse({"rand_augment": text}, "t").rand_augment == form
    settings = RandAugmentSettings.parse(form)
    assert str(settings) == form
    theirs = rand_augment_transform(settings.for_timm, {})
    assert theirs.num_layers == settings.numbers["n"]
    assert {op.prob for op in theirs.ops} == {settings.numbers["p"]}
    assert {op.magnitude for op in theirs.ops} == {settings.numbers["m"]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("augmix-m3", "write it as timm does"),
        ("rand-m9-x1", "write it as timm does"),
        ("rand-m9-m8", "write it as timm does"),
        ("rand-m9-t3a", "write it as timm does"),
        ("rand-m9-tall", "tsnn"),
        ("rand-m9.5", "whole numbers"),
        ("rand-m9-n0", "1 to 15"),
        ("rand-m12", "at most mmax"),
        ("rand-m9-inc2", "0 or 1"),
    ],
)
def test_a_text_that_says_something_else_is_refused(text, said):
    with pytest.raises(ConfigError, match=rf"t\.rand_augment: .*{said}"):
        TrainingOptions.parse({"rand_augment": text}, "t")


def test_parts_are_drawn_and_resized_as_by_timm():
    images = pictures(size=24)
    scale, ratio = (0.08, 1.0), (3 / 4, 4 / 3)
    theirs = RandomResizedCropAndInterpolation(24, scale, ratio, "bicubic")
    seed_everything(0, 1)
    expected = torch.stack([as_tensor(theirs(as_pil(image))) for image in images])
    seed_everything(0, 1)
    found = RandomCrops(scale, ratio)(images)
    difference = (found.int() - expected.int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 0.01
    whole = [(0, 0, 24, 24)] * len(images)
    assert torch.equal(resized_parts(images, whole), images)
    box = (3, 5, 7, 11)
    bicubic = functional.InterpolationMode.BICUBIC
    one = as_tensor(functional.resized_crop(as_pil(images[0]), *box, (24, 24), bicubic))
    assert (resized_parts(images[:1], [box])[0].int() - one.int()).abs().max() <= 1


def test_an_epoch_is_drawn_again_from_where_it_was():
    options = TrainingOptions.parse(
        {
            "batch_size": 4,
            "hflip": True,
            "shift": 2,
            "crop_scale": [0.3, 1.0],
            "rand_augment": "rand-m9",
            "mixup": 0.5,
            "cutmix": 1.0,
            "random_erasing": 0.5,
            "random_erasing_mode": "pixel",
        },
        "t",
    )
    augment = Augmentation(options, MEAN, CPU)
    mixup, erase = make_mixup(options, 10), make_erasing(options, CPU)
    images = pictures()[:4]

    def step(generator):
        mixed, target = mixup(augment(images, generator).float(), torch.arange(4))
        return torch.cat([erase(mixed).flatten(), target.flatten()])

    generator = seed_everything(7, 3)
    first = [step(generator) for _ in range(3)]
    assert not torch.equal(first[0], first[1])
    again = seed_everything(7, 3)
    assert torch.equal(step(again), first[0])
    state = random_state(again, CPU)
    assert torch.equal(step(again), first[1])
    fresh = seed_everything(0, 0)
    restore_random_state(state, fresh, CPU)
    assert [torch.equal(step(fresh), other) for other in first[1:]] == [True, True]


def preparing(**training):
    """A trainer with all that is done to a batch before its step, and nothing to train."""
    options = TrainingOptions.parse({"batch_size": 4, **training}, "t")
    return Trainer(
        *(torch.nn.Linear(1, 1), None, None),
        normalise=lambda images: images.float() / 255,
        mixup=make_mixup(options, 10),
        mixup_off_epoch=options.mixup_off_epoch,
        erase=make_erasing(options, CPU),
        erasing_first=options.erasing_first,
    )


def test_images_are_erased_behind_the_mix_or_each_before_it():
    white = Images(torch.full((4, 1, 8, 8), 255, dtype=torch.uint8), torch.arange(4))
    shades = {}
    for first in (False, True):
        seed_everything(0, 1)
        trainer = preparing(mixup=1.0, random_erasing=1.0, erasing_first=first)
        shades[first] = trainer.prepared(white)[0].unique()
    assert shades[False].tolist() == [0.0, 1.0]
    assert any(0.01 < shade < 0.99 for shade in shades[True].tolist()), "half of it is a partner's"


def test_half_of_the_images_are_mirrored_and_so_many_erased_and_mixed_as_asked_for():
    pairs = torch.tensor([0, 1], dtype=torch.uint8).expand(1000, 1, 1, 2)
    mirrored = mirror_and_shift(pairs, True, 0, seed_everything(0, 1))[:, 0, 0, 0]
    assert 0.45 < mirrored.float().mean() < 0.55

    white = Images(torch.full((400, 1, 8, 8), 255, dtype=torch.uint8), torch.arange(400) % 10)
    erased, _ = preparing(random_erasing=0.25).prepared(white)
    assert 0.18 < (erased == 0).flatten(1).any(1).float().mean() < 0.32

    trainer = preparing(mixup=1.0, mixup_prob=0.3, label_smoothing=0.0)
    targets = [trainer.prepared(white[:2])[1] for _ in range(300)]
    mixed = sum(bool((target.max(1).values < 1).any()) for target in targets)
    assert 0.2 < mixed / 300 < 0.4


def test_as_much_of_a_test_image_is_shown_as_the_recipe_says(tmp_path):
    """Its middle, from a file or from memory: the rest, which is white, is not seen."""
    image = np.full((32, 32, 3), 255, np.uint8)
    image[8:24, 8:24] = 0
    Image.fromarray(image).save(tmp_path / "a.png")
    streamed = Streamed(Encoded.of_files(tmp_path, ["a.png"]), torch.tensor([0]), Centre(32))
    in_memory = Images(torch.from_numpy(image).permute(2, 0, 1)[None], torch.tensor([0]))
    for samples in (streamed, in_memory):
        for share, brightest in ((None, 255), (1.0, 255), (0.5, 40)):
            scored = as_scored(samples, TrainingOptions(crop_pct=share))
            shown = np.empty((1, 3, 32, 32), np.uint8)
            if isinstance(scored, Streamed):
                scored.decode(np.zeros(1, int), shown)
            else:
                shown = scored.images.numpy()
            inside = shown[..., 4:-4, 4:-4] if share == 0.5 else shown
            assert inside.max() <= brightest
            assert (inside.max() == 255) == (brightest == 255)


def test_all_frames_of_a_sample_are_cut_and_erased_alike():
    frames = torch.full((4, 5, 2, 8, 8), 255, dtype=torch.uint8)
    frames[2:] = 51
    seed_everything(0, 1)
    trainer = preparing(cutmix=1.0, random_erasing=1.0)
    images, target = trainer.prepared(Images(frames, torch.arange(4)))
    assert images.shape == frames.shape
    assert torch.equal(images, images[:, :1, :1].expand_as(images))
    for image, share in zip(images[:, 0, 0], target, strict=True):
        own, other = share.max(), (image[image > 0] != image.max()).float().mean()
        assert own >= 0.5
        assert (image == 0).any()  # erased, behind the cut
        assert 0 <= other <= 1


def test_nothing_waits_for_the_device(monkeypatch):
    """On a device that holds no numbers; what is drawn goes there in two copies."""
    copies = []

    def sent(x, device):
        copies.append(x.shape)
        return torch.empty(x.shape, dtype=x.dtype, device=device)

    monkeypatch.setattr(rand_augment, "to_device", sent)
    images = torch.empty((24, 3, 8, 8), dtype=torch.uint8, device=META)
    ours = RandAugment("rand-m9-n2-p1-mstd1-inc1", MEAN, META)
    seed_everything(0, 1)
    with NothingMade(), NothingMoved():
        assert ours(images).device == META
    assert copies == [(48,), (48, 6)]
