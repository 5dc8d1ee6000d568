"""Programs in processes of their own, as users start them."""

import os
import signal
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import pytest

PLACES = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])


class Process(subprocess.Popen):
    """`python ARGV`; the tests' modules can be imported in it.

    What it prints goes to files: a pipe is full one day, and what outlives a process that was
    killed holds it open for ever.
    """

    def __init__(self, *argv, **environment):
        self.printed = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115 (closed with it)
        super().__init__(
            [sys.executable, *map(str, argv)],
            stdout=self.printed[0],
            stderr=self.printed[1],
            env={**os.environ, "PYTHONPATH": PLACES, **environment},
            # a shell that starts the tests in the background has it ignored, and it is inherited
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )

    def end(self, timeout=600):
        """Its exit code, and what it wrote to stdout and to stderr."""
        try:
            code = self.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            self.wait()
            pytest.fail(f"still there after {timeout} s: {self.args}\n{self.read(1)}")
        return code, self.read(0), self.read(1)

    def read(self, stream):
        """What it has written so far to stdout (0) or stderr (1); where it writes stays."""
        return os.pread(self.printed[stream].fileno(), 1 << 24, 0).decode()


def done(process):
    """What a program printed to stdout; it must have succeeded."""
    code, out, error = process.end()
    assert code == 0, error
    return out
