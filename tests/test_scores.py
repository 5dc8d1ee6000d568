import pytest
import torch

from nlzoo.tasks.scores import (
    MeanAveragePrecision,
    MeanClassAccuracy,
    ViewScores,
    accuracies,
    of_class,
)


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


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SETS = {
    "random": (noise(50, 7), noise(50, 7, seed=1) < 0.2),
    "ties": ((noise(50, 7) * 4).round() / 4, noise(50, 7, seed=1) < 0.3),
    "one score": (torch.full((20, 7), 0.5), noise(20, 7, seed=1) < 0.5),
    "certain": ((noise(50, 7) < 0.5).double(), noise(50, 7, seed=1) < 0.3),
    "one file": (noise(1, 7), torch.ones(1, 7) > 0),
    "rare": (noise(400, 7), torch.arange(400)[:, None] == torch.arange(7)),
}


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("empty", [0, 3])  # classes without positives, and one of positives only
def test_mean_average_precision_is_scikit_learns(name, empty):
    reference = pytest.importorskip("sklearn.metrics", reason="needs scikit-learn")
    scores, labels = SETS[name]
    labels = labels.clone()
    labels[:, 1] = True
    labels[:, 2 : 2 + empty] = False
    metric = MeanAveragePrecision(7)
    for part in torch.arange(len(scores)).split(16):
        metric.update(scores[part], labels[part].to(torch.int8))
    occurs = [k for k in range(7) if labels[:, k].any()]
    wanted = reference.average_precision_score(
        labels[:, occurs], scores[:, occurs], average="macro"
    )
    assert float(metric.compute()) == pytest.approx(wanted, abs=1e-6)
    for k in range(7):
        found = of_class(scores[:, k], labels[:, k])
        assert found["positives"] == int(labels[:, k].sum())
        if k in occurs:
            wanted = reference.average_precision_score(labels[:, k], scores[:, k])
            assert found["average_precision"] == pytest.approx(wanted, abs=1e-6)
            precision, recall, thresholds = reference.precision_recall_curve(
                labels[:, k], scores[:, k]
            )
            f1 = 2 * precision * recall / (precision + recall + 1e-12)
            assert found["f1"] == pytest.approx(f1.max(), abs=1e-6)
            best = thresholds[f1[:-1] > f1.max() - 1e-6].max()
            assert found["threshold"] == pytest.approx(best)


def test_no_positive_anywhere_is_no_number():
    metric = MeanAveragePrecision(3)
    assert metric.compute().isnan()
    metric.update(noise(4, 3), torch.zeros(4, 3, dtype=torch.int8))
    assert metric.compute().isnan()


def test_unreadable_files_have_no_precision():
    metric = MeanAveragePrecision(2)
    labels = torch.tensor([[1, 0], [-1, -1], [0, 1]], dtype=torch.int8)
    metric.update(torch.tensor([[0.9, 0.2], [1.0, 1.0], [0.1, 0.8]]), labels)
    assert metric.compute() == 1


@pytest.mark.parametrize("batch", [1, 3, 12])
def test_the_highest_score_of_all_views_counts(batch):
    scores, labels = noise(12, 3, 4), noise(3, 4, seed=1) < 0.5
    video = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0, 1, 2, 1, 2])
    metric = ViewScores(3, 4, "max", many=True)
    for part in torch.arange(12).split(batch):
        metric.update(scores[part], labels[video[part]].to(torch.int8), video[part])
    found = metric.results()
    wanted = torch.stack([scores[video == v].amax((0, 1)) for v in range(3)])
    assert torch.equal(found.scores, wanted)
    assert torch.equal(found.labels, labels.long())
    assert found.views.tolist() == [12, 12, 12]


def test_an_average_over_views_is_another_answer():
    """Of one view in three a file's only mark is seen: the mean puts it behind a dull one."""
    seen = torch.tensor([[0.9], [0.0], [0.0]]).repeat(1, 2)[None]
    dull = torch.full((1, 3, 2), 0.4)
    found = {}
    for pool in ("mean", "max"):
        metric = ViewScores(2, 2, pool, many=True)
        metric.update(seen, torch.ones(1, 2, dtype=torch.int8), torch.tensor([0]))
        metric.update(dull, torch.zeros(1, 2, dtype=torch.int8), torch.tensor([1]))
        scores, precision = metric.results().scores, MeanAveragePrecision(2)
        precision.update(scores, metric.results().labels)
        found[pool] = float(precision.compute())
    assert found == {"mean": 0.5, "max": 1.0}
