"""Where programs write their tables."""

import os
import sys

from rich.console import Console


def table_console() -> Console:
    """Of standard output; in a pipe tables are as wide as they need, and names stay whole."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 1000
    return Console(highlight=False, soft_wrap=True, width=width)
