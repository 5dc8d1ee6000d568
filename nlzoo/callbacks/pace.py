"""What a training spends its time on: waiting for data, or work."""

import time


class Pace:
    """A stopwatch with two hands, in seconds; the time before `skip` is on neither."""

    def __init__(self) -> None:
        self.waited = self.worked = 0.0
        self.skip()

    @property
    def passed(self) -> float:
        """On both hands."""
        return self.waited + self.worked

    @property
    def waiting(self) -> float:
        """Share of the time that was spent waiting."""
        return self.waited / max(self.passed, 1e-9)

    def wait(self) -> float:
        """A batch is there: what has passed was spent waiting for it."""
        lap = self._lap()
        self.waited += lap
        return lap

    def work(self) -> float:
        """A batch is done."""
        lap = self._lap()
        self.worked += lap
        return lap

    def skip(self) -> None:
        """What has passed was neither: validation, or writing."""
        self.mark = time.monotonic()

    def _lap(self) -> float:
        before = self.mark
        self.skip()
        return self.mark - before
