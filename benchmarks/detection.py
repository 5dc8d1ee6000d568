"""What the samples of detection reach: AP of boxes, masks and keypoints, and seconds, three seeds.

python -m benchmarks.detection              # about 20 minutes on two cores
python -m benchmarks.detection masks        # one of them
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import machine, write_json
from nlzoo.data.sample_coco import make_coco

RESULT = Path(__file__).parent / "results" / "detection.json"
RECIPES = {"masks": "mask_rcnn_r50_nl_coco", "keypoints": "keypoint_rcnn_r101_nl_coco"}
SEEDS = (0, 1, 2)
NUMBERS = ("box/AP", "mask/AP", "keypoint/AP")


def train(recipe: str, seed: int) -> dict[str, Any]:
    """The last validation of one training."""
    command = f"{sys.executable} -m nlzoo.fit --recipe {recipe} --sample --seed {seed}"
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*command.split(), "--run", f"{folder}/run"], check=True)
        summary = json.loads((Path(folder) / "run/summary.json").read_text())
        last = list(csv.DictReader((Path(folder) / "run/metrics.csv").open()))[-1]
    found = {key: float(last[f"val/{key}"]) for key in NUMBERS if f"val/{key}" in last}
    return {**found, "iterations": int(last["step"]), "seconds": summary["seconds"]}


def table(result: dict[str, Any]) -> str:
    """A row a training."""
    lines = [
        "| sample | seed | box AP | mask AP | keypoint AP | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for sample, part in result.items():
        for seed, run in zip(SEEDS, part["runs"], strict=True):
            numbers = (f"{run[key]:.3f}" if key in run else "" for key in NUMBERS)
            lines.append(f"| {sample} | {seed} | {' | '.join(numbers)} | {run['seconds']:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Train, store, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("sample", nargs="*", default=[*RECIPES], help="masks, keypoints")
    make_coco()
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for sample in parser.parse_args().sample:
        runs = [train(RECIPES[sample], seed) for seed in SEEDS]
        result[sample] = {"recipe": RECIPES[sample], "machine": machine(), "runs": runs}
        write_json(RESULT, result)
    RESULT.with_suffix(".md").write_text(table(result) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
