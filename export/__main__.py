"""`python -m nlzoo.export PROGRAM`: from a checkpoint to a file, from a file to an answer."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from nlzoo.export import programs
from nlzoo.program import (
    Subcommands,
    add_answer_options,
    add_subcommands,
    check_answer_options,
    make_parser,
    numbers,
    parse_options,
    run,
)

if TYPE_CHECKING:
    from nlzoo.preprocessing import Preprocessing


def main(argv: Sequence[str]) -> None:
    """Hand over to the subcommand."""
    from nlzoo.export.parity import ToleranceError

    options = parse_options(parser(), argv)
    try:
        PROGRAMS[options.subcommand][1](options[options.subcommand])
    except ToleranceError as error:
        sys.stderr.write(f"nlzoo: {error}\n")
        sys.exit(1)


def parser() -> ArgumentParser:
    """What is shared: nothing but the subcommands."""
    example = "python -m nlzoo.export onnx best.ckpt --output m.onnx"
    made = make_parser("python -m nlzoo.export", "Files for other machines.", example)
    add_subcommands(made, PROGRAMS)
    return made


# -- onnx -----------------------------------------------------------------------------------


def onnx_parser() -> ArgumentParser:
    """What to export, and how."""
    about = "write a network as an ONNX file, and compare the two"
    made = make_parser("", about, "python -m nlzoo.export onnx best.ckpt --output m.onnx")
    made.add_argument("source", help="a checkpoint of nlzoo.fit, a model name, MODULE:OBJECT")
    made.add_argument("--output", required=True, help="file to write")
    made.add_argument("--licence", default="", help="of the weights, to be kept in the file")
    made.add_argument("--tolerance", type=float, default=0.0, help="relative L2; 0: by precision")
    takes = made.add_argument_group("what it takes")
    takes.add_argument("--dynamic", default="batch", help="of batch,frames,height,width,length")
    takes.add_argument("--shape", default="", help="of the input: 2,3,32,256,256")
    takes.add_argument("--preprocess", action="store_true", help="take uint8 clips or images")
    form = made.add_argument_group("how it computes")
    form.add_argument("--precision", default="fp32", help="fp32, fp16 or bf16")
    form.add_argument(
        "--islands", default="on", help="off: scores in 16 bits too, if they allow it"
    )
    form.add_argument(
        "--layout", default="frames", help="2D convolutions; clip: 3D ones, for OpenVINO"
    )
    form.add_argument("--opset", type=int, default=0, help="17 to 23; 0: 18, with bf16 22")
    return made


def onnx(options: Namespace) -> None:
    """Export, and say how close it is."""
    from nlzoo.export.onnx import export_onnx
    from nlzoo.export.spec import read_onnx, spec_of
    from nlzoo.names import check_choice
    from nlzoo.registry import DETECTORS, MODELS, is_timm

    check_choice("--islands", options.islands, ("on", "off"))
    if options.tolerance < 0:
        raise ValueError(f"--tolerance {options.tolerance:g}: give a number above 0")
    parity = export_onnx(
        options.source,
        options.output,
        opset=options.opset,
        dynamic=[name.strip() for name in options.dynamic.split(",") if name],
        precision=options.precision,
        raw=options.preprocess,
        islands=options.islands == "on",
        layout=options.layout,
        shape=numbers("shape", options.shape),
        licence=options.licence,
        tolerance=options.tolerance,
    )
    size, spec = Path(options.output).stat().st_size / 1e6, spec_of(read_onnx(options.output))
    named = options.source in MODELS | DETECTORS or is_timm(options.source)
    weights = ", random weights" if named else ""
    sys.stdout.write(f"{options.output}: {size:.1f} MB{weights}; {parity}\n")
    if spec and spec.preprocessing:
        after = f"run {options.output} {'VIDEO' if spec.preprocessing.frames else 'IMAGE'}"
    else:
        after = f"tensorrt {options.output} --output m.engine"
    sys.stdout.write(f"Next: python -m nlzoo.export {after}\n")


# -- parity ---------------------------------------------------------------------------------


def parity_parser() -> ArgumentParser:
    """Which two, and how close."""
    about = "compare two forms of a network; exit code 1 if they differ"
    made = make_parser("", about, "python -m nlzoo.export parity best.ckpt m.onnx")
    for name in ("reference", "other"):
        made.add_argument(name, help="a model name, checkpoint, MODULE:OBJECT, .onnx or .engine")
    made.add_argument("--tolerance", type=float, default=0.0, help="relative L2; 0: by precision")
    made.add_argument("--shape", default="", help="of the input of MODULE:OBJECT: 2,3,32,256,256")
    return made


def parity(options: Namespace) -> None:
    """Compare, and say by how much they differ."""
    from nlzoo.export.matching import compare_detections, draw_canvases
    from nlzoo.export.parity import TOLERANCE, common, compare, draw_inputs
    from nlzoo.export.runtime import Runner

    shape = numbers("shape", options.shape)
    with Runner(options.reference, shape=shape) as a, Runner(options.other, shape=shape) as b:
        spec, precisions = common(a.spec, b.spec), (a.spec.precision, b.spec.precision)
        if spec.is_detector:
            both = compare_detections(a.everything, b.everything, draw_canvases(spec))
            both.check(precisions, options.tolerance)
            sys.stdout.write(f"{both}\n")
            return
        inputs = draw_inputs(spec, a, b.profiles or a.profiles)
        found = compare(a, b, inputs, a.spec.output != b.spec.output)
        loosest = max(TOLERANCE[name] for name in precisions)
    found.check(options.tolerance or loosest)
    sys.stdout.write(f"{found}\n")


# -- tensorrt -------------------------------------------------------------------------------

SHAPE = (
    "sizes to build for, NAME=MIN:OPT:MAX, as in input=1x3x8x224x224:1x3x8x224x224:8x3x8x224x224; "
    "once more for another profile (batches of 1 to 8)"
)


def tensorrt_parser() -> ArgumentParser:
    """What to build, for which cards."""
    about = "build an engine from an ONNX file; TensorRT-RTX needs no GPU for it"
    made = make_parser("", about, "python -m nlzoo.export tensorrt m.onnx --output m.engine")
    made.add_argument("file", help="an ONNX file")
    made.add_argument("--output", required=True, help="file to write, NAME.engine")
    made.add_argument("--shape", action="append", default=[], help=SHAPE)
    made.add_argument("--backend", default="", help="tensorrt or tensorrt_rtx, if both are there")
    made.add_argument("--workspace", type=int, help="memory that a kernel may use, MB")
    made.add_argument("--optimization-level", type=int, help="0 to 5, the longest build")
    rtx = made.add_argument_group("TensorRT-RTX")
    rtx.add_argument("--compute-capability", default="", help="of the cards, as in 8.6,8.9,12.0")
    own = made.add_argument_group("TensorRT")
    own.add_argument("--timing-cache", help="file of measured kernels")
    own.add_argument("--hardware-compatible", action="store_true", help="for newer cards, too")
    own.add_argument("--version-compatible", action="store_true", help="for newer releases, too")
    return made


def tensorrt(options: Namespace) -> None:
    """Build, and say what came out."""
    from nlzoo.export.spec import KEY, Spec
    from nlzoo.export.tensorrt import build_engine

    built = build_engine(
        options.file,
        options.output,
        profiles=options.shape,
        capabilities=[c.strip() for c in options.compute_capability.split(",") if c.strip()],
        workspace=options.workspace,
        optimization_level=options.optimization_level,
        timing_cache=options.timing_cache,
        hardware_compatible=options.hardware_compatible,
        version_compatible=options.version_compatible,
        backend=options.backend,
    )
    size, source = (built[kind]["bytes"] / 1e6 for kind in ("engine", "onnx"))
    cards = ", ".join(built["compute_capabilities"]) or "the card at hand"
    shares = ", ".join(f"{share:.0%} {name}" for name, share in built["precisions"].items())
    sys.stdout.write(
        f"{options.output}: {size:.1f} MB ({options.file} {source:.1f}), for {cards}; "
        f"{built['layers']} layers, {shares}; {built['seconds']:.1f} s\n"
    )
    default = "" if options.shape else " (by default)"
    sys.stdout.writelines(f"Built for {profile}{default}\n" for profile in built["profiles"])
    if KEY in built:
        pre = Spec.from_json(built[KEY]).preprocessing
        what = "IMAGE" if pre and not pre.frames else "VIDEO"
        next_ = f"python -m nlzoo.export run {options.output} {what}"
        sys.stdout.write(f"Next, where there is such a card: {next_}\n")


# -- check ----------------------------------------------------------------------------------


def check_parser() -> ArgumentParser:
    """Which file, for which runtime."""
    about = "will a runtime take an ONNX file, without a GPU; exit code 1 if not"
    made = make_parser("", about, "python -m nlzoo.export check m.onnx --target trt10")
    made.add_argument("file", help="an ONNX file")
    made.add_argument("--target", default="rtx", help="rtx, trt10, trt11, ort or openvino")
    made.add_argument("--shape", action="append", default=[], help=SHAPE)
    return made


def check(options: Namespace) -> None:
    """A row a finding."""
    from rich.table import Column, Table

    from nlzoo.console import table_console
    from nlzoo.export.check import check as check_file

    verdict, *findings = check_file(options.file, options.target, options.shape)
    console = table_console()
    console.print(f"{options.file} {verdict.what}")
    if findings:
        titles = ("node", "operator", "stops", "what", "what to do")
        table = Table(*(Column(title, overflow="fold") for title in titles))
        for found in findings:
            stops = "yes" if found.stops else "no"
            table.add_row(found.node, found.operator, stops, found.what, found.remedy)
        console.print(table)
    if verdict.stops:
        sys.exit(1)


# -- triton ---------------------------------------------------------------------------------


def triton_parser() -> ArgumentParser:
    """Which file, to where."""
    about = "write a model repository for Triton Inference Server"
    made = make_parser("", about, "python -m nlzoo.export triton m.onnx models --batch 16")
    made.add_argument("file", help="an .onnx file of nlzoo.export")
    made.add_argument("dest", help="the repository; DEST/NAME is written")
    made.add_argument("--batch", type=int, default=8, help="requests gathered at most")
    return made


def triton(options: Namespace) -> None:
    """Write it, and say how to serve it."""
    from nlzoo.export.triton import write_repository

    folder = write_repository(options.file, options.dest, options.batch)
    sys.stdout.write(f"{folder}\nNext: tritonserver --model-repository {folder.parent}\n")


# -- run ------------------------------------------------------------------------------------


def run_parser() -> ArgumentParser:
    """What to watch, with what."""
    about = "name what is in videos or images, as nlzoo.predict does, with a file"
    made = make_parser("", about, "python -m nlzoo.export run m.onnx video.mp4 --json")
    made.add_argument("file", help="an .onnx or .engine file of nlzoo.export")
    made.add_argument("videos", nargs="+", help="videos or images, or folders of them or of frames")
    made.add_argument("--runtime", default="", help="onnxruntime or openvino, for ONNX files")
    made.add_argument("--json", action="store_true", help="print JSON, with the files that failed")
    add_answer_options(made)
    foreign = made.add_argument_group("a file that nlzoo.export did not write")
    foreign.add_argument("--clip", default="", help="frames x stride, as in 32x2")
    foreign.add_argument("--size", type=int, default=0, help="short side, pixels; 0: the crop")
    foreign.add_argument("--crop", type=int, default=0, help="side, pixels; 0: 256")
    foreign.add_argument("--mean", default="", help="of pixels in 0..1 (0.45,0.45,0.45)")
    foreign.add_argument("--std", default="", help="of pixels in 0..1 (0.225,0.225,0.225)")
    foreign.add_argument("--classes", default="", help="file of one name a line")
    return made


def run_file(options: Namespace) -> None:
    """Predict with a file."""
    from nlzoo.answers.files import answer, answer_objects, find_all
    from nlzoo.answers.watch import watch
    from nlzoo.export.runtime import Runner

    check_answer_options(options)
    runner = Runner(options.file, options.runtime, preprocessing=foreign_preprocessing(options))
    files = find_all(options.videos, images=not runner.preprocessing.frames)
    views = options.clips, options.crops
    with runner:
        if runner.spec.is_detector:
            pictures = options.draw, options.coco
            answer_objects(runner, files, options.json, options.threshold, *pictures)
            return
        if options.draw or options.coco:
            raise ValueError("--draw and --coco are of detectors")
        answer(files, lambda file: watch(runner, file, *views), options.json)


def foreign_preprocessing(options: Namespace) -> "Preprocessing | None":
    """What --clip and the options beside it say; None without --clip."""
    from nlzoo.export.spec import read_onnx, spec_of
    from nlzoo.files import read_text
    from nlzoo.preprocessing import Preprocessing

    told = options.size, options.crop, options.mean, options.std, options.classes
    if not options.clip:
        if any(told) and Path(options.file).suffix == ".onnx" and spec_of(read_onnx(options.file)):
            raise ValueError(f"{options.file} says itself what it takes: leave the options out")
        if any(told):
            raise ValueError("--clip FRAMESxSTRIDE is missing: it goes with the options beside it")
        return None
    clip, crop = numbers("clip", options.clip, "x"), options.crop or 256
    texts = options.mean or "0.45,0.45,0.45", options.std or "0.225,0.225,0.225"
    try:
        mean, std = (tuple(map(float, text.split(","))) for text in texts)
    except ValueError:
        mean = std = ()
    if len(clip) != 2 or len(mean) != 3 or len(std) != 3 or min(*clip, *std) <= 0:
        raise ValueError("expected --clip FRAMESxSTRIDE, --mean R,G,B and --std R,G,B above 0")
    names = read_text(options.classes).splitlines() if options.classes else ()
    return Preprocessing(
        mean=mean,
        std=std,
        frames=clip[0],
        stride=clip[1],
        test_size=options.size or crop,
        test_crop=crop,
        classes=tuple(name.strip() for name in names if name.strip()),
    )


PROGRAMS: Subcommands = {
    "onnx": (onnx_parser, onnx),
    "parity": (parity_parser, parity),
    "tensorrt": (tensorrt_parser, tensorrt),
    "check": (check_parser, check),
    "triton": (triton_parser, triton),
    "run": (run_parser, run_file),
    "quantize": (programs.quantize_parser, programs.quantize),
    "bench": (programs.bench_parser, programs.bench),
    "report": (programs.report_parser, programs.report),
}

if __name__ == "__main__":
    run(main)
