"""Re-encode a set of videos for fast reading: `python -m nlzoo.data.prepare SOURCE DEST`.

Short side 256, a key frame every 30 frames, no B-frames, no sound: half as large as most originals
and two to three times as fast to take clips from. A set is the same folders and lists, so DEST
takes the place of SOURCE in a recipe.
"""

import multiprocessing
import os
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
from jsonargparse import ArgumentParser
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nlzoo.data.decode import VIDEO_SUFFIXES, VideoFile
from nlzoo.data.encode import encode
from nlzoo.data.layouts import SUFFIXES, Files
from nlzoo.files import read_text, write_whole
from nlzoo.names import counted
from nlzoo.preprocessing import Unreadable
from nlzoo.program import make_parser, parse_options, run


@dataclass(frozen=True)
class Encoding:
    """Short side in pixels (never enlarged), x264's quality, frames between key frames."""

    size: int = 256
    crf: int = 23
    gop: int = 30


def prepare_video(source: Path, target: Path, encoding: Encoding) -> str:
    """Write one video, whole or not at all; what is wrong with the source, or "".

    A source with a damaged tail gives its good frames. A target that is there is left alone.
    """
    if target.exists():
        return ""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with VideoFile(source) as video:
            height, width = video.read([0]).shape[1:3]
            short = min(height, width)
            scale = min(encoding.size, short) / short
            size = max(2, int(width * scale) // 2 * 2), max(2, int(height * scale) // 2 * 2)
            rate = video.fps or 30.0
            frames = _upright(video)
            encode(target, frames, size, rate, encoding.crf, encoding.gop, preset="medium")
            return video.damage
    except Unreadable as error:
        return str(error).removeprefix(f"{source}: ")


def _upright(video: VideoFile) -> Iterator[av.VideoFrame]:
    """Frames turned as they are to be seen; most need no turning and stay as decoded."""
    turns = video.rotation // 90
    for _, frame in video.decode():
        if turns:
            rgb: Any = np.rot90(frame.to_ndarray(format="rgb24"), turns)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
        yield frame


def prepare(source: Path, dest: Path, encoding: Encoding, workers: int) -> dict[str, str]:
    """Prepare every video below `source`; what is wrong with which, by absolute path.

    Finished targets are left alone, and DEST/bad_files.txt goes on saying what was wrong with
    their sources. It is written after an interruption too.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no video in it, or `dest` inside of it.
    """
    files = Files(source.resolve())
    if dest.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"{dest} is inside {source}; write to another folder")
    videos = sorted(p for p in map(Path, files.paths) if p.suffix.lower() in VIDEO_SUFFIXES)
    if not videos:
        raise ValueError(f"{source} holds no video file")
    dest.mkdir(parents=True, exist_ok=True)
    copy_lists(files, dest, set(videos))
    listed = dest / "bad_files.txt"
    before = listed.read_text("utf-8").splitlines() if listed.is_file() else []
    entries = (line.partition("\t") for line in before)
    bad = {path: reason for path, _, reason in entries if path in files.paths}
    jobs: dict[Path, Path] = {}
    for video in videos:
        target = dest / video.relative_to(files.root).with_suffix(".mp4")
        if target in jobs:
            bad[str(video)] = f"{jobs[target].name} takes the same name"
        jobs.setdefault(target, video)
    todo = {target: video for target, video in jobs.items() if not target.exists()}
    try:
        _run(todo, encoding, workers, bad)
    finally:
        if bad:
            lines = (f"{path}\t{reason}\n" for path, reason in sorted(bad.items()))
            write_whole(listed, "".join(lines))
        else:
            listed.unlink(missing_ok=True)
    return bad


