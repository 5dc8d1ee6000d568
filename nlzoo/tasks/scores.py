"""Scores of videos and images: accuracies, and the average over views of the 30-view test."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from nlzoo.preprocessing import UNREADABLE


class MeanClassAccuracy(MulticlassConfusionMatrix):
    """Mean over the classes that occur of the share of their files that are right.

    (torchmetrics' macro average counts a class that never occurs as 0 once it is predicted.)
    """

    def compute(self) -> Tensor:
        """Scalar in [0, 1]."""
        confusion = super().compute()
        support = confusion.sum(1)
        return (confusion.diagonal() / support)[support > 0].mean()


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


class ViewScores(Metric):
    """Sum of softmax scores over the views of each file, exact on any number of processes.

    Softmax first, then the average (released code; paper section 4.1). A file of which no view
    could be read has no score.
    """

    scores: Tensor
    views: Tensor
    labels: Tensor

    def __init__(self, videos: int, classes: int) -> None:
        super().__init__()
        zeros = torch.zeros(videos, classes, dtype=torch.float64)
        self.add_state("scores", zeros, dist_reduce_fx="sum")
        self.add_state("views", torch.zeros(videos, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("labels", torch.full((videos,), UNREADABLE), dist_reduce_fx="max")

    def update(self, probabilities: Tensor, label: Tensor, video: Tensor) -> None:
        """Add views: probabilities (B, views, K), label (B,), video (B,) from 0."""
        read = label != UNREADABLE
        video, views = video[read], probabilities.shape[1]
        self.scores.index_add_(0, video, probabilities[read].double().sum(1))
        self.views.index_add_(0, video, torch.full_like(video, views))
        self.labels[video] = label[read]

    def compute(self) -> Tensor:
        """(V, 2 + K) float64: label, number of views, mean score of each class (0: unreadable).

        One tensor, because torchmetrics turns a result of one element into a scalar.
        """
        means = self.scores / self.views.clamp(min=1)[:, None]
        return torch.cat([self.labels[:, None], self.views[:, None], means], 1)
