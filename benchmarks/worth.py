"""What the blocks are worth: the sample tasks with non-local blocks and with none.

    python -m benchmarks.worth            # trains each network with three seeds, about 15 minutes
    python -m benchmarks.worth image      # only those of one sample
    python -m benchmarks.worth --render   # only the README's table, from the JSON

Both networks of a sample are the same command but for `--task.model`.
"""

import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import machine, write_json
from nlzoo.program import make_parser, parse_options, run

RESULT = Path(__file__).parent / "results" / "worth.json"
RECIPES = {"video": "i3d_nl_kinetics", "image": "resnet20_nl_cifar10"}
MODELS = {
    "video": {
        "i3d_r50_nl5": "videos, 4 classes: I3D ResNet-50 + 5 blocks",
        "i3d_r50": "the same without blocks",
    },
    "image": {
        "resnet8_cifar10_nl2": "images, 2 classes: ResNet-8 + 2 blocks",
        "resnet8_cifar10": "the same without blocks",
    },
}
SEEDS = (0, 1, 2)
COMMAND = "python -m nlzoo.fit --recipe {recipe} --sample --seed {seed} --task.model {model}"


def train(recipe: str, model: str, seed: int) -> dict[str, Any]:
    """The summary of one training."""
    with tempfile.TemporaryDirectory() as folder:
        command = COMMAND.format(recipe=recipe, seed=seed, model=model)
        words = command.replace("python", sys.executable, 1).split()
        subprocess.run([*words, "--run", f"{folder}/run"], check=True)
        summary = json.loads((Path(folder) / "run" / "summary.json").read_text())
        last = list(csv.DictReader((Path(folder) / "run" / "metrics.csv").open()))[-1]
    kept = {key: summary[key] for key in ("metric", "epochs", "seconds", "versions")}
    return {"last": float(last[summary["metric"]]), **kept}


def table(result: dict[str, Any]) -> str:
    """The README's table."""
    lines = [
        "| sample task | " + " | ".join(f"seed {seed}" for seed in SEEDS) + " |",
        "|---|" + "---|" * len(SEEDS),
    ]
    for sample, models in MODELS.items():
        for model, name in models.items():
            scores = (f"{run['last']:.3f}" for run in result[sample]["runs"][model])
            lines.append(f"| {name} | " + " | ".join(scores) + " |")
    return "\n".join(lines)


def main() -> None:
    """Train, store, print the table."""
    parser = make_parser("python -m benchmarks.worth", __doc__)
    parser.add_argument("sample", nargs="*", default=[*RECIPES], help="video, image")
    parser.add_argument(
        "--render", action="store_true", help="print the table of the stored result"
    )
    options = parse_options(parser, sys.argv[1:])
    result = json.loads(RESULT.read_text())
    for sample in () if options.render else options.sample:
        recipe = RECIPES[sample]
        runs = {m: [train(recipe, m, seed) for seed in SEEDS] for m in MODELS[sample]}
        result[sample] = {
            "command": COMMAND,
            "recipe": recipe,
            "machine": machine(),
            "runs": runs,
        }
        write_json(RESULT, result)
    print(table(result))


if __name__ == "__main__":
    run(lambda _: main())
