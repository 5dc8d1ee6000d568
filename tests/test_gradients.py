"""A loss that is no number ends a training with names, and with the state from before it."""

import json
from pathlib import Path

import pytest
import torch
from lightning import Callback

from nlzoo import fit, program
from nlzoo.data.sample import make_sample


class Spoil(Callback):
    """Makes the loss of one iteration infinite; keeps the state from before it."""

    def __init__(self, step: int, folder: str) -> None:
        self.step, self.folder = step, Path(folder)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            torch.save(pl_module.state_dict(), self.folder / "before.pt")
            torch.nn.init.constant_(pl_module.model.head.proj.bias, float("inf"))
            (self.folder / "index.json").write_text(json.dumps(batch[2].tolist()))


def options(folder, *more):
    return [
        *("--recipe", "i3d_nl_kinetics", "--recipe", "_video_sample"),
        *("--run", str(folder / "run"), "--task.model", "c2d_r18_nl1", "--task.arch.width", "8"),
        *("--data.batch_size", "4", "--data.workers", "0", "--trainer.max_steps", "5", *more),
    ]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return make_sample(tmp_path_factory.mktemp("set") / "videos", train=24, val=4)


def test_a_spoilt_loss_names_its_files(videos, tmp_path, capsys):
    spoil = {"class_path": "test_gradients.Spoil"}
    spoil["init_args"] = {"step": 3, "folder": str(tmp_path)}
    argv = options(tmp_path, "--data", str(videos), "--trainer.callbacks+", json.dumps(spoil))
    with pytest.raises(SystemExit) as stop:
        program.run(fit.main, argv)
    assert stop.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("nlzoo: the loss is no number at iteration 4, on ")
    names = [line.split(",")[1] for line in (videos / "train.csv").read_text().splitlines()[1:]]
    for index in json.loads((tmp_path / "index.json").read_text()):
        assert names[index] in said
    checkpoint = tmp_path / "run/checkpoints/before_nan.ckpt"
    assert str(checkpoint) in said
    saved, before = torch.load(checkpoint), torch.load(tmp_path / "before.pt")
    assert saved["global_step"] == 3
    for name, value in before.items():
        if name != "model.head.proj.bias":  # which the test spoilt
            assert torch.equal(saved["state_dict"][name], value), name


def test_the_norm_is_logged(videos, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = ("--trainer.log_every_n_steps", "1")
    fit.main(options(tmp_path, "--data", str(videos), *log))
    events = EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    norms = [event.value for event in events.Scalars("train/grad_norm")]
    assert len(norms) == 5
    assert all(norm > 0 for norm in norms)
