"""Sets in COCO's format, and what a task gets of them."""

from nlzoo.data.coco import Coco
from nlzoo.data.coco.sampler import GroupedSampler


def module(root, **changes):
    return Coco(str(root), **{"batch_size": 4, "workers": 0, "scales": [], **changes})


def batches(data, loader, epoch=0):
    """What a task gets of one epoch, without a trainer."""
    if isinstance(loader.sampler, GroupedSampler):
        loader.sampler.set_epoch(epoch)
    return [data.on_before_batch_transfer(batch, 0) for batch in loader]


def train_items(data):
    return data.train_dataloader().dataset
