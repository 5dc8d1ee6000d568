"""What a detector finds in an image: an answer, a picture, and COCO's JSON."""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image
from torchvision.utils import draw_bounding_boxes, draw_keypoints, draw_segmentation_masks

from nlzoo.answers.position import check_position
from nlzoo.data.pictures import Source, read_image
from nlzoo.files import write_whole
from nlzoo.network import device_of
from nlzoo.preprocessing import Preprocessing
from nlzoo.tasks.coco_metric import pack_masks

COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#f032e6")
SEEN = 0.0  # logit of a keypoint's best place, above which a picture shows it


@dataclass(frozen=True)
class Found:
    """Objects of one image: torchvision's boxes, labels, scores, masks, keypoints; on the CPU."""

    file: str
    image: Tensor  # uint8 (3, H, W)
    objects: dict[str, Tensor]

    def answer(self, pre: Preprocessing) -> dict[str, Any]:
        """Plain values, the best first."""
        columns = (self.objects[key].tolist() for key in ("labels", "scores", "boxes"))
        top = [
            {"class": name_of(pre, label), "score": score, "box": [round(x, 2) for x in box]}
            for label, score, box in zip(*columns, strict=True)
        ]
        return {"file": self.file, "top": top}


def name_of(pre: Preprocessing, label: int) -> str:
    """The class of a label, from 1."""
    return pre.classes[label - 1] if pre.classes else str(label)


@torch.inference_mode()
def detect(model: Any, image: Source, threshold: float = 0.5) -> Found:
    """The objects of an image whose score is above the threshold.

    Args:
        model: a detector in evaluation mode, or an exported one.
        image: path of a file, or a member of a tar file; boxes are in its upright pixels.
        threshold: 0..1.

    Raises:
        Unreadable: it is no image, or damaged.
        ValueError: the network's answer is no number.
    """
    pixels = pil_to_tensor(read_image(image))
    objects = {key: value.cpu() for key, value in model([pixels.to(device_of(model))])[0].items()}
    if not all(objects[key].isfinite().all() for key in ("boxes", "scores")):
        raise ValueError(
            f"{image}: the network's answer is no number: its weights have NaN or infinite values, "
            "or ones too large; give an earlier checkpoint"
        )
    kept = objects["scores"] > threshold
    return Found(str(image), pixels, {key: value[kept] for key, value in objects.items()})


def draw_objects(found: Found, pre: Preprocessing, picture: Path) -> None:
    """Write a picture of boxes with names and scores, of masks, and of skeletons.

    Args:
        found: in one image.
        pre: of the network.
        picture: NAME.png or NAME.jpg; it appears whole.
    """
    objects, image = found.objects, found.image
    if len(objects["labels"]):
        colours = [COLOURS[label % len(COLOURS)] for label in objects["labels"].tolist()]
        if "masks" in objects:
            masks = objects["masks"][:, 0] > 0.5
            image = draw_segmentation_masks(image, masks, alpha=0.5, colors=colours)
        answer = found.answer(pre)["top"]
        words = [f"{one['class']} {one['score']:.2f}" for one in answer]
        image = draw_bounding_boxes(image, objects["boxes"], words, colours, width=2)
        if "keypoints" in objects:
            points = objects["keypoints"]
            image = draw_keypoints(
                image,
                points[..., :2],
                [(a, b) for a, b in pre.skeleton],
                colors="white",
                radius=2,
                width=2,
                visibility=objects["keypoints_scores"] > SEEN,
            )
    buffer = io.BytesIO()
    kind = "PNG" if picture.suffix.lower() == ".png" else "JPEG"
    to_pil_image(image).save(buffer, kind)
    write_whole(picture, buffer.getbuffer())


class CocoFile:
    """Images, categories and annotations as in COCO's files, each annotation with its score."""

    def __init__(self, pre: Preprocessing) -> None:
        classes = pre.classes
        self._ids = list(pre.category_ids or range(1, 1 + len(classes)))
        people: dict[str, Any] = {"keypoints": list(pre.keypoints)} if pre.keypoints else {}
        if pre.skeleton:
            people["skeleton"] = [[a + 1, b + 1] for a, b in pre.skeleton]
        pairs = zip(self._ids, classes, strict=True)
        self.categories = [{"id": i, "name": name, **people} for i, name in pairs]
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def add(self, found: Found) -> None:
        """One image more."""
        height, width = found.image.shape[1:]
        number = len(self.images) + 1
        size = {"width": width, "height": height}
        self.images.append({"id": number, "file_name": found.file, **size})
        for row in _rows(found):
            label = row.pop("label")
            category = self._ids[label - 1] if self._ids else label
            facts = {"image_id": number, "category_id": category}
            self.annotations.append({"id": len(self.annotations) + 1, **facts, **row})

    def write(self, path: Path) -> None:
        """As JSON; it appears whole."""
        keys = ("images", "categories", "annotations")
        write_whole(path, json.dumps({key: getattr(self, key) for key in keys}) + "\n")


def _rows(found: Found) -> list[dict[str, Any]]:
    objects = found.objects
    masks = pack_masks(objects["masks"]) if "masks" in objects else None
    rows = []
    for i, (label, score) in enumerate(
        zip(objects["labels"].tolist(), objects["scores"].tolist(), strict=True)
    ):
        x1, y1, x2, y2 = (round(x, 3) for x in objects["boxes"][i].tolist())
        box = [x1, y1, round(x2 - x1, 3), round(y2 - y1, 3)]
        row = {"label": label, "score": score, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        if masks is not None:
            row["segmentation"] = masks[i]
            row["area"] = float((objects["masks"][i] > 0.5).sum())
        if "keypoints" in objects:
            row["keypoints"] = [round(x, 3) for x in objects["keypoints"][i].flatten().tolist()]
            row["num_keypoints"] = objects["keypoints"].shape[1]
        rows.append(row)
    return rows


def look_at_objects(
    model: Any, found: Found, picture: Path, at: tuple[int, int] | None = None
) -> tuple[int, int]:
    """Draw where a position of an image looks through the blocks of the backbone.

    Args:
        model: a detector with such blocks.
        found: in the image.
        picture: file to write.
        at: (x, y) in its pixels; by default the middle of the best object, or of the image.

    Returns:
        The position.

    Raises:
        ValueError: a position outside the image, or a backbone without blocks.
    """
    from nlzoo.explain import draw, look  # with Matplotlib

    height, width = found.image.shape[1:]
    if at is None:
        boxes = found.objects["boxes"]
        x1, y1, x2, y2 = boxes[0].tolist() if len(boxes) else (0, 0, width, height)
        at = min(int(x1 + x2) // 2, width - 1), min(int(y1 + y2) // 2, height - 1)
    check_position(str(found.file), at, (width, height))
    device = device_of(model)
    with torch.inference_mode():
        inputs, _ = model.transform([found.image.to(device) / 255])
    small = inputs.image_sizes[0]
    query = 0, at[1] * small[0] // height, at[0] * small[1] // width
    looks = look(model.backbone, inputs.tensors, query)
    pre = model.preprocessing
    mean, std = (torch.tensor(x, device=device)[:, None, None] for x in (pre.mean, pre.std))
    pixels = (inputs.tensors[0] * std + mean).clamp(0, 1).mul(255).byte()
    draw(looks, pixels[:, : small[0], : small[1]].permute(1, 2, 0)[None].cpu(), picture)
    return at
