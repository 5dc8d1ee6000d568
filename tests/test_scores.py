import pytest
import torch

from nlzoo.tasks.scores import MeanClassAccuracy, ViewScores, accuracies


def test_views_are_averaged_after_the_softmax():
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)) * 5
    metric = ViewScores(videos=1, classes=4)
    for clip in logits:
        metric.update(clip.softmax(-1)[None], torch.tensor([2]), torch.tensor([0]))
    labels, views, scores = metric.compute().tensor_split((1, 2), dim=1)
    expected = logits.double().softmax(-1).mean((0, 1))
    torch.testing.assert_close(scores[0], expected, atol=1e-7, rtol=0)
    assert labels.tolist() == [[2]]
    assert views.tolist() == [[6]]
    wrong = logits.double().mean((0, 1)).softmax(-1)
    assert not torch.allclose(scores[0], wrong, atol=1e-3)


def test_unreadable_videos_are_not_scored():
    metric = ViewScores(videos=3, classes=2)
    probabilities = torch.tensor([[[0.9, 0.1]], [[0.2, 0.8]]])
    metric.update(probabilities, torch.tensor([-1, 1]), torch.tensor([0, 2]))
    labels, views, scores = metric.compute().tensor_split((1, 2), dim=1)
    labels, views = labels.flatten().long(), views.flatten()
    assert labels.tolist() == [-1, -1, 1]
    assert views.tolist() == [0, 0, 1]
    top1 = accuracies(2)(scores, labels)["top1"]
    assert top1 == 1


def test_mean_class_accuracy_counts_only_classes_that_occur():
    metric = MeanClassAccuracy(num_classes=4, ignore_index=-1)
    logits = torch.eye(4)[torch.tensor([0, 0, 1, 3, 2])]
    metric.update(logits, torch.tensor([0, 0, 1, 1, -1]))
    assert metric.compute() == pytest.approx((1 + 0.5) / 2)
