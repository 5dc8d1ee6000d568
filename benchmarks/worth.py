"""What the blocks are worth: the sample task with five non-local blocks and with none.

    python -m benchmarks.worth            # trains both networks with three seeds, about 10 minutes
    python -m benchmarks.worth --render   # only the README's table, from the JSON

Both are the same command but for `--task.model`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import machine, write_json

RESULT = Path(__file__).parent / "results" / "worth.json"
MODELS = {"i3d_r50_nl5": "I3D ResNet-50 + 5 blocks", "i3d_r50": "the same without blocks"}
SEEDS = (0, 1, 2)
COMMAND = "python -m nlzoo.fit --recipe i3d_nl_kinetics --sample --seed {seed} --task.model {model}"


def train(model: str, seed: int) -> dict[str, Any]:
    """The summary of one training."""
    with tempfile.TemporaryDirectory() as folder:
        command = COMMAND.format(seed=seed, model=model).replace("python", sys.executable, 1)
        subprocess.run([*command.split(), "--run", f"{folder}/run"], check=True)
        summary = json.loads((Path(folder) / "run" / "summary.json").read_text())
    return {key: summary[key] for key in ("metric", "best", "epochs", "seconds", "versions")}


def table(result: dict[str, Any]) -> str:
    """The README's table."""
    lines = [
        "| sample task, 4 classes | " + " | ".join(f"seed {seed}" for seed in SEEDS) + " |",
        "|---|" + "---|" * len(SEEDS),
    ]
    for model, name in MODELS.items():
        scores = (f"{run['best']:.3f}" for run in result["runs"][model])
        lines.append(f"| {name} | " + " | ".join(scores) + " |")
    return "\n".join(lines)


def main() -> None:
    """Train, store, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--render", action="store_true", help="print the table of the stored result"
    )
    if not parser.parse_args().render:
        runs = {model: [train(model, seed) for seed in SEEDS] for model in MODELS}
        write_json(RESULT, {"command": COMMAND, "machine": machine(), "runs": runs})
    print(table(json.loads(RESULT.read_text())))


if __name__ == "__main__":
    main()
