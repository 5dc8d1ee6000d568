"""The data module: batches, workers, resuming, and what happens to bad files."""

import logging
from itertools import islice

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning import Callback, LightningModule, Trainer
from tiers import marked
from torch.utils.data import DataLoader

from nlzoo.data.decode import read_frames
from nlzoo.data.encode import write_video
from nlzoo.data.kinetics import Kinetics
from nlzoo.data.loading import TRIES, Note, collate
from nlzoo.data.transforms import resize_short

FRAMES, STRIDE, SIDE = 4, 2, 16
VIDEOS = {"train": 22, "val": 5}


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    """Class folders of 16 x 20 videos; video i is 6 + i frames long, so that many wrap."""
    root = tmp_path_factory.mktemp("videos")
    torch.manual_seed(0)
    for split, count in VIDEOS.items():
        for i in range(count):
            folder = root / split / "ab"[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            film = torch.randint(0, 256, (6 + i, 16, 20, 3), dtype=torch.uint8)
            write_video(folder / f"{i:02d}.mp4", film, 8)
    return root


@pytest.fixture
def damaged(videos, tmp_path):
    """The same with two unreadable training videos and one of validation."""
    for path in videos.rglob("*.mp4"):
        target = tmp_path / "set" / path.relative_to(videos)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b"" if path.stem in ("03", "08") else path.read_bytes())
    return tmp_path / "set"


def module(root, **changes):
    settings = {
        **{"frames": FRAMES, "stride": STRIDE, "crop": SIDE, "scale": [16, 20]},
        **{"test_size": 16, "test_crop": SIDE, "clips": 3, "batch_size": 4, "workers": 0},
    }
    return Kinetics(str(root), **{**settings, **changes})


def batches(loader, epoch=0):
    """One epoch of a loader without a trainer."""
    if hasattr(loader.sampler, "set_epoch"):
        loader.sampler.set_epoch(epoch)
    return list(loader)


def same(left, right):
    return len(left) == len(right) and all(
        torch.equal(a, b)
        for one, two in zip(left, right, strict=True)
        for a, b in zip(one[:3], two[:3], strict=True)
    )


def test_what_a_module_knows(videos):
    data = module(videos)
    assert data.classes == ["a", "b"]
    assert data.expected == data.found == {"train": 22, "val": 5, "test": 5}
    assert data.wishes["classes"] == ["a", "b"]
    assert (data.wishes["frames"], data.wishes["stride"]) == (FRAMES, STRIDE)
    assert data.wishes["test_crop"] == SIDE
    assert data.files("test") == data.files("val")


@pytest.mark.parametrize(
    ("argument", "classes"), [("kinetics400", "kinetics400"), ("[b, a]", ["b", "a"])]
)
def test_classes_are_a_word_or_a_list(tmp_path, argument, classes):
    parser = ArgumentParser()
    parser.add_class_arguments(Kinetics, "data")
    (tmp_path / "recipe.yaml").write_text(f"data:\n  path: p\n  classes: {argument}\n")
    assert parser.parse_path(tmp_path / "recipe.yaml").data.classes == classes
    if isinstance(classes, str):
        given = parser.parse_args(["--data.path=p", f"--data.classes={argument}"])
        assert given.data.classes == classes


def test_classes_by_name(videos):
    data = module(videos, classes=["b", "a"])
    assert data.wishes["classes"] == ["b", "a"]


def test_batches_have_the_promised_shapes(videos):
    data = module(videos)
    clip, label, index, notes = batches(data.train_dataloader())[0]
    assert clip.shape == (4, 3, FRAMES, SIDE, SIDE)
    assert (clip.dtype, label.dtype, index.dtype) == (torch.uint8, torch.int64, torch.int64)
    assert notes == []
    names = [data.files("train")[i].split("/")[-2] for i in index]
    assert [data.classes[i] for i in label] == names
    clip, label, index, _ = batches(data.val_dataloader())[0]
    assert clip.shape == (4, 3, FRAMES, SIDE, SIDE)
    assert index.tolist() == [0, 1, 2, 3]
    clip, label, index, _ = batches(data.test_dataloader())[1]
    assert clip.shape == (4, 3, 3, FRAMES, SIDE, SIDE)
    assert index.tolist() == [4, 5, 6, 7]
    assert len(data.test_dataloader().dataset) == 5 * 3