def _run(jobs: dict[Path, Path], encoding: Encoding, workers: int, bad: dict[str, str]) -> None:
    """All jobs (source by target) in parallel processes, with a progress bar; `bad` is updated."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(workers, context) as pool,
        Progress(*columns, TimeRemainingColumn()) as progress,
    ):
        task = progress.add_task("videos", total=len(jobs))
        running = []
        for target, source in jobs.items():
            running.append(pool.submit(prepare_video, source, target, encoding))
            running[-1].add_done_callback(partial(_note, bad, str(source)))
        try:
            for future in as_completed(running):
                progress.advance(task)
                future.result()
        except BaseException:  # one error, or Ctrl-C, ends all
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _note(bad: dict[str, str], source: str, future: "Future[str]") -> None:
    """The outcome of a job takes the place of what was known about its source."""
    if not future.cancelled() and not future.exception():
        bad.pop(source, None)
        if reason := future.result():
            bad[source] = reason


_PATH = re.compile(rf"""[^"',\n]*?\.(?:{SUFFIXES})(?=["'\s,]|$)""", re.IGNORECASE | re.MULTILINE)


def copy_lists(files: Files, dest: Path, videos: Collection[Path]) -> None:
    """Copy lists and class names; the paths of `videos` in them follow to DEST/*.mp4.

    Raises:
        ValueError: a list is not in UTF-8.
    """
    for folder in (files.root, files.root / "annotations", files.root / "Charades"):
        for file in (*folder.glob("*.csv"), *folder.glob("*.txt")):
            if file.name == "bad_files.txt":
                continue
            follow = partial(_follow, files, dest, file.parent, videos)
            text = _PATH.sub(follow, read_text(file))
            write_whole(dest / file.relative_to(files.root), text)


def _follow(
    files: Files, dest: Path, folder: Path, videos: Collection[Path], listed: re.Match[str]
) -> str:
    """A listed path as DEST needs it: of a prepared video, or of one that lies elsewhere."""
    name = listed[0].strip()
    if not (there := files.at(name, folder)):
        return listed[0]
    path = Path(there)
    if path not in videos:
        return str(path.resolve())
    new = str(Path(name).with_suffix(".mp4"))
    return new.replace(f"{files.root}{os.sep}", f"{dest.resolve()}{os.sep}", 1)


def parser() -> ArgumentParser:
    """From where to where, and how."""
    about = "Re-encode a video set for fast reading."
    example = "python -m nlzoo.data.prepare kinetics400 prepared --size 320"
    made = make_parser("python -m nlzoo.data.prepare", about, example)
    made.add_argument("source", type=Path, help="folder with videos and lists")
    made.add_argument("dest", type=Path, help="folder to write; run again to go on")
    made.add_argument("--size", type=int, default=256, help="short side, pixels")
    made.add_argument("--crf", type=int, default=23, help="quality of x264, 0 (best) to 51")
    made.add_argument("--gop", type=int, default=30, help="frames from key frame to key frame")
    made.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    return made


def main(argv: Sequence[str]) -> None:
    """Exit code 1 where files are damaged: see DEST/bad_files.txt."""
    given = parse_options(parser(), argv)
    if not given.source.is_dir():
        raise FileNotFoundError(f"no folder {str(given.source)!r}: name one of videos and lists")
    if min(given.size, given.gop, given.workers) < 1 or not 0 <= given.crf <= 51:
        raise ValueError("--size, --gop and --workers start at 1; --crf is 0 to 51")
    try:
        encoding = Encoding(given.size, given.crf, given.gop)
        bad = prepare(given.source, given.dest, encoding, given.workers)
    except KeyboardInterrupt:
        sys.stderr.write("nlzoo: interrupted; the same command goes on\n")
        sys.exit(130)
    for path, reason in sorted(bad.items()):
        sys.stderr.write(f"{path}: {reason}\n")
    there = sum(1 for _ in given.dest.rglob("*.mp4"))
    sys.stdout.write(f"{counted(there, 'video')} in {given.dest}\n")
    if bad:
        listed = given.dest / "bad_files.txt"
        sys.stderr.write(f"{counted(len(bad), 'bad file')}, listed in {listed}\n")
        sys.exit(1)


if __name__ == "__main__":
    run(main)
