import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from nlzoo.data.clips import generator
from nlzoo.data.transforms import EvalTransform, TrainTransform, crops_of, resize_short


def clip_of(height, width, frames=2, seed=0):
    """A random clip (T, C, H, W) as the decoder gives it: channels last in memory."""
    torch.manual_seed(seed)
    return torch.randint(0, 256, (frames, height, width, 3), dtype=torch.uint8).permute(0, 3, 1, 2)


def ramp(height, width):
    """Red is the row and green the column."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows, columns, rows * 0]).to(torch.uint8)[None]


@given(st.integers(8, 60), st.integers(8, 60), st.integers(4, 70))
def test_resize_is_bilinear_and_keeps_the_aspect(height, width, size):
    clip = clip_of(height, width)
    small = resize_short(clip, size)
    long = int(max(height, width) * size / min(height, width) + 1e-9)
    assert sorted(small.shape[-2:]) == [size, long]
    assert small.dtype == torch.uint8
    want = F.interpolate(clip.double(), small.shape[-2:], mode="bilinear")
    error = (small.double() - want).abs()  # rounded after each direction, weights of 8 to 16 bit
    assert error.max() <= 1.1


@pytest.mark.parametrize(("height", "width"), [(20, 31), (31, 20), (20, 20)])
def test_three_crops_have_the_released_offsets(height, width):
    crops = crops_of(ramp(height, width), 20)
    middle = (31 - 20) // 2 if height != width else 0
    corners = [tuple(crop[:2, 0, 0, 0].tolist()) for crop in crops]
    along = [(k * middle, 0) if height > width else (0, k * middle) for k in range(3)]
    assert corners == along
    assert crops.shape == (3, 3, 1, 20, 20)
    assert crops.is_contiguous()


def test_one_crop_is_the_centre():
    assert crops_of(ramp(20, 31), 10, 1)[0, :2, 0, 0, 0].tolist() == [5, 10]


def test_eval_transform_resizes_then_crops():
    clip = clip_of(24, 40)
    crops = EvalTransform(size=12, crop=12, crops=3)(clip)
    assert torch.equal(crops, crops_of(resize_short(clip, 12), 12, 3))


def test_train_transform_covers_its_range_and_repeats_itself():
    transform = TrainTransform(crop=16, scale=(20, 24), flip=True)
    picture = F.interpolate(ramp(20, 30), scale_factor=1)
    flipped, corners = set(), set()
    for seed in range(200):
        out = transform(picture, generator(seed))
        assert out.shape == (3, 1, 16, 16)
        assert out.is_contiguous()
        assert torch.equal(out, transform(picture, generator(seed)))
        columns = out[1, 0, 0].int()
        flipped.add(bool(columns[0] > columns[-1]))
        corners.add((int(out[0].min()), int(out[1].min())))
    assert flipped == {True, False}
    assert {row for row, _ in corners} >= {0, 2, 4}
    assert {column for _, column in corners} >= {0, 6, 13}


def test_every_scale_is_drawn(monkeypatch):
    sizes = []
    monkeypatch.setattr(
        "nlzoo.data.transforms.resize_short", lambda clip, size: sizes.append(size) or clip
    )
    transform = TrainTransform(crop=4, scale=(8, 11), flip=False)
    for seed in range(400):
        transform(clip_of(8, 8, 1), generator(seed))
    assert np.bincount(sizes)[8:].min() > 60
    assert set(sizes) == {8, 9, 10, 11}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainTransform(crop=224, scale=(200, 320)), "crop = 224 does not fit .* 200"),
        (lambda: TrainTransform(crop=0, scale=(8, 8)), "crop = 0"),
        (lambda: TrainTransform(crop=4, scale=(9, 8)), "must not exceed"),
        (lambda: EvalTransform(size=224, crop=256), "test crop = 256 does not fit .* 224"),
        (lambda: EvalTransform(crops=2), "crops = 2"),
    ],
)
def test_impossible_crops_are_refused_at_construction(make, message):
    with pytest.raises(ValueError, match=message):
        make()
