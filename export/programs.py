"""`quantize`, `bench` and `report`: the programs that look at a user's own files, or measure.

They know `nlzoo.data`, which the rest of the package does not.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jsonargparse import ArgumentParser, Namespace
from torch import Tensor

from nlzoo.preprocessing import UNREADABLE
from nlzoo.program import make_parser, numbers

if TYPE_CHECKING:
    from nlzoo.data.labelled import Labelled
    from nlzoo.export.runtime import Runner


NAMES = {"top1": "top-1"}

# -- quantize -------------------------------------------------------------------------------


def quantize_parser() -> ArgumentParser:
    """Which file, and what to calibrate on."""
    about = "write an int8 form of an fp32 file; accuracy before and after"
    example = "python -m nlzoo.export quantize m.onnx --output m8.onnx --data data"
    made = make_parser("", about, example)
    made.add_argument("file", help="an .onnx file of nlzoo.export")
    made.add_argument("--output", required=True, help="file to write")
    made.add_argument("--data", required=True, help="folder of files, as nlzoo.fit takes it")
    made.add_argument("--clips", type=int, default=64, help="of training files, to calibrate on")
    made.add_argument("--train", default="train", help="name of the training split")
    made.add_argument("--val", default="val", help="name of the validation split")
    return made


def quantize(options: Namespace) -> None:
    """Calibrate on training clips (or images); score both files on validation's centres."""
    from nlzoo.export import quantize as int8
    from nlzoo.export.runtime import Runner

    refuse_overwriting([options.file], options.output, ".onnx")
    with Runner(options.file) as runner:
        batch = 1 if "batch" in runner.spec.dynamic else runner.spec.shape[0]
        data = labelled(options.data, runner, batch, options.train, options.val)
        train = (some for some, *_ in data.train_dataloader())
        if runner.spec.is_detector:
            train = (runner.canvas.put([image])[0] for some in train for image in some)
        before = accuracy(runner, data)
        int8.quantize(options.file, options.output, islice(train, options.clips // batch))
    with Runner(options.output) as runner:
        after = accuracy(runner, data)
    size, other = (Path(name).stat().st_size / 1e6 for name in (options.file, options.output))
    sys.stdout.write(f"{options.output}: {other:.1f} MB from {size:.1f} MB; ")
    found = (
        f"{NAMES.get(name, name)} {x:.3f}, before {before[name]:.3f}" for name, x in after.items()
    )
    sys.stdout.write(f"{', '.join(found)}, on {counted(data)}\n")


# -- bench, report --------------------------------------------------------------------------


def bench_parser() -> ArgumentParser:
    """What to measure, and how."""
    about = "measure latency, parity and accuracy, interleaved"
    example = "python -m nlzoo.export bench best.ckpt m.onnx --batch 1,8 --output bench.json"
    made = make_parser("", about, example)
    made.add_argument(
        "sources", nargs="+", help="names, checkpoints, .onnx, .engine; the first is the base"
    )
    made.add_argument("--output", required=True, help="JSON file to write")
    made.add_argument(
        "--runtime", default="", help="names, as in compile,openvino; each for what it takes"
    )
    made.add_argument("--batch", default="1", help="sizes, as in 1,8")
    made.add_argument("--shape", default="", help="of a network's input, as in 1,3,8,224,224")
    made.add_argument("--threads", type=int, default=0, help="on a CPU; 0: as each runtime likes")
    made.add_argument("--rounds", type=int, default=30, help="of all in turn")
    more = made.add_argument_group("on real files, too")
    more.add_argument("--data", default="", help="folder of videos or images: top-1, or AP")
    more.add_argument("--val", default="val", help="name of its validation split")
    more.add_argument(
        "--video", default="", help="or image: decode, preprocess, copy, compute apart"
    )
    return made


def bench(options: Namespace) -> None:
    """Measure, write the JSON, show the table."""
    from nlzoo.export.bench import measure, opened, settings, stages
    from nlzoo.export.report import show
    from nlzoo.export.timing import LEAST_ROUNDS, machine
    from nlzoo.files import write_whole

    refuse_overwriting(options.sources, options.output, ".json")
    if options.rounds < LEAST_ROUNDS:
        raise ValueError(f"--rounds {options.rounds}: {LEAST_ROUNDS} at least, fewer tell nothing")
    results: dict[str, Any] = {"settings": settings(options.threads, options.rounds)}
    batches = list(dict.fromkeys(numbers("batch", options.batch)))
    if not batches:
        raise ValueError("--batch: give sizes, as in 1,8")
    runtimes = [name for name in options.runtime.split(",") if name]
    shape = numbers("shape", options.shape)
    with opened(options.sources, runtimes, options.threads, shape) as entries:
        base = entries[0].runner
        if options.data:
            data = labelled(options.data, base, batches[0], "", options.val)
        views = one_file(options.video, base) if options.video else None
        results["rows"] = measure(entries, batches, options.rounds)
        results["machine"] = machine()  # with the clocks that the work has left
        if options.data:
            scores = {entry.label: accuracy(entry.runner, data) for entry in entries}
            results["rows"] = [row | scores[row["label"]] for row in results["rows"]]
            what = "AP" if base.spec.is_detector else "top-1"
            results["settings"][f"{what} on"] = counted(data)
        if views:
            results["stages"] = stages(entries, *views, options.rounds)
    write_whole(options.output, json.dumps(results, indent=1) + "\n")
    show(results)
    sys.stdout.write(f"{options.output}; next: python -m nlzoo.export report {options.output}")
    sys.stdout.write(" --output report.html\n")


def report_parser() -> ArgumentParser:
    """Which measurements, and where to."""
    about = "show what bench measured: a page with plots, and a table"
    example = "python -m nlzoo.export report bench.json --output report.html"
    made = make_parser("", about, example)
    made.add_argument("files", nargs="+", help="JSON files of bench")
    made.add_argument("--output", required=True, help="HTML file to write")
    made.add_argument("--plots", default="", help="folder for the plots as PNG files, too")
    return made


def report(options: Namespace) -> None:
    """Write the page, show the tables."""
    from nlzoo.export.report import read_results, show, write_report

    refuse_overwriting(options.files, options.output, ".html")
    found = {name: read_results(name) for name in options.files}
    write_report(found, options.output, options.plots)
    for results in found.values():
        show(results)
    sys.stdout.write(f"{options.output}\n")


def refuse_overwriting(sources: Sequence[str], output: str, suffix: str) -> None:
    """Raise ValueError for an output that is one of the sources, or of another kind."""
    if Path(output).suffix != suffix:
        raise ValueError(f"--output {output}: such a file is called NAME{suffix}")
    if Path(output).resolve() in [Path(source).resolve() for source in sources]:
        raise ValueError(f"--output {output} is what is read; give another name")


# -- videos and images ----------------------------------------------------------------------


def labelled(folder: str, runner: "Runner", batch: int, train: str, val: str) -> "Labelled":
    """The files of a folder, scaled as a network sees them at test.

    Raises as `Kinetics` and `Images`.
    """
    from nlzoo.data.coco import Coco
    from nlzoo.data.images import Images
    from nlzoo.data.kinetics import Kinetics

    pre = runner.preprocessing
    if pre.multilabel:
        raise ValueError(
            "the network tells many labels of a file, top-1 is of one: leave --data out"
        )
    shared: Any = {"train": train, "val": val, "classes": list(pre.classes) or ""}
    if pre.task == "detection":
        wants: Any = "keypoints" if pre.keypoints else "boxes"
        shared["classes"] = pre.classes
        return Coco(folder, wants=wants, scales=(), flip=0, batch_size=1, workers=0, **shared)
    shared |= {"batch_size": batch, "workers": 0}
    data: Labelled
    if pre.frames:
        data = Kinetics(
            folder,
            frames=pre.frames,
            stride=pre.stride,
            fps=pre.fps,
            crop=pre.test_crop,
            scale=(pre.test_size, pre.test_size),
            flip=False,
            test_size=pre.test_size,
            test_crop=pre.test_crop,
            **shared,
        )
    else:
        data = Images(folder, augment="none", flip=0, **shared)
        data.preprocessing = replace(pre, crop=pre.test_crop)
    data.files("val")  # that are there
    return data


def accuracy(runner: "Runner", data: Any) -> dict[str, float]:
    """On the validation files: top-1, or of a detector AP of boxes, masks, keypoints."""
    from nlzoo.export.bench import top1
    from nlzoo.tasks.coco_metric import CocoMetric

    if not runner.spec.is_detector:
        return {"top1": top1(runner, validation(data))}
    pre, metric = runner.preprocessing, None
    for batch in data.val_dataloader():
        images, targets = data.on_before_batch_transfer(batch, 0)
        found = runner(images)
        kinds = ["box", *(k for k in ("mask", "keypoint") if f"{k}s" in found[0])]
        metric = metric or CocoMetric(data.annotations("val"), kinds, pre.category_ids, pre.sigmas)
        metric.update([int(target["image_id"]) for target in targets], found)
    numbers = metric.compute() if metric else {}
    return {name.replace("/", " "): x for name, x in numbers.items() if name.endswith("/AP")}


def validation(data: "Labelled") -> "Iterator[tuple[Tensor, Tensor, Tensor]]":
    """Batches of centres with labels and indices; `data` notes what cannot be read.

    The last batch is filled up, with what counts as unreadable: a file's batch may be fixed.
    """
    for batch in data.val_dataloader():
        clips, labels, index = data.on_before_batch_transfer(batch, 0)
        fill = clips[-1:].expand(data.batch_size - len(clips), *clips.shape[1:])
        none = labels.new_full((len(fill),), UNREADABLE)
        yield torch.cat([clips, fill]), torch.cat([labels, none]), index


def counted(data: "Labelled") -> str:
    """How many files were looked at, in words."""
    bad = len(data.unreadable.keys() & set(data.files("val")))
    found = f"{data.found['val']} validation {data.kind.noun}s"
    return f"{found}, {bad} unreadable" if bad else found


def one_file(file: str, runner: "Runner") -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    """What decodes a video's centre clip, or an image, and what makes a network's input of it."""
    from torchvision.transforms.functional import pil_to_tensor

    from nlzoo.data.clips import centre_clip
    from nlzoo.data.pictures import CentreView, Pixels, read_image
    from nlzoo.data.sampling import Sampling
    from nlzoo.data.transforms import EvalTransform

    pre = runner.preprocessing
    if pre.task == "detection":
        return (
            lambda: pil_to_tensor(read_image(file)),
            lambda pixels: runner.canvas.put([pixels])[0],
        )
    sampling = Sampling(pre.frames, pre.stride, pre.fps)
    crops, view = EvalTransform(pre.test_size, pre.test_crop, 1), CentreView(pre, crops=True)

    def decode() -> Any:
        if pre.frames:
            return sampling.read(file, centre_clip)[0]
        return Pixels(file, np.asarray(read_image(file)))

    def preprocess(decoded: Any) -> Tensor:
        return crops(decoded) if pre.frames else view(decoded)[0]

    preprocess(decode())  # what is wrong is found before anything is measured
    return decode, preprocess
