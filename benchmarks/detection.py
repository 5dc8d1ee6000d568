"""What detectors reach from random weights on two cores: AP of boxes, masks, keypoints; seconds.

    python -m benchmarks.detection                 # the samples, three seeds: about 15 minutes
    python -m benchmarks.detection masks           # one of them
    python -m benchmarks.detection --overfit COCO  # the first eight training images, on themselves

The eight images are those with the smallest ids in COCO/annotations/instances_train2017.json.
"""

import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import machine, write_json
from nlzoo.data.sample_coco import make_coco
from nlzoo.program import make_parser, parse_options, run

RESULT = Path(__file__).parent / "results" / "detection.json"
RECIPES = {"masks": "mask_rcnn_r50_nl_coco", "keypoints": "keypoint_rcnn_r101_nl_coco"}
SEEDS = (0, 1, 2)
NUMBERS = ("box/AP", "mask/AP", "keypoint/AP", "box/AP50", "mask/AP50")
NETWORK = Path(__file__).parent.parent / "recipes" / "_masks_sample.yaml"
EIGHT = (  # beside the recipe and the sample's network: 920 iterations of real images
    *("--task.arch.min_size", "256", "--task.arch.max_size", "448"),
    *("--task.arch.rcnn", "{rpn_batch_size_per_image: 128, box_batch_size_per_image: 64}"),
    *("--task.arch.anchors", "[16,32,64,128,256]", "--task.arch.canonical", "112"),
    *("--data.scales", "[256]", "--data.max_size", "448", "--data.flip", "0"),
    *("--data.batch_size", "2", "--task.reference_batch", "2"),
    *("--trainer.max_epochs", "230", "--trainer.check_val_every_n_epoch", "115"),
)


def train(recipe: str, *options: str) -> dict[str, Any]:
    """The last validation of one training."""
    command = [sys.executable, "-m", "nlzoo.fit", "--recipe", recipe, *options]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*command, "--run", f"{folder}/run"], check=True)
        summary = json.loads((Path(folder) / "run/summary.json").read_text())
        last = list(csv.DictReader((Path(folder) / "run/metrics.csv").open()))[-1]
    found = {key: float(last[f"val/{key}"]) for key in NUMBERS if f"val/{key}" in last}
    return {**found, "iterations": int(last["step"]), "seconds": summary["seconds"]}


def three_seeds(recipe: str) -> list[dict[str, Any]]:
    """The sample of a recipe."""
    return [train(recipe, "--sample", "--seed", str(seed)) for seed in SEEDS]


def overfit(data: Path) -> dict[str, Any]:
    """A training and its test on the same eight images of COCO."""
    source = json.loads((data / "annotations" / "instances_train2017.json").read_text())
    source["images"] = sorted(source["images"], key=lambda image: image["id"])[:8]
    kept = {image["id"] for image in source["images"]}
    source["annotations"] = [a for a in source["annotations"] if a["image_id"] in kept]
    with tempfile.TemporaryDirectory() as folder:
        for split in ("train", "val"):
            (Path(folder) / f"{split}.json").write_text(json.dumps(source))
        options = "--recipe", str(NETWORK), "--data", folder, *EIGHT
        images = "--data.images", str((data / "train2017").resolve())
        splits = "--data.train", "train.json", "--data.val", "val.json"
        return train(RECIPES["masks"], *options, *images, *splits)


def table(result: dict[str, Any]) -> str:
    """A row a training."""
    lines = [
        "| set | seed | box AP | mask AP | keypoint AP | box AP50 | mask AP50 | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for sample, part in result.items():
        for seed, one in enumerate(part["runs"]):
            numbers = (f"{one[key]:.3f}" if key in one else "" for key in NUMBERS)
            lines.append(f"| {sample} | {seed} | {' | '.join(numbers)} | {one['seconds']:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Train, store, print the table."""
    parser = make_parser("python -m benchmarks.detection", __doc__)
    parser.add_argument("sample", nargs="*", default=[*RECIPES], help="masks, keypoints")
    parser.add_argument("--overfit", metavar="COCO", help="a folder of annotations/ and train2017/")
    options = parse_options(parser, sys.argv[1:])
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    if options.overfit:
        runs = {"eight images": [overfit(Path(options.overfit))]}
    else:
        make_coco()
        runs = {name: three_seeds(RECIPES[name]) for name in options.sample}
    for name, part in runs.items():
        result[name] = {"machine": machine(), "runs": part}
    write_json(RESULT, result)
    RESULT.with_suffix(".md").write_text(table(result) + "\n")
    print(table(result))


if __name__ == "__main__":
    run(lambda _: main())
