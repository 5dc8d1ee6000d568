"""The task: what its losses mix, what it trains, and data that do not suit its network."""

from types import SimpleNamespace

import pytest
import torch

from nlzoo.tasks.classification import Classification

IMAGES = {"frames": 0, "classes": ["a", "b", "c"]}


def task(**options):
    torch.manual_seed(0)
    return Classification(
        "resnet8_cifar10", arch={"width": 4}, **{"preprocessing": IMAGES} | options
    )


@pytest.mark.parametrize(
    "options", [{"mixup": 0.5}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1.0}]
)
def test_mixed_labels_are_shares_of_two_images(options):
    mix = task(**options).mix
    images = torch.stack([torch.full((3, 16, 16), float(i)) for i in range(4)])
    mixed, target = mix(images, torch.tensor([0, 1, 2, 0]))
    assert target.shape == (4, 3)
    assert torch.allclose(target.sum(1), torch.ones(4))
    # image i and its neighbour i - 1: the mean value tells how much of each
    share = (mixed.mean((1, 2, 3)) - torch.tensor([3.0, 0, 1, 2])) / torch.tensor([-3.0, 1, 1, 1])
    assert torch.allclose(target[1], torch.tensor([1 - share[1], share[1], 0.0]), atol=0.01)


@pytest.mark.parametrize("loss", ["cross_entropy", "bce"])
@pytest.mark.parametrize("options", [{}, {"mixup": 0.2, "cutmix": 1.0}, {"label_smoothing": 0.1}])
def test_a_step_has_a_gradient(loss, options, monkeypatch):
    one = task(loss=loss, **options)
    monkeypatch.setattr(one, "log", lambda *_, **__: None)
    images = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    value = one.training_step((images, torch.tensor([0, 1, 2, 0]), torch.arange(4)), 0)
    value.backward()
    assert value.isfinite()
    assert all(p.grad is not None for p in one.model.parameters())


def test_one_image_cannot_be_mixed():
    one = task(mixup=0.5)
    one._trainer = SimpleNamespace(datamodule=SimpleNamespace(batch_size=1))
    with pytest.raises(ValueError, match=r"data.batch_size 1 has one"):
        one.setup("fit")


def test_only_what_is_trained_changes_its_statistics():
    one = task(train="head").train()
    assert not one.model.bn1.training
    assert one.model.linear.training
    assert task().train().model.bn1.training


def test_the_network_keeps_what_its_weights_say():
    pre = task(preprocessing={"frames": 0, "classes": ["a", "b"], "crop": 48}).preprocessing
    assert pre.mean == (0.485, 0.456, 0.406)
    assert (pre.crop, pre.test_size, pre.classes) == (48, 32, ("a", "b"))


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        (
            "resnet8_cifar10",
            {"frames": 8, "classes": ["a", "b"]},
            "sees images, the data are videos",
        ),
        ("c2d_r18", {"frames": 0, "classes": ["a", "b"]}, "watches videos, the data are images"),
        ("c2d/resnet10t", {"frames": 0, "classes": ["a", "b"]}, "watches videos"),
        ("timm/resnet10t", {"frames": 8, "classes": ["a", "b"]}, r"give c2d/NAME or tsm/NAME"),
        ("resnet8_cifar10", {"frames": 0, "classes": ["a"]}, "the data have one class, 'a'"),
    ],
)
def test_data_that_do_not_suit_the_network(model, data, message):
    with pytest.raises(ValueError, match=message):
        Classification(model, preprocessing=data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixup": -1.0}, "mixup = -1.0, cutmix = 0.0: expected 0 or more"),
        ({"bn": "precise", "train": "head"}, "bn: precise re-estimates what train: head keeps"),
    ],
)
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(ValueError, match=message):
        task(**options)


def test_videos_are_not_mixed():
    with pytest.raises(ValueError, match="mixup and cutmix mix images"):
        Classification("c2d/resnet10t", mixup=0.2, preprocessing={"classes": ["a", "b"]})


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_losses_are_torchs(smoothing, monkeypatch):
    images = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    label = torch.tensor([0, 1, 2, 0])
    one = task(label_smoothing=smoothing)
    monkeypatch.setattr(one, "log", lambda *_, **__: None)
    value = one.training_step((images, label, label), 0)
    logits = one.model(images)
    wanted = torch.nn.functional.cross_entropy(logits, label, label_smoothing=smoothing)
    assert torch.allclose(value, wanted)


def test_the_number_of_classes_is_the_datas():
    with pytest.raises(
        ValueError, match=r"arch.num_classes: the data have 3 classes; leave it out"
    ):
        Classification("resnet8_cifar10", arch={"num_classes": 5}, preprocessing=IMAGES)
