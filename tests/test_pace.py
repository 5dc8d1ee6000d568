"""The stopwatch of a training."""

import time

import pytest

from nlzoo.callbacks.pace import Pace


def test_both_hands_and_what_is_on_neither(monkeypatch):
    clock = iter((0.0, 1.0, 4.0, 14.0, 15.0, 17.0))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    pace = Pace()
    assert pace.waiting == 0
    laps = [pace.wait(), pace.work()]
    pace.skip()
    laps += [pace.wait(), pace.work()]
    assert laps == [1, 3, 1, 2]
    assert (pace.waited, pace.worked, pace.passed) == (2, 5, 7)
    assert pace.waiting == pytest.approx(2 / 7)
