"""What `fit --estimate` says against published counts and against the memory of real steps."""

import pytest
from lightning import Trainer
from processes import Process, done

from nlzoo import create_model
from nlzoo.cost import detector_cost, estimate
from nlzoo.fit import main
from nlzoo.tasks.classification import Classification


def figures(shape, model, **task):
    trainer = Trainer(logger=False, enable_checkpointing=False, enable_model_summary=False)
    return estimate(Classification(model, **task), trainer, shape)


def test_multiply_adds_are_those_of_a_recount_of_the_paper():
    found = figures((1, 3, 32, 224, 224), "i3d_r50_nl5", arch={"geometry": "paper"})
    assert found.multiply_adds == 41_255_927_808  # convolutions and attention, by hand
    assert found.parameters == 35_401_936
    res3, res4 = 4 * 28 * 28, 4 * 14 * 14
    assert found.attention_bytes == 4 * (2 * res3 * res3 // 4 + 3 * res4 * res4 // 4)


@pytest.mark.every
def test_memory_falls_where_stages_are_recomputed():
    arch = {"geometry": "8x8", "width": 8}
    small = {"shape": (2, 3, 8, 96, 96), "model": "i3d_r18_nl5", "arch": arch}
    plain = figures(**small)
    assert plain.peak_bytes > 8 * plain.parameters
    again = figures(**small, activation_checkpointing=["res2", "res3"])
    assert again.peak_bytes < plain.peak_bytes
    assert again.multiply_adds == plain.multiply_adds


@pytest.mark.slow
def test_a_recipe_needs_no_data(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NLZOO_CACHE", str(tmp_path))
    main(["--recipe", "i3d_nl_kinetics", "--estimate", "--data.batch_size", "2"])
    said = capsys.readouterr().out
    assert "batch           2 x 3 x 32 x 224 x 224 uint8" in said
    assert "multiply-adds   40.96 G a sample" in said  # the released pools, without pads
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--data.batch_size", "0"), "^batch_size = 0: expected 1 or more"),
        (("--data.frames", "0"), "^frames = 0: expected 1 or more"),
        (("--data.crop", "-8"), "^crop = -8: expected 0 or more"),
        (("--trainer.accelerator", "tpu"), "^trainer: "),
        (("--trainer.accelerator", "gpu", "--trainer.devices", "99"), "^trainer: "),
    ],
)
def test_what_cannot_be_estimated_is_named(option, message):
    with pytest.raises(ValueError, match=message):
        main(["--recipe", "i3d_kinetics", "--estimate", *option])


STEPS = """
import re, sys, torch
from pathlib import Path
from lightning import Trainer
from nlzoo.cli import dry_build, parse
from nlzoo.cost import estimate
from nlzoo.fit import parser

def status(key):
    text = Path("/proc/self/status").read_text()
    return int(re.search(key + r":\\s+(\\d+) kB", text)[1]) * 1024

torch.set_num_threads(1)
config = parse(sys.argv[1:], parser())
said = estimate(*dry_build(config)).peak_bytes
torch.nn.functional.conv2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3))  # loads the library
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
task, trainer, shape = dry_build(config)
optimizer, accumulate = task.make_optimizer(), trainer.accumulate_grad_batches
for step in range(2 * accumulate):
    with trainer.precision_plugin.train_step_context():
        logits = task.train().model(torch.randint(0, 256, shape, dtype=torch.uint8))
        loss = task.loss(logits, torch.softmax(logits.detach(), 1))
    loss.backward()
    if (step + 1) % accumulate == 0:
        optimizer.step()
        optimizer.zero_grad()
print(said, status("VmHWM") - before)
"""


@pytest.mark.every
@pytest.mark.parametrize(
    "recipe",
    [
        "i3d_nl_kinetics --data.batch_size 2 --data.crop 112",
        "c2d_nl_kinetics --data.batch_size 2 --data.crop 128 --trainer.accumulate_grad_batches 2",
        "i3d_nl_kinetics_128f --data.batch_size 1 --data.crop 96",
        "i3d_nl_kinetics_128f --data.batch_size 1 --data.crop 128 "
        "--task.activation_checkpointing ['res2','res3']",
        "resnet50_nl_imagenet --data.batch_size 8 --data.crop 160",
        "images_finetune --data.batch_size 8",
        "videos_timm_finetune --data.batch_size 4",
    ],
)
def test_memory_is_what_steps_take(recipe, tmp_path):
    """The C library's heap is told to give back what is freed: what it keeps is no tensor."""
    out = done(Process("-c", STEPS, "--recipe", *recipe.split(), MALLOC_MMAP_THRESHOLD_="65536"))
    said, took = map(int, out.split()[-2:])
    assert said == pytest.approx(took, rel=0.25)


def test_a_detector_costs_what_a_recount_of_the_paper_says(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    main(["--recipe", "mask_rcnn_r50_nl_coco", "--estimate"])
    said = capsys.readouterr().out
    assert "image           800 x 1344, 1000 proposals, 100 detections" in said
    assert (
        "backbone 158.50, proposals 53.15, boxes 14.36, masks 53.21" in said
    )  # 148.48 + the block
    assert "blocks          10.02 G, 3.7% of the rest" in said  # the paper: less than 5 %


def test_a_block_without_sub_sampling_breaks_the_papers_claim():
    model = create_model("mask_rcnn_resnet50_fpn_nl1", non_local={"subsample": None})
    plain = create_model("mask_rcnn_resnet50_fpn")
    cost, without = detector_cost(model, 800, 1344), detector_cost(plain, 800, 1344)
    assert cost.share == pytest.approx(0.1, abs=1e-3)
    assert sum(cost.parts.values()) - cost.blocks == sum(without.parts.values())
