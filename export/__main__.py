"""`python -m nlzoo.export onnx|run`: from a checkpoint to a file, from a file to an answer."""

import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from nlzoo.program import make_parser, parse_options, run


def main(argv: Sequence[str]) -> None:
    """Hand over to the subcommand."""
    options = parse_options(parser(), argv)
    {"onnx": onnx, "run": run_file}[options.subcommand](options[options.subcommand])


def parser() -> ArgumentParser:
    """The subcommands and their options."""
    made = make_parser("python -m nlzoo.export", "Files for other machines.")
    programs = made.add_subcommands()
    export = make_parser("", "A checkpoint or a model name to an ONNX file, checked.")
    export.add_argument("source", help="a checkpoint of nlzoo.fit, or a model name")
    export.add_argument("--output", required=True, help="file to write")
    export.add_argument("--opset", type=int, default=18, help="17 to 23")
    export.add_argument("--dynamic", default="batch", help="of batch,frames,height,width")
    export.add_argument("--precision", default="fp32", help="fp32 or fp16")
    export.add_argument("--preprocess", action="store_true", help="take uint8 clips")
    export.add_argument("--frames", type=int, default=0, help="of a clip; 0: as trained")
    export.add_argument("--size", type=int, default=0, help="pixels; 0: the test crop")
    programs.add_subcommand("onnx", export, help="write an ONNX file")
    answer = make_parser("", "Name what happens in videos, with an exported file.")
    answer.add_argument("file", help="of nlzoo.export")
    answer.add_argument("videos", nargs="+", help="files, or folders of them or of frames")
    answer.add_argument("--clips", type=int, default=10, help="evenly spread clips a video")
    answer.add_argument("--crops", type=int, default=1, help="of a clip: 1 (the centre) or 3")
    answer.add_argument("--json", action="store_true", help="print JSON in place of a table")
    programs.add_subcommand("run", answer, help="what nlzoo.predict prints, from a file")
    return made


def onnx(options: Namespace) -> None:
    """Export, and say how close it is."""
    from nlzoo.export.onnx import export_onnx

    parity = export_onnx(
        options.source,
        options.output,
        opset=options.opset,
        dynamic=[name for name in options.dynamic.split(",") if name],
        precision=options.precision,
        raw=options.preprocess,
        frames=options.frames,
        size=options.size,
    )
    size = Path(options.output).stat().st_size / 1e6
    sys.stdout.write(f"{options.output}: {size:.1f} MB; {parity}\n")
    sys.stdout.write(f"Next: python -m nlzoo.export run {options.output} VIDEO\n")


def run_file(options: Namespace) -> None:
    """Predict with a file."""
    from nlzoo.export.runtime import Runner

    from nlzoo.answer import answer, find_all
    from nlzoo.watch import watch_video

    runner, views = Runner(options.file), (options.clips, options.crops)
    videos = find_all(options.videos)
    answer(videos, lambda video: watch_video(runner, video, *views), options.json)


if __name__ == "__main__":
    run(main)