def test_an_epoch_has_every_video_once_in_another_order(videos):
    loader = module(videos, batch_size=2).train_dataloader()
    first, second = (torch.cat([b[2] for b in batches(loader, e)]) for e in (0, 1))
    assert first.sort().values.tolist() == list(range(22))
    assert first.tolist() != second.tolist()


def test_augmentation_is_a_function_of_seed_epoch_and_index(videos):
    def clip(seed, epoch, index):
        return module(videos, seed=seed).train_dataloader().dataset[epoch, index][0]

    assert torch.equal(clip(0, 1, 20), clip(0, 1, 20))
    for other in ((1, 1, 20), (0, 2, 20)):
        assert not torch.equal(clip(0, 1, 20), clip(*other))


@pytest.mark.parametrize("workers", [1, 4])
def test_workers_change_nothing(videos, workers):
    for epoch in (0, 1):
        alone = batches(module(videos).train_dataloader(), epoch)
        assert same(alone, batches(module(videos, workers=workers).train_dataloader(), epoch))
    alone = batches(module(videos).test_dataloader())
    assert same(alone, batches(module(videos, workers=workers).test_dataloader()))


def test_workers_can_be_spawned(videos):
    data = module(videos).train_dataloader().dataset
    keys = [(0, i) for i in range(8)]
    loader = DataLoader(
        data, 4, sampler=keys, num_workers=1, collate_fn=collate, multiprocessing_context="spawn"
    )
    assert same(list(loader), list(DataLoader(data, 4, sampler=keys, collate_fn=collate)))


