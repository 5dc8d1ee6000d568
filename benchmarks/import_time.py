"""How long `import nlzoo` takes beside `import torch`, each in a process of its own.

    python -m benchmarks.import_time [--rounds 9]

nlzoo's public names come with their first use: "with its names" imports all of them, and torch.
The numbers go to benchmarks/results/import_time.json, the table beside it.
"""

import subprocess
import sys
from functools import partial
from pathlib import Path

from benchmarks.measure import describe, interleaved, machine, median, table, write_json
from nlzoo.program import make_parser, parse_options, run

RESULT = Path(__file__).parent / "results" / "import_time.json"
MOST = 1.2  # times torch
CODE = {
    "torch": "import torch",
    "nlzoo": "import nlzoo",
    "nlzoo with its names": "from nlzoo import *",
}


def main() -> None:
    """Measure, write, print; exit code 1 where the bar does not hold."""
    parser = make_parser("python -m benchmarks.import_time", __doc__ or "")
    parser.add_argument("--rounds", type=int, default=9, help="of all in turn")
    rounds = parse_options(parser, sys.argv[1:]).rounds
    start = partial(subprocess.run, check=True)
    seconds = interleaved(
        {k: partial(start, [sys.executable, "-c", c]) for k, c in CODE.items()}, rounds
    )
    base, facts = median(seconds["torch"]), machine()
    rows = [
        {"import": name, "seconds": median(all_), "of torch's": median(all_) / base}
        for name, all_ in seconds.items()
    ]
    write_json(RESULT, {"machine": facts, "rounds": rounds, "rows": rows, "seconds": seconds})
    text = f"Importing, medians of {rounds} interleaved processes; {describe(facts)}.\n\n"
    text += table(rows, list(rows[0])) + "\n"
    RESULT.with_suffix(".md").write_text(text)
    print(text)
    if rows[1]["of torch's"] > MOST:
        raise SystemExit(f"import nlzoo takes more than {MOST} times import torch")


if __name__ == "__main__":
    run(lambda _: main())
