"""COCO's numbers of boxes, masks and keypoints, on COCO's own file, by faster-coco-eval.

Detections are kept as they go into a file of results, so the numbers are those of that file.
(torchmetrics' MeanAveragePrecision has no keypoints, and takes the duplicates of a padded sampler
for other images.)
"""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask as rle
from torch import Tensor

from nlzoo import shapes

TYPES = {"box": "bbox", "mask": "segm", "keypoint": "keypoints"}
FIELDS = {"box": "bbox", "mask": "segmentation", "keypoint": "keypoints"}
DETECTION = [
    *("AP", "AP50", "AP75", "APs", "APm", "APl"),
    *("AR1", "AR10", "AR100", "ARs", "ARm", "ARl"),
]
KEYPOINT = ["AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl"]


def _silent(*_: Any) -> None:
    """faster-coco-eval tells of every step."""


def read_truth(annotations: Path, kinds: Collection[str]) -> COCO:
    """The annotations as they are scored.

    Numbered anew from 1, because COCO's code takes number 0 for no match and one of two equal
    numbers for nothing; `area` and `iscrowd` filled in, `num_keypoints` counted; with mask among
    `kinds`, only what has one.
    """
    truth = json.loads(Path(annotations).read_text("utf-8"))
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    kept: list[dict[str, Any]] = []
    for found in truth["annotations"]:
        if (size := sizes.get(found["image_id"])) is None:
            continue
        made = shapes.to_rle(found.get("segmentation"), *size) if "mask" in kinds else None
        if "mask" in kinds and made is None:
            continue
        area = float(rle.area(made)) if made else found["bbox"][2] * found["bbox"][3]
        own: dict[str, Any] = {"segmentation": made} if made else {}
        if "keypoint" in kinds:
            own["num_keypoints"] = sum(v > 0 for v in (found.get("keypoints") or ())[2::3])
        kept.append({"iscrowd": 0, "area": area, **found, **own, "id": len(kept) + 1})
    return COCO({**truth, "annotations": kept}, print_function=_silent)


def score(
    truth: COCO,
    results: Sequence[Mapping[str, Any]],
    kind: str,
    images: Sequence[int] | None = None,
    sigmas: Sequence[float] = (),
) -> COCOeval_faster:
    """COCO's evaluation of results, done; `stats` holds the numbers.

    Args:
        truth: the annotations.
        results: in COCO's format.
        kind: box, mask or keypoint.
        images: ids of those that count; None: all.
        sigmas: of K keypoints; empty: COCO's, of 17.

    Raises:
        ValueError: another number of keypoints than of sigmas.
    """
    found = truth.loadRes([dict(result) for result in results])
    done = COCOeval_faster(
        truth, found, TYPES[kind], print_function=_silent, kpt_oks_sigmas=list(sigmas) or None
    )
    if images is not None:
        done.params.imgIds = sorted(images)
    if kind == "keypoint":
        _check_keypoints(truth, len(done.params.kpt_oks_sigmas))
    done.evaluate()
    done.accumulate()
    done.summarize()
    return done


def _check_keypoints(truth: COCO, sigmas: int) -> None:
    wrong = (x for x in truth.anns.values() if len(x.get("keypoints", ())) not in (0, 3 * sigmas))
    if one := next(wrong, None):
        raise ValueError(
            f"image {one['image_id']} has {len(one['keypoints']) // 3} keypoints where there are "
            f"{sigmas} sigmas: give data.sigmas, one a keypoint"
        )


def numbers(done: COCOeval_faster, kind: str) -> dict[str, float]:
    """COCO's 12, of keypoints 10, by name; NaN where nothing is annotated."""
    names = KEYPOINT if kind == "keypoint" else DETECTION
    values = zip(names, done.stats, strict=True)
    return {name: float(x) if x > -1 else float("nan") for name, x in values}