def test_test_clips_are_the_right_frames_wrapped(videos):
    data = module(videos)
    dataset = data.test_dataloader().dataset
    path = data.files("test")[4]
    length = 6 + int(path[-6:-4])
    for k in range(3):
        positions = [(k * length // 3 + STRIDE * i) % length for i in range(FRAMES)]
        frames = resize_short(read_frames(path, positions).permute(0, 3, 1, 2), 16)
        crops, label, index, _ = dataset[3 * 4 + k]
        assert index == 12 + k
        assert torch.equal(crops[2], frames[..., 4:20].transpose(0, 1))
        assert data.classes[label] == path.split("/")[-2]


def test_sampling_by_time_follows_the_rate_of_the_file(videos):
    data = module(videos, fps=4.0, stride=1)  # the files have 8 frames a second
    path = data.files("val")[0]
    crop = data.val_dataloader().dataset[0][0]
    frames = read_frames(path, [i % 6 for i in (0, 2, 4, 6)]).permute(3, 0, 1, 2)
    assert torch.equal(crop, frames[..., 2:18])


# -- bad files ------------------------------------------------------------------------------


def test_unreadable_training_videos_are_replaced_and_named(damaged, tmp_path):
    bad = tmp_path / "run" / "bad_files.txt"
    data = module(damaged, bad_share=0.1, bad_files=str(bad), batch_size=2)
    seen = []
    for batch in batches(data.train_dataloader()):
        seen.append(data.on_before_batch_transfer(batch, 0))
    assert all(len(batch) == 3 for batch in seen)
    indices = torch.cat([batch[2] for batch in seen]).tolist()
    paths = [data.files("train")[i] for i in indices]
    assert not {p[-6:-4] for p in paths} & {"03", "08"}
    assert len(indices) == 22
    assert {p[-6:-4] for p in data.unreadable} == {"03", "08"}
    lines = bad.read_text().splitlines()
    assert len(lines) == 2
    assert all("03.mp4\tunreadable: " in line or "08.mp4\tunreadable: " in line for line in lines)
    assert all(line.count(".mp4") == 1 for line in lines)
    assert same(batches(data.train_dataloader()), batches(data.train_dataloader()))
    again = module(damaged, bad_share=0.1, bad_files=str(bad), batch_size=2)
    for batch in batches(again.train_dataloader(), 1):
        again.on_before_batch_transfer(batch, 0)
    assert bad.read_text().splitlines() == lines  # a resumed run adds nothing


def test_too_many_unreadable_videos_stop_training(damaged):
    data = module(damaged, bad_share=0.05, batch_size=2)
    notes = [note for batch in batches(data.train_dataloader()) for note in batch[3]]
    tensors = (torch.zeros(1),) * 3
    data.on_before_batch_transfer((*tensors, notes[:1]), 0)
    data.on_before_batch_transfer((*tensors, notes[:1]), 0)  # the same file again
    with pytest.raises(RuntimeError, match=r"2 of 22 training videos cannot be read.*0\.05"):
        data.on_before_batch_transfer((*tensors, notes), 0)


def test_unreadable_videos_of_all_processes_are_listed_once_and_counted(damaged, tmp_path):
    bad = tmp_path / "bad_files.txt"
    ranks = [module(damaged, bad_share=0.05, bad_files=str(bad)) for _ in range(3)]
    one, two = (p for p in ranks[0].files("train") if p[-6:-4] in ("03", "08"))
    val = ranks[0].files("val")[3]
    notes = [Note(path, f"{path}: empty", used=False) for path in (one, two, val)]
    tensors = (torch.zeros(1),) * 3
    for rank in ranks:
        rank.on_before_batch_transfer((*tensors, [notes[0], notes[2]]), 0)
    assert bad.read_text() == f"{one}\tunreadable: empty\n{val}\tunreadable: empty\n"
    tail = ranks[0].files("train")[0]
    for rank in ranks:
        rank.on_before_batch_transfer((*tensors, [Note(tail, "2 of 6 are good", used=True)]), 0)
    assert bad.read_text().endswith(f"\n{tail}\tdamaged: 2 of 6 are good\n")
    late = module(damaged, bad_share=0.05, bad_files=str(bad))
    with pytest.raises(RuntimeError, match=rf"2 of 22 training videos.*the last: {two}: empty"):
        late.on_before_batch_transfer((*tensors, [notes[1]]), 0)
    assert bad.read_text().count("\n") == 4


def test_a_folder_of_frames_is_named_once(videos, tmp_path):
    data = module(videos, bad_files=str(tmp_path / "bad.txt"))
    note = Note("set/v", "set/v/3.jpg: cannot identify image file 'set/v/3.jpg'", used=False)
    data.on_before_batch_transfer((*(torch.zeros(1),) * 3, [note]), 0)
    text = (tmp_path / "bad.txt").read_text()
    assert text == "set/v\tunreadable: 3.jpg: cannot identify image file '3.jpg'\n"


def test_evaluation_never_replaces(damaged):
    data = module(damaged)
    loader, clips = data.test_dataloader(), data.clips
    bad = [i for i, path in enumerate(data.files("test")) if path.endswith("03.mp4")]
    for batch in batches(loader):
        crops, label, index = data.on_before_batch_transfer(batch, 0)
        for one, of, i in zip(crops, label.tolist(), index.tolist(), strict=True):
            assert (of == -1) == (i // clips in bad)
            assert bool(one.any()) == (of != -1)
    assert len(data.unreadable) == 1


def test_nothing_readable_ends_with_a_reason(tmp_path):
    for i in range(12):
        path = tmp_path / "train" / "a" / f"{i}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    data = module(tmp_path)
    with pytest.raises(ValueError, match=f"{TRIES} files in a row cannot be read.*mp4"):
        batches(data.train_dataloader())


def test_missing_videos_are_counted_and_named(videos, tmp_path):
    lines = [f"{p} 0" for p in sorted((videos / "train").rglob("*.mp4"))]
    (tmp_path / "train.txt").write_text("\n".join([*lines, "lost/1.mp4 0", "lost/2.mp4 0"]))
    bad = tmp_path / "bad.txt"
    data = module(tmp_path, val="train", bad_files=str(bad))
    assert (data.expected["train"], data.found["train"]) == (24, 22)
    data.setup("fit")
    assert bad.read_text() == "lost/1.mp4\tmissing\nlost/2.mp4\tmissing\n"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"crop": 64}, ValueError, "crop = 64 does not fit"),
        ({"test_crop": 64}, ValueError, "test crop = 64 does not fit"),
        ({"crops": 2}, ValueError, "crops = 2"),
        ({"fps": -3}, ValueError, "fps = -3: expected 0 or more"),
        ({"workers": -3}, ValueError, "workers = -3: expected -1 or more"),
        ({"frames": 0}, ValueError, "frames = 0: expected 1 or more"),
        ({"scale": [16]}, ValueError, "scale"),
        ({"classes": "kinetics40"}, FileNotFoundError, "no class list"),
        ({"classes": "kinetics400"}, ValueError, "label 'a' is outside the 400 classes"),
        ({"train": "nothing", "val": "nothing"}, FileNotFoundError, "nothing to read"),
    ],
)
def test_bad_arguments_fail_at_construction(videos, changes, error, message):
    with pytest.raises(error, match=message):
        module(videos, **changes)


