"""Sets in COCO's format: batches, epochs and views, in one process or several, resumed or not."""

import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from coco_sets import batches, module, train_items
from lightning import Callback, LightningModule, Trainer

from nlzoo.data.coco.sampler import GroupedSampler
from nlzoo.data.sample_coco import make_coco


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return make_coco(tmp_path_factory.mktemp("set") / "coco", train=21, val=6)


def sampler(wide, batch_size, world=1, rank=0, seed=0):
    trainer = SimpleNamespace(world_size=world, global_rank=rank) if world > 1 else None
    data = type("Data", (), {"seed": seed, "__len__": lambda self: len(wide)})()
    return GroupedSampler(data, batch_size, trainer, np.array(wide))


def in_batches(order, size):
    return [tuple(order[i : i + size]) for i in range(0, len(order), size)]


def test_batches_are_of_one_shape_but_for_what_is_left():
    wide = [i % 3 > 0 for i in range(101)]  # 67 and 34
    made = in_batches(sampler(wide, 4).order(0), 4)
    assert len(made) == 25
    assert sum(len({wide[i] for i in batch}) > 1 for batch in made) <= 1
    flat = [i for batch in made for i in batch]
    assert len(set(flat)) == 100


def test_no_image_is_in_no_epoch():
    """Three upright images among forty, in batches of eight."""
    seen = {i for epoch in range(10) for i in sampler([i > 2 for i in range(43)], 8).order(epoch)}
    assert seen == set(range(43))


@pytest.mark.parametrize("world", [2, 3, 4])
def test_ranks_share_the_batches_of_one(world):
    wide = [i % 3 > 0 for i in range(101)]
    for epoch in (0, 1):
        whole = in_batches(sampler(wide, 4).order(epoch), 4)
        parts = [sampler(wide, 4, world, rank) for rank in range(world)]
        orders = [in_batches(part.order(epoch), 4) for part in parts]
        assert len({len(order) for order in orders}) == 1
        assert all(len(part) == 4 * len(order) for part, order in zip(parts, orders, strict=True))
        dealt = [batch for step in zip(*orders, strict=True) for batch in step]
        assert dealt == whole[: len(whole) // world * world]


def test_order_is_a_function_of_seed_and_epoch():
    wide = [i % 3 > 0 for i in range(101)]
    first = sampler(wide, 4).order(3)
    assert first == sampler(wide, 4).order(3)
    assert first != sampler(wide, 4).order(4)
    assert first != sampler(wide, 4, seed=1).order(3)


def test_views_are_a_function_of_seed_epoch_and_index(sample):
    def views(seed, epoch):
        items = train_items(module(sample, seed=seed, scales=range(50, 100), flip=0.5))
        return [items[epoch, index][0] for index in range(5)]

    first = views(0, 1)
    assert all(torch.equal(one, two) for one, two in zip(first, views(0, 1), strict=True))
    for other in (views(0, 2), views(1, 1)):
        assert [one.shape for one in other] != [one.shape for one in first]


def test_workers_change_nothing(sample):
    kept = [module(sample, workers=workers, scales=[60, 90]) for workers in (0, 2)]
    for alone, other in zip(*(batches(d, d.train_dataloader()) for d in kept), strict=True):
        for one, two in zip(alone[0], other[0], strict=True):
            assert torch.equal(one, two)
        for one, two in zip(alone[1], other[1], strict=True):
            assert torch.equal(one["masks"], two["masks"])


class Seen(LightningModule):
    """Remembers the images, and a number of each, that it saw."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch, batch_idx):
        images, some = batch
        self.seen += [(t["image_id"], int(i.sum())) for i, t in zip(images, some, strict=True)]
        return self.weight * len(images)

    def validation_step(self, batch, batch_idx):
        assert len(batch) == 2

    def configure_optimizers(self):
        assert self.trainer.estimated_stepping_batches  # as schedules do: it makes the iterator
        return torch.optim.SGD(self.parameters(), 0.1)


class SaveEverywhere(Callback):
    def __init__(self, folder):
        self.folder = folder

    def on_train_batch_end(self, trainer, *_):
        trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")

    def on_train_end(self, trainer, module):
        file = self.folder / f"seen{trainer.global_rank}of{trainer.world_size}.json"
        file.write_text(json.dumps(module.seen))


def fit(root, callbacks=(), checkpoint=None, **options):
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    quiet = dict.fromkeys(
        ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False
    )
    trainer = Trainer(
        accelerator="cpu", callbacks=list(callbacks), max_epochs=3, **quiet, **options
    )
    data, seen = module(root, scales=[60, 80]), Seen()
    trainer.fit(seen, data, ckpt_path=checkpoint, weights_only=True)
    return seen.seen


@pytest.mark.filterwarnings("ignore")
def test_resuming_inside_an_epoch_sees_what_was_left(sample, tmp_path):
    whole = fit(sample, [SaveEverywhere(tmp_path)])
    assert len(whole) == 3 * 20
    for step in (2, 5, 6, 13):
        assert fit(sample, checkpoint=tmp_path / f"{step}.ckpt") == whole[4 * step :]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_processes_see_what_one_does_batch_by_batch(sample, tmp_path):
    """Lightning leaves the sampler alone."""
    whole = in_batches(fit(sample, [SaveEverywhere(tmp_path)]), 4)
    fit(sample, [SaveEverywhere(tmp_path)], devices=2, strategy="ddp_spawn")
    parts = [json.loads((tmp_path / f"seen{rank}of2.json").read_text()) for rank in (0, 1)]
    parts = [in_batches([tuple(one) for one in part], 4) for part in parts]
    dealt = [batch for step in zip(*parts, strict=True) for batch in step]
    assert dealt == [batch for epoch in range(3) for batch in whole[5 * epoch : 5 * epoch + 4]]