class CocoMetric:
    """Collects detections of images, on any number of processes, and scores them.

    Attributes:
        seen, total: images scored by the last `compute`, and annotated.
    """

    def __init__(
        self,
        annotations: str | Path,
        kinds: Sequence[str],
        category_ids: Sequence[int],
        sigmas: Sequence[float] = (),
    ) -> None:
        """Nothing is read before `compute`.

        Args:
            annotations: COCO's JSON.
            kinds: of box, mask, keypoint.
            category_ids: the file's own, in the order of the labels from 1.
            sigmas: how far each keypoint may lie, of the object's size; empty: COCO's, of 17.
        """
        self.annotations, self.kinds = Path(annotations), tuple(kinds)
        self._ids, self._sigmas = np.array([0, *category_ids]), tuple(sigmas)
        self._truth: COCO | None = None
        self.reset()

    def reset(self) -> None:
        """Forget all detections."""
        self._found: dict[int, dict[str, Any]] = {}
        self._done: dict[str, COCOeval_faster] = {}
        self.seen = self.total = 0

    def update(self, image_ids: Sequence[int], detections: Sequence[Mapping[str, Tensor]]) -> None:
        """Add images: torchvision's dictionaries, in pixels of the original image.

        boxes (N, 4) xyxy, scores (N,), labels (N,), masks (N, 1, H, W) probabilities or bool,
        keypoints (N, K, 3). An image that was there before is replaced.

        Raises:
            ValueError: a box, keypoint or score that is no finite number.
        """
        for image, found in zip(image_ids, detections, strict=True):
            self._found[int(image)] = self._kept(int(image), found)

    def _kept(self, image: int, found: Mapping[str, Tensor]) -> dict[str, Any]:
        boxes, scores = (_array(found[key]) for key in ("boxes", "scores"))
        xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).round(3)
        kept: dict[str, Any] = {"score": scores, "box": xywh}
        kept["category"] = self._ids[found["labels"].cpu().numpy()]
        if "keypoint" in self.kinds:
            kept["keypoint"] = _array(found["keypoints"].flatten(1)).round(3)
        if "mask" in self.kinds:
            kept["mask"] = pack_masks(found["masks"])
        for name in kept.keys() - {"mask"}:
            if not np.isfinite(kept[name]).all():
                raise ValueError(f"results-nan: image {image} has a {name} that is no number")
        return kept

    def compute(self) -> dict[str, float]:
        """`box/AP` and so on, over the images seen by any process; the same on all of them."""
        shared = dist.is_available() and dist.is_initialized()
        if shared:
            parts: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(parts, self._found)
            self._found = {image: x for part in reversed(parts) for image, x in part.items()}
        answer: list[Any] = [None]
        if not shared or dist.get_rank() == 0:
            answer[0] = self._score()
        if shared:
            dist.broadcast_object_list(answer)
        values, self.seen, self.total = answer[0]
        return values

    def _score(self) -> tuple[dict[str, float], int, int]:
        if self._truth is None:
            self._truth = read_truth(self.annotations, self.kinds)
        values: dict[str, float] = {}
        for kind in self.kinds:
            found = self.results(kind)
            done = score(self._truth, found, kind, list(self._found), self._sigmas)
            self._done[kind] = done
            values |= {f"{kind}/{name}": x for name, x in numbers(done, kind).items()}
        return values, len(self._found), len(self._truth.imgs)

    def per_class(self) -> dict[str, dict[str, float]]:
        """After `compute`, on the first process: by class name `box/AP`, `box/AP50` and so on.

        NaN: the class is in no image that was seen.
        """
        rows: dict[str, dict[str, float]] = {}
        for kind, done in self._done.items():
            for k, category in enumerate(done.params.catIds):
                row = rows.setdefault(done.cocoGt.cats[category]["name"], {})
                precision = done.eval["precision"][:, :, k, 0, -1]  # IoU x recall
                for name, part in (
                    ("AP", precision),
                    ("AP50", precision[0]),
                    ("AP75", precision[5]),
                ):
                    row[f"{kind}/{name}"] = float(part.mean()) if part.max() > -1 else float("nan")
        return rows

    def results(self, kind: str) -> list[dict[str, Any]]:
        """What was found, as COCO's server takes it: by image id, the best first."""
        rows = []
        for image in sorted(self._found):
            found, counts = self._found[image], Counter[int]()
            for i in np.argsort(-found["score"], kind="stable"):
                category = int(found["category"][i])
                counts[category] += 1
                # -1: the file has no such class
                if category < 0 or counts[category] > shapes.MOST[kind]:
                    continue
                value = found[kind][i] if kind == "mask" else found[kind][i].tolist()
                row = {"image_id": image, "category_id": category, FIELDS[kind]: value}
                rows.append({**row, "score": float(found["score"][i])})
        return rows


def _array(x: Tensor) -> np.ndarray:
    return x.detach().cpu().double().numpy()


def pack_masks(masks: Tensor) -> list[dict[str, Any]]:
    """Masks (N, 1, H, W) or (N, H, W), above 0.5, as run lengths that JSON takes."""
    flat = masks.detach().reshape(-1, *masks.shape[-2:])
    binary = (flat if flat.dtype == torch.bool else flat > 0.5).cpu().numpy().astype(np.uint8)
    if not len(binary):
        return []
    packed = rle.encode(np.asfortranarray(binary.transpose(1, 2, 0)))
    text = (one["counts"] for one in packed)
    return [
        {"size": list(binary.shape[1:]), "counts": t.decode() if isinstance(t, bytes) else t}
        for t in text
    ]
