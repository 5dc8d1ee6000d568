"""Images of any size on the canvas of an exported detector, and its detections back on them."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import keypointrcnn_inference
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from nlzoo.preprocessing import Preprocessing, canvas_side

Sizes = list[tuple[int, int]]  # height and width


class Canvas:
    """What is done before and after a file's graph, by torchvision's own functions.

    Args:
        preprocessing: of a detector.
        shape: (B, 3, height, width) of the canvas.
    """

    def __init__(self, preprocessing: Preprocessing, shape: Sequence[int]) -> None:
        self.batch, _, *self.sides = shape
        sides = preprocessing.test_size, preprocessing.test_crop
        self.transform = GeneralizedRCNNTransform(*sides, [0.0] * 3, [1.0] * 3).eval()

    def put(self, images: Sequence[Tensor]) -> tuple[dict[str, Tensor], Sizes]:
        """Resize as at test: `images` and `sizes` by name, and the sizes of those that are there.

        Args:
            images: (3, H, W) each, uint8 or float in 0..1.

        Raises:
            ValueError: more than the canvas is for, or one that does not fit on it.
        """
        if len(images) > self.batch:
            raise ValueError(f"{len(images)} images at once: the file takes {self.batch}")
        canvas = torch.zeros(self.batch, 3, *self.sides)
        sizes: Sizes = []
        for image, place in zip(images, canvas, strict=False):
            image = image / 255 if image.dtype == torch.uint8 else image
            image, _ = self.transform.resize(image)
            height, width = image.shape[1:]
            if height > self.sides[0] or width > self.sides[1]:
                least = map(canvas_side, map(max, self.sides, (height, width)))
                raise ValueError(
                    f"an image becomes {height} x {width} pixels, which does not fit on the "
                    f"canvas of {self.sides[0]} x {self.sides[1]}: export one that takes it, "
                    f"--shape {self.batch},3,{','.join(map(str, least))}"
                )
            place[:, :height, :width] = image
            sizes.append((height, width))
        filled = [*sizes, *[(0, 0)] * (self.batch - len(sizes))]
        return {"images": canvas, "sizes": torch.tensor(filled, dtype=torch.float32)}, sizes

    def take(
        self, outputs: dict[str, Tensor], sizes: Sizes, originals: Sizes
    ) -> list[dict[str, Tensor]]:
        """Torchvision's dicts, in pixels of the original images, of what a graph gives.

        Warns of detections that may not be exact.
        """
        outputs = {name: x.cpu() for name, x in outputs.items()}
        if not outputs["exact"][: len(sizes)].all():
            warnings.warn(
                "more boxes overlap than the file is for: some detections may be missing, or twice",
                stacklevel=3,
            )
        found = [detections(outputs, i, int(outputs["num"][i])) for i in range(len(sizes))]
        made: list[dict[str, Tensor]] = self.transform.postprocess(found, sizes, originals)
        return made


def detections(outputs: dict[str, Tensor], i: int, number: int) -> dict[str, Tensor]:
    """The first ones of an image, in pixels of the canvas, as torchvision's heads give them."""
    one = {name: x[i][:number] for name, x in outputs.items() if x.ndim > 1}
    if "masks" in one:
        one["masks"] = one["masks"].unsqueeze(1)
    if "heatmaps" in one:
        points, scores = keypointrcnn_inference(one.pop("heatmaps"), [one["boxes"]])
        one |= {"keypoints": points[0], "keypoints_scores": scores[0]}
    return one
