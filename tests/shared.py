"""Real data and outputs of other implementations, which are not in the repository."""

import os
from pathlib import Path

SHARED = Path(os.environ.get("NLZOO_SHARED", Path(__file__).parents[2] / "shared"))
