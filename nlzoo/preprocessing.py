"""How pixels reach a model: one record that travels with the network and its checkpoints."""

from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

STRIDE = 32  # pixels, of a detector's coarsest convolution: sides of its canvases are multiples
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
UNREADABLE = -1  # label of a file that could not be read: it has no loss and no score


class Unreadable(ValueError):  # noqa: N818
    """A file of which nothing can be read; the text is one line with the path and the reason."""


@dataclass(frozen=True)
class Preprocessing:
    """What a model expects of its input.

    The defaults are those of the released Kinetics models: RGB in [0, 1], mean 0.45, standard
    deviation 0.225 for every channel, 32 frames with stride 2, trained on crops of 224 and tested
    at short side 256 with crops of 256.
    """

    mean: tuple[float, ...] = (0.45, 0.45, 0.45)
    std: tuple[float, ...] = (0.225, 0.225, 0.225)
    frames: int = 32  # of one clip; 0: it sees images
    stride: int = 2  # frames from one to the next
    fps: float = 0.0  # of the video whose frames stride counts, resampled; 0: as it is
    crop: int = 224  # side of a training crop, pixels
    test_size: int = 256  # short side at test, pixels
    test_crop: int = 256  # side of a test crop, pixels
    interpolation: str = "bilinear"  # of images at test: also bicubic, lanczos, ... as in timm
    classes: tuple[str, ...] = ()
    multilabel: bool = False  # several classes may be there at once, or none
    pool: str = "mean"  # of the scores of a file's views: mean or max
    segments: bool = False  # clips of a test lie in the middle of equal parts, not at their start
    # of detectors
    task: str = "classification"  # or detection: short side test_size, long side up to test_crop
    category_ids: tuple[int, ...] = ()  # of the classes, in the data's own files
    keypoints: tuple[str, ...] = ()  # names
    skeleton: tuple[list[int], ...] = ()  # pairs of keypoints, from 0, that a picture joins
    sigmas: tuple[float, ...] = ()  # of each keypoint, of COCO's metric; (): its own

    def scores(self, logits: Tensor) -> Tensor:
        """Logits (B, K) -> softmax over the classes, or of many labels the sigmoid of each."""
        return logits.sigmoid() if self.multilabel else logits.softmax(1)

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, so that a checkpoint that holds them loads with weights_only=True."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Preprocessing":
        """Inverse of `to_dict`; keys that this version does not know are an error."""
        if unknown := values.keys() - {f.name for f in fields(cls)}:
            raise ValueError(f"preprocessing has unknown keys {sorted(unknown)}")
        plain: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        return cls(**plain)


FACTS = ("classes", "category_ids", "keypoints", "skeleton", "sigmas")  # of the data


def canvas_side(pixels: int) -> int:
    """Of the least canvas of a detector that is at least so long."""
    return -(-pixels // STRIDE) * STRIDE


class Normalize(nn.Module):
    """uint8 (B, C, *) in 0..255 -> float (x / 255 - mean) / std; float input passes unchanged.

    The buffers are not persistent: they never appear in a state dict.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        mean_, std_ = torch.tensor(mean), torch.tensor(std)
        self.register_buffer("scale", 1 / (255 * std_), persistent=False)
        self.register_buffer("shift", -mean_ / std_, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, *S) -> (B, 3, *S): uint8 normalised, what is no uint8 as it is."""
        if x.dtype != torch.uint8:
            return x
        shape = (-1, *[1] * (x.ndim - 2))
        return x.to(self.scale.dtype) * self.scale.view(shape) + self.shift.view(shape)
