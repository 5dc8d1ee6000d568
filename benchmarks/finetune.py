"""Small real sets, fine-tuned from real weights: photographs of two classes, and videos of two.

    python -m benchmarks.finetune images DATA --weights FILE    # three seeds of each row
    python -m benchmarks.finetune videos DATA --weights FILE    # each fold of DATA/sources.tsv
    python -m benchmarks.finetune images --render               # only the table, from the JSON

Every run is the recipe's command with the options of its row; what is reported is the last epoch.
The recipe for images was tuned (crops, rates, epochs; seeds 0 to 2) on the same validation images.

DATA is ants_bees (train/ and val/ of class folders), or fight_surv (sources.tsv with a column
`fold`); the weights are those of EfficientNet-Lite0.
"""

import csv
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torchmetrics.functional.classification import binary_auroc

from benchmarks.measure import describe, machine, table, write_json
from nlzoo.program import make_parser, parse_options, run

RESULTS = Path(__file__).parent / "results"
NAME = "tf_efficientnet_lite0.in1k"
NONE = ["--task.non_local", "null"]
ROWS = {  # options beside the recipe's
    "images": {
        "blocks, all trained": [],
        "no blocks, all trained": NONE,
        "classifier alone": [*NONE, "--task.train", "head"],
    },
    "videos": {
        f"{kind}/EfficientNet-Lite0{', blocks' if blocks else ''}": [
            *("--task.model", f"{kind}/{NAME}"),
            *([] if blocks else NONE),
        ]
        for kind in ("c2d", "tsm")
        for blocks in (False, True)
    },
}
RECIPES = {"images": "images_finetune", "videos": "videos_timm_finetune"}
BASELINES = {  # AUC over the same folds, of a logistic regression on frozen features
    "mean of the frames' features": 0.648,
    "mean and deviation of the frames' features": 0.700,
    "differences of neighbouring frames' features": 0.724,
    "four figures of motion energy": 0.749,
}


def nlzoo(program: str, *options: str) -> None:
    """Run a program of nlzoo."""
    subprocess.run([sys.executable, "-m", f"nlzoo.{program}", *options], check=True)


def fit(kind: str, data: str, weights: str, seed: int, row: list[str], run: str) -> float:
    """Train; the seconds that it took."""
    start = time.monotonic()
    common = "--recipe", RECIPES[kind], "--data", data, "--task.pretrained", weights
    nlzoo("fit", *common, "--seed", str(seed), "--run", run, *row)
    return time.monotonic() - start


def images(data: str, weights: str, seed: int, row: list[str]) -> dict[str, Any]:
    """Validation top-1 of one training."""
    with tempfile.TemporaryDirectory() as run:
        seconds = fit("images", data, weights, seed, row, run)
        last = list(csv.DictReader((Path(run) / "metrics.csv").open()))[-1]
    return {"seed": seed, "score": float(last["val/top1"]), "seconds": seconds}


def videos(data: str, weights: str, fold: int, row: list[str]) -> dict[str, Any]:
    """AUC on one fold after a training on the others."""
    with folds(Path(data), fold) as folder, tempfile.TemporaryDirectory() as run:
        seconds = fit("videos", folder, weights, fold, row, run)
        checkpoint = f"{run}/checkpoints/last.ckpt"
        nlzoo("evaluate", "--checkpoint", checkpoint, "--data.clips", "4")
        scores = list(csv.DictReader((Path(run) / "scores.csv").open()))
    read = [one for one in scores if one["views"] != "0"]
    positive = torch.tensor([float(one["fight"]) for one in read])
    auc = binary_auroc(positive, torch.tensor([int(one["label"]) for one in read]))
    unread = len(scores) - len(read)
    return {"fold": fold, "score": float(auc), "seconds": seconds, "unreadable": unread}


@contextmanager
def folds(data: Path, held_out: int) -> Iterator[str]:
    """A folder of lists: one fold for validation, the others for training."""
    rows = list(csv.DictReader((data / "sources.tsv").open(), delimiter="\t"))
    with tempfile.TemporaryDirectory() as folder:
        for split in ("train", "val"):
            wanted = [r for r in rows if (int(r["fold"]) == held_out) == (split == "val")]
            lines = (f"{(data / row['path']).resolve()} {row['label']}\n" for row in wanted)
            (Path(folder) / f"{split}.txt").write_text("".join(lines))
        (Path(folder) / "classes.txt").write_text((data / "classes.txt").read_text())
        yield folder


def render(kind: str, result: dict[str, Any]) -> str:
    """The table: a row a network, a column a seed or fold."""
    column = {"images": "seed", "videos": "fold"}[kind]
    rows: list[dict[str, Any]] = []
    for name, runs in result["runs"].items():
        scores = [run["score"] for run in runs]
        rows.append({"network": name})
        rows[-1] |= {f"{column} {run[column]}": f"{run['score']:.3f}" for run in runs}
        rows[-1] |= {"mean": f"{statistics.mean(scores):.3f}"}
        rows[-1] |= {"deviation": f"{statistics.stdev(scores):.3f}"}
        rows[-1] |= {"seconds": f"{statistics.median(run['seconds'] for run in runs):.0f}"}
    columns = list(rows[0])
    if kind == "videos":
        rows += [{"network": name, "mean": f"{auc:.3f}"} for name, auc in BASELINES.items()]
    what = {"images": "Validation top-1", "videos": "AUC on the fold left out"}[kind]
    note = (
        "The last rows are a logistic regression on 224 x 224 pixels."
        if kind == "videos"
        else "The recipe was tuned on these validation images and seeds: figures are optimistic."
    )
    return f"{what}, {describe(result['machine'])}. {note}\n\n{table(rows, columns)}\n"


def main() -> None:
    """Train, store, print the table."""
    parser = make_parser("python -m benchmarks.finetune", __doc__)
    parser.add_argument("kind", choices=sorted(ROWS))
    parser.add_argument("data", nargs="?", default="")
    parser.add_argument("--weights", default="")
    parser.add_argument("--render", action="store_true", help="the table of the stored result")
    options = parse_options(parser, sys.argv[1:])
    stored = RESULTS / f"finetune_{options.kind}.json"
    if not options.render:
        train, over = {"images": (images, range(3)), "videos": (videos, range(5))}[options.kind]
        runs: dict[str, list[Any]] = {name: [] for name in ROWS[options.kind]}
        for i in over:
            for name, row in ROWS[options.kind].items():
                runs[name].append(train(options.data, options.weights, i, row))
                result = {"recipe": RECIPES[options.kind], "options": ROWS[options.kind]}
                write_json(stored, result | {"machine": machine(), "runs": runs})
    text = render(options.kind, json.loads(stored.read_text()))
    stored.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    run(lambda _: main())
