"""COCO, and any other set in its format: boxes, masks and keypoints, as a Lightning data module."""

from nlzoo.data.coco.module import Coco

__all__ = ["Coco"]