def test_splits_that_a_stage_needs_must_be_there(videos):
    data = module(videos, train="absent")
    data.setup("test")
    with pytest.raises(FileNotFoundError, match="no 'absent' list or folder"):
        data.setup("fit")
    with pytest.raises(ValueError, match="22 training videos cannot fill a batch of 1 x 23"):
        module(videos, batch_size=23).setup("fit")


def test_all_files_missing_is_an_error(tmp_path):
    (tmp_path / "train.txt").write_text("a.mp4 0\n")
    with pytest.raises(ValueError, match=r"none of the 1 videos of 'train'.*'a\.mp4'"):
        module(tmp_path)


# -- resuming -------------------------------------------------------------------------------


class Linear(LightningModule):
    """Remembers which videos it saw."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(3 * FRAMES * SIDE * SIDE, 2)
        self.seen = []

    def training_step(self, batch, batch_idx):
        clip, label, index = batch
        self.seen += index.tolist()
        return torch.nn.functional.cross_entropy(self.layer(clip.flatten(1) / 255 - 0.5), label)

    def validation_step(self, batch, batch_idx):
        assert len(batch) == 3

    def configure_optimizers(self):
        assert self.trainer.estimated_stepping_batches  # as schedules do: it makes the iterator
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)


class SaveEverywhere(Callback):
    """After each batch, each validation and each epoch."""

    def __init__(self, folder):
        self.folder = folder

    def save(self, trainer, moment):
        trainer.save_checkpoint(self.folder / f"{trainer.global_step:02d}{moment}.ckpt")

    def on_train_batch_end(self, trainer, *_):
        self.save(trainer, "batch")

    def on_validation_end(self, trainer, module):
        if not trainer.sanity_checking:
            self.save(trainer, "validation")

    def on_train_epoch_end(self, trainer, module):
        self.save(trainer, "epoch")


def fit(videos, workers, callbacks=(), checkpoint=None, **length):
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    quiet = dict.fromkeys(
        ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False
    )
    trainer = Trainer(accelerator="cpu", callbacks=list(callbacks), **quiet, **length)
    model = Linear()
    trainer.fit(model, module(videos, workers=workers), ckpt_path=checkpoint, weights_only=True)
    return model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("workers", marked([0, 1], [1], [0]))
@pytest.mark.parametrize(
    "length",
    [{"max_epochs": 3}, {"max_steps": 12, "max_epochs": -1, "check_val_every_n_epoch": 2}],
)
def test_every_checkpoint_resumes_to_the_same_weights(videos, tmp_path, workers, length):
    whole = fit(videos, workers, [SaveEverywhere(tmp_path)], **length)
    names = ["03batch", "05batch", "05epoch", "07batch", "10validation", "10epoch", "11batch"]
    for name in names if not workers else names[::2]:
        rest = fit(videos, workers, checkpoint=tmp_path / f"{name}.ckpt", **length)
        assert rest.seen == whole.seen[4 * int(name[:2]) :], name
        assert torch.equal(rest.layer.weight, whole.layer.weight), name


def test_epochs_go_on_where_limited_ones_end(videos):
    model = fit(videos, 0, max_epochs=2, limit_train_batches=3)
    orders = [
        list(islice((i for b in batches(module(videos).train_dataloader(), e) for i in b[2]), 12))
        for e in (0, 1)
    ]
    assert model.seen == [int(i) for order in orders for i in order]
