"""Scores of videos and images: accuracies, mean average precision, and views of a test."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MultilabelAveragePrecision,
)
from torchmetrics.functional.classification import (
    binary_average_precision,
    binary_precision_recall_curve,
    multilabel_average_precision,
)
from torchmetrics.utilities import dim_zero_cat

from nlzoo.preprocessing import UNREADABLE


def readable(labels: Tensor) -> Tensor:
    """Which of the labels, (B,) or (B, K), are of files that could be read: bool (B,)."""
    return (labels if labels.ndim == 1 else labels[:, 0]) != UNREADABLE


class MeanClassAccuracy(MulticlassConfusionMatrix):
    """Mean over the classes that occur of the share of their files that are right.

    (torchmetrics' macro average counts a class that never occurs as 0 once it is predicted.)
    """

    def compute(self) -> Tensor:
        """Scalar in [0, 1]."""
        confusion = super().compute()
        support = confusion.sum(1)
        return (confusion.diagonal() / support)[support > 0].mean()


class MeanAveragePrecision(MultilabelAveragePrecision):
    """Of scores (B, K) in [0, 1] and labels (B, K): the mean over the classes that occur.

    NaN where no class does. A row of -1 is a file that could not be read.
    """

    def __init__(self, classes: int) -> None:
        super().__init__(classes, average="none", validate_args=False)

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add files."""
        read = readable(target)
        super().update(preds[read], target[read].long())

    def compute(self) -> Tensor:  # type: ignore[override]
        """Scalar in [0, 1]."""
        if len(self.target) == 0 or not (target := dim_zero_cat(self.target)).any():
            return torch.tensor(torch.nan, device=self.device)
        occurs = target.any(0)
        scores, labels = dim_zero_cat(self.preds)[:, occurs], target[:, occurs]
        return multilabel_average_precision(scores, labels, labels.shape[1], validate_args=False)


def of_class(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """How well scores (N,) in [0, 1] tell the files of one class, labels (N,) of zeros and ones.

    How many have it, and if any: the average precision, the highest F1, and the (highest)
    threshold that gives it.
    """
    positives = int(labels.sum())
    if not positives:
        return {"positives": 0}
    precision, recall, thresholds = binary_precision_recall_curve(scores, labels.long())
    f1 = (2 * precision * recall / (precision + recall).clamp(min=1e-12))[:-1]
    best = len(f1) - 1 - int(f1.flip(0).argmax())
    return {
        "positives": positives,
        "average_precision": float(binary_average_precision(scores, labels.long())),
        "f1": float(f1[best]),
        "threshold": float(thresholds[best]),
    }


def accuracies(classes: int) -> MetricCollection:
    """top1, top5 (fewer where there are fewer classes), mean_class of (B, K) and labels (B,)."""
    options: dict[str, Any] = {"num_classes": classes, "ignore_index": UNREADABLE}
    return MetricCollection(
        {
            "top1": MulticlassAccuracy(average="micro", **options),
            "top5": MulticlassAccuracy(average="micro", top_k=min(5, classes), **options),
            "mean_class": MeanClassAccuracy(**options),
        }
    )


class Results(NamedTuple):
    """Of a test, a row a file."""

    labels: Tensor  # int64 (F,), or (F, K) of many labels; -1: unreadable
    views: Tensor  # int64 (F,): how many were read
    scores: Tensor  # float64 (F, K)


class ViewScores(Metric):
    """Scores over the views of each file, exact on any number of processes: mean, or maximum.

    Softmax or sigmoid first (released code; paper section 4.1). A file of which no view could be
    read has no score.
    """

    scores: Tensor
    views: Tensor
    labels: Tensor

    def __init__(self, videos: int, classes: int, pool: str = "mean", many: bool = False) -> None:
        """`many`: a label is a row of K."""
        super().__init__()
        self.pool, many_of = pool, classes if many else 1
        zeros = torch.zeros(videos, classes, dtype=torch.float64)
        none = torch.full((videos, many_of), UNREADABLE)
        self.add_state("scores", zeros, dist_reduce_fx="sum" if pool == "mean" else "max")
        self.add_state("views", torch.zeros(videos, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("labels", none, dist_reduce_fx="max")

    def update(self, scores: Tensor, label: Tensor, video: Tensor) -> None:
        """Add views: scores (B, views, K) from 0, label (B,) or (B, K), video (B,) from 0."""
        read = readable(label)
        video, scores = video[read], scores[read].double()
        if self.pool == "mean":
            self.scores.index_add_(0, video, scores.sum(1))
        else:
            for file, highest in zip(video, scores.amax(1), strict=True):  # one may be there twice
                self.scores[file] = self.scores[file].maximum(highest)
        self.views.index_add_(0, video, torch.full_like(video, scores.shape[1]))
        self.labels[video] = label[read].long().view(len(video), self.labels.shape[1])

    def compute(self) -> Tensor:
        """(V, L + 1 + K) float64: label or labels, number of views, score of each class.

        The scores of unreadable files are 0. One tensor, because torchmetrics turns a result of one
        element into a scalar; see `results`.
        """
        views = self.views[:, None]
        pooled = self.scores / views.clamp(min=1) if self.pool == "mean" else self.scores
        return torch.cat([self.labels, views, pooled], 1)

    def results(self) -> Results:
        """The same in parts."""
        k = self.scores.shape[1]
        labels, views, scores = self.compute().tensor_split((-k - 1, -k), 1)
        labels = labels.long() if labels.shape[1] == k else labels[:, 0].long()
        return Results(labels, views[:, 0].long(), scores)
