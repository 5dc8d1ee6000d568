"""COCO's numbers by nlzoo (faster-coco-eval) and by pycocotools: python -m benchmarks.coco_metric.

Both start from results in COCO's format, with the annotations loaded, and end with the numbers.
"""

import contextlib
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval.core import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from benchmarks.measure import describe, interleaved, machine, median, ratio, table, write_json
from nlzoo.program import make_parser, parse_options, run
from nlzoo.tasks.coco_metric import TYPES, numbers, read_truth, score

RESULTS = Path(__file__).parent / "results" / "coco_metric.json"
IMAGES, CLASSES, OBJECTS, FOUND = 1000, 80, 7, 50  # of an image: annotated, and found
HEIGHT, WIDTH, KEYPOINTS = 240, 320, 17
WANTED = 2.0


def rectangle(box: np.ndarray) -> dict[str, Any]:
    """Run lengths of a box."""
    x, y, w, h = box
    corners = [x, y, x + w, y, x + w, y + h, x, y + h]
    packed = mask.merge(mask.frPyObjects([[float(c) for c in corners]], HEIGHT, WIDTH))
    counts = packed["counts"]
    return {**packed, "counts": counts.decode() if isinstance(counts, bytes) else counts}


def made(kind: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Annotations, and what was found: near them, or not."""
    rng = np.random.default_rng(0)
    classes = 1 if kind == "keypoint" else CLASSES
    truth, found = [], []
    for image in range(1, IMAGES + 1):
        boxes = np.concatenate(
            [rng.uniform(0, 160, (OBJECTS, 2)), rng.uniform(8, 90, (OBJECTS, 2))], 1
        )
        labels = rng.integers(1, classes + 1, OBJECTS)
        for box, label in zip(boxes, labels, strict=True):
            one = shape(kind, box, rng) | {"bbox": box.tolist(), "area": float(box[2] * box[3])}
            one |= {"id": len(truth) + 1, "image_id": image, "category_id": int(label)}
            truth.append(one | {"iscrowd": 0, "num_keypoints": KEYPOINTS})
        for _ in range(20 if kind == "keypoint" else FOUND):
            near = rng.integers(OBJECTS)
            box = boxes[near] + rng.normal(0, 4, 4)
            one = shape(kind, box.clip(1), rng) | {"score": float(rng.random())}
            label = labels[near] if rng.random() < 0.5 else rng.integers(1, classes + 1)
            found.append(one | {"image_id": image, "category_id": int(label)})
    images = [{"id": i, "height": HEIGHT, "width": WIDTH} for i in range(1, IMAGES + 1)]
    categories = [{"id": i, "name": str(i)} for i in range(1, classes + 1)]
    return {"images": images, "annotations": truth, "categories": categories}, found


def shape(kind: str, box: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    if kind == "box":
        return {"bbox": box.tolist()}
    if kind == "mask":
        return {"segmentation": rectangle(box)}
    points = box[:2] + rng.random((KEYPOINTS, 2)) * box[2:]
    return {"keypoints": np.concatenate([points, np.full((KEYPOINTS, 1), 2)], 1).ravel().tolist()}


def theirs(truth: Any, found: list[dict[str, Any]], kind: str) -> list[float]:
    with contextlib.redirect_stdout(io.StringIO()):
        done = COCOeval(truth, truth.loadRes([dict(one) for one in found]), TYPES[kind])
        done.evaluate()
        done.accumulate()
        done.summarize()
    return list(done.stats)


def measure(kind: str, rounds: int) -> dict[str, Any]:
    truth, found = made(kind)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        file = Path(folder) / "truth.json"
        file.write_text(json.dumps(truth))
        ours, known = read_truth(file, [kind]), COCO(str(file))
    values = {}

    def run_theirs() -> None:
        values["pycocotools"] = theirs(known, found, kind)

    def run_ours() -> None:
        values["nlzoo"] = list(numbers(score(ours, found, kind), kind).values())

    seconds = interleaved({"pycocotools": run_theirs, "nlzoo": run_ours}, rounds)
    reference = np.where(np.array(values["pycocotools"]) > -1, values["pycocotools"], np.nan)
    row: dict[str, Any] = {"kind": kind, "images": IMAGES, "detections": len(found)}
    row |= {f"{name}, s": median(some) for name, some in seconds.items()}
    row |= {"times as fast": ratio(seconds["pycocotools"], seconds["nlzoo"]), "wanted": WANTED}
    row["largest difference"] = float(np.nanmax(np.abs(np.array(values["nlzoo"]) - reference)))
    return row | {"seconds": seconds}


def render() -> str:
    """Write the Markdown table beside the JSON file; return it."""
    results = json.loads(RESULTS.read_text())
    columns = [column for column in results["rows"][0] if column != "seconds"]
    text = f"COCO's numbers, from results to scores; {describe(results['machine'])}.\n\n"
    text += table(results["rows"], columns) + "\n"
    RESULTS.with_suffix(".md").write_text(text)
    return text


def main() -> None:
    parser = make_parser("python -m benchmarks.coco_metric", __doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--render", action="store_true")
    options = parse_options(parser, sys.argv[1:])
    if not options.render:
        rows = [measure(kind, options.rounds) for kind in TYPES]
        write_json(RESULTS, {"machine": machine(), "rows": rows})
    print(render())


if __name__ == "__main__":
    run(lambda _: main())
