"""One thread a process: tests run side by side, and so does what they start."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
