"""Segmentations: read as COCO's own code reads them, where it may."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlzoo import shapes

mask = pytest.importorskip("pycocotools.mask")
small = st.integers(1, 40)


def random_mask(seed, height, width):
    rng = np.random.default_rng(seed)
    return np.asfortranarray(rng.random((height, width)) < rng.random()).astype(np.uint8)


@given(st.integers(0, 999), small, small)
@settings(max_examples=60, deadline=None)
def test_packed_counts_are_read(seed, height, width):
    """Every string that COCO's code writes, and the mask of it."""
    drawn = random_mask(seed, height, width)
    packed = mask.encode(np.asfortranarray(drawn))
    packed["counts"] = packed["counts"].decode()
    assert list(shapes.faults(packed, height, width)) == []
    flat = drawn.flatten("F")
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [-1]])))
    lengths = np.diff(np.concatenate([[0], edges]))
    assert np.trim_zeros(shapes._counts(packed["counts"]), "b").tolist() == lengths.tolist()
    listed = {"size": [height, width], "counts": lengths.tolist()}
    for segmentation in (packed, listed):
        assert (shapes.draw(segmentation, drawn.shape, drawn.shape) == drawn).all()


@given(st.text(max_size=30) | st.binary(max_size=30), small, small)
@settings(max_examples=200, deadline=None)
def test_any_string_is_a_mask_or_a_fault(text, height, width):
    """COCO's code reads past the end of some of them."""
    packed = {"size": [height, width], "counts": text}
    found = [fault for fault, _ in shapes.faults(packed, height, width)]
    assert set(found) <= {"rle-counts", "rle-type"}
    if not found:
        assert shapes.draw(packed, (height, width), (height, width)).shape == (height, width)


def test_counts_that_do_not_fit_are_known_before_they_are_read():
    for counts in ([1, 2], [3000], "99", [2500, -100]):
        faults = list(shapes.faults({"size": [40, 60], "counts": counts}, 40, 60))
        assert [fault for fault, _ in faults] == ["rle-counts"]


@given(st.lists(st.lists(st.floats(-20, 80), min_size=6, max_size=20), min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_polygons_are_drawn_as_coco_draws_them(parts):
    parts = [part[: len(part) // 2 * 2] for part in parts]
    theirs = mask.decode(mask.merge(mask.frPyObjects(parts, 40, 60)))
    assert (shapes.draw(parts, (40, 60), (40, 60)) == theirs).all()


def test_bad_polygons_are_left_out():
    good = [5.0, 5.0, 30.0, 5.0, 30.0, 30.0]
    bad = [[1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, float("nan")], "x", []]
    alone = shapes.draw([good], (40, 60), (40, 60))
    for one in bad:
        assert (shapes.draw([one, good], (40, 60), (40, 60)) == alone).all()
    assert shapes.to_rle(bad, 40, 60) is None


@pytest.mark.parametrize("packed", [False, True])
def test_drawn_at_another_size(packed):
    """A rectangle on whole pixels stays one."""
    shape = [[6, 4, 24, 4, 24, 14, 6, 14]]
    given = shapes.to_rle(shape, 20, 30) if packed else shape
    drawn = shapes.draw(given, (20, 30), (40, 90))
    wanted = np.zeros((40, 90), np.uint8)
    wanted[8:28, 18:72] = 1
    assert (drawn != wanted).sum() == 0
