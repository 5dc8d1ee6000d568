import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlzoo.data import clips

sizes = {
    "length": st.integers(1, 400),
    "frames": st.integers(1, 64),
    "stride": st.integers(1, 8),
}


def positions(start, length, frames, stride):
    """The released code's loop, written out."""
    found, at = [], start
    for _ in range(frames):
        found.append(at)
        at += stride
        while at >= length:
            at -= length
    return found


@given(**sizes, seed=st.integers(0, 2**32))
def test_training_clips_start_in_range_and_wrap(length, frames, stride, seed):
    clip = clips.train_clip(length, frames, stride, clips.generator(seed))
    assert clip == positions(clip[0], length, frames, stride)
    assert 0 <= clip[0] <= max(length - frames * stride, 0)
    if length >= frames * stride:
        assert clip == list(range(clip[0], clip[0] + frames * stride, stride))


def test_every_start_is_equally_likely():
    rng = clips.generator(0)
    starts = [clips.train_clip(13, 4, 2, rng)[0] for _ in range(6000)]
    counts = np.bincount(starts)
    assert len(counts) == 6  # 0 to 13 - 8
    assert abs(counts - 1000).max() < 150


@given(**sizes, number=st.integers(1, 12))
def test_test_clips_start_evenly(length, frames, stride, number):
    found = clips.test_clips(length, frames, stride, number)
    for k, clip in enumerate(found):
        assert clip == positions(int(k * length / number), length, frames, stride)
    assert len(found) == number


@given(**sizes)
def test_centre_clip_leaves_the_same_on_both_sides(length, frames, stride):
    clip = clips.centre_clip(length, frames, stride)
    spare = length - frames * stride
    assert clip[0] == (spare // 2 if spare > 0 else 0)


def test_by_time_two_rates_show_the_same_moments():
    at_30 = clips.clip_at(0, 300, 8, clips.step_of(4, 30, 30))
    at_60 = clips.clip_at(0, 600, 8, clips.step_of(4, 60, 30))
    assert [2 * i for i in at_30] == at_60
    assert clips.clip_at(0, 250, 8, clips.step_of(4, 25, 30)) == [0, 3, 6, 10, 13, 16, 20, 23]
    assert clips.step_of(4, 25, 0) == clips.step_of(4, 0, 30) == 4


def test_by_time_clips_start_at_a_frame():
    assert clips.centre_clip(10, 2, 1.5) == [3, 4]  # of starts 0 to 7
    assert clips.test_clips(10, 2, 1.5, 4) == [[0, 1], [2, 3], [5, 6], [7, 8]]


@pytest.mark.parametrize("key", [(0, 0, 1), (0, 1, 0), (1, 0, 0)])
def test_draws_are_a_function_of_the_key(key):
    assert clips.generator(*key).random() == clips.generator(*key).random()
    assert clips.generator(*key).random() != clips.generator(0, 0, 0).random()


@given(**sizes, count=st.integers(1, 12))
def test_segment_clips_are_those_of_the_released_code(length, frames, stride, count):
    found = clips.segment_clips(length, frames, stride, count)
    half = frames * stride // 2
    for k, clip in enumerate(found):
        centre = int(np.round((float(length) / count) * (k + 0.5)))
        wanted = [centre - half + i * stride for i in range(frames)]
        assert clip == [min(max(i, 0), length - 1) for i in wanted]


def test_segment_clips_by_hand():
    assert clips.segment_clips(100, 4, 2, 10)[0] == [1, 3, 5, 7]
    assert clips.segment_clips(100, 4, 2, 10)[9] == [91, 93, 95, 97]
    assert clips.segment_clips(6, 4, 2, 2) == [[0, 0, 2, 4], [0, 2, 4, 5]]
