"""Write a set in chunks of LitData: `python -m nlzoo.data.stream SOURCE DEST`.

Chunks of 64 MB hold the files as they are, so that a set of a million files is copied to an object
store as a few thousand, and read from there. DEST, or where it was copied to, takes the place of
SOURCE in a recipe.
"""

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nlzoo.data.chunks import FOLDER, MANIFEST, import_litdata, read_manifest
from nlzoo.data.layouts import IMAGES, VIDEOS, Files, Row, read_splits
from nlzoo.data.pictures import Member
from nlzoo.files import Packed, write_whole
from nlzoo.program import make_parser, parse_options, run

CHUNK = 64 << 20  # bytes of files; a larger file has a chunk of its own
MOST = (1 << 32) - (1 << 10)  # bytes of a file: LitData counts in 32 bits


def stream(files: Files, dest: Path, splits: Sequence[str]) -> dict[str, int]:
    """Write the files of these splits; how many of each are listed, but missing.

    Run again, it goes on: chunks appear whole, and those that are there stay. The manifest says
    that the set is complete once all of it is.

    Raises:
        FileNotFoundError: none of these splits.
        ValueError: `dest` holds something else, or a file that cannot be in a chunk.
    """
    import_litdata()
    rows = read_splits(files, {split: split for split in splits})
    sources = {split: _sources(files, some) for split, some in rows.items()}
    listed = {s: [[name, size] for name, size, _ in some] for s, some in sources.items()}
    lists = _find_lists(files.root)
    manifest = {
        "complete": False,
        "noun": files.kind.noun,
        "lists": [str(path.relative_to(files.root)) for path in lists],
        "files": listed,
    }
    _begin(files.root, dest, manifest)
    for path in lists:  # paths in them may be absolute
        text = path.read_bytes().replace(os.fsencode(f"{files.root}{os.sep}"), b"")
        write_whole(dest / path.relative_to(files.root), text)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeRemainingColumn()) as progress:
        for split, some in sources.items():
            task = progress.add_task(split, total=len(some))
            for done in _write_split(dest / FOLDER / split, some):
                progress.update(task, completed=done)
    write_whole(dest / MANIFEST, json.dumps(manifest | {"complete": True}))
    return {split: sum(row.path is None for row in some) for split, some in rows.items()}


Source = tuple[str, int, str | Packed]  # name in the set, bytes, where it is


def _sources(files: Files, rows: Sequence[Row]) -> list[Source]:
    """The files that are there, once each."""
    paths = list(dict.fromkeys(row.path for row in rows if row.path))
    if not paths:
        raise ValueError(f"{rows[0].where}: none of its {len(rows)} files is there")
    found: list[Source] = []
    for path, source in zip(paths, files.sources(paths), strict=True):
        if not path.startswith(f"{files.root}{os.sep}"):
            raise ValueError(f"{path} is outside {files.root}: link it there")
        if isinstance(source, str) and Path(source).is_dir():
            raise ValueError(f"{path} is a folder of frames: make a video of it")
        if not isinstance(source, str | Member):
            raise ValueError(f"{files.root} is a streamed set already: copy it")
        size = source.size if isinstance(source, Member) else Path(source).stat().st_size
        if size > MOST:
            raise ValueError(f"{path} has {size >> 20} MB, a chunk at most {MOST >> 20}")
        found.append((path[len(str(files.root)) + 1 :], size, source))
    return found


def _find_lists(root: Path) -> list[Path]:
    """Lists and class names, where the layouts look for them."""
    folders = (root, root / "annotations", root / "Charades")
    found = (path for folder in folders for path in folder.glob("*.*"))
    return sorted(p for p in found if p.suffix in (".csv", ".txt") and p.name != "bad_files.txt")


def _begin(source: Path, dest: Path, manifest: dict[str, Any]) -> None:
    """Mark `dest` as ours, and as not finished."""
    if dest.resolve().is_relative_to(source):
        raise ValueError(f"{dest} is inside {source}; write to another folder")
    if (dest / MANIFEST).is_file():
        if read_manifest(dest)["files"] != manifest["files"]:
            raise ValueError(f"{dest} holds chunks of other files; write to another folder")
    elif dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise ValueError(f"{dest} holds something else; write to another folder")
    write_whole(dest / MANIFEST, json.dumps(manifest))
    for part in dest.glob(f"{FOLDER}/*/.part*"):  # of a writer that was killed
        shutil.rmtree(part)


def _write_split(folder: Path, sources: Sequence[Source]) -> Iterator[int]:
    """Write the chunks that are not there, then their index; yields how many files are done."""
    folder.mkdir(parents=True, exist_ok=True)
    chunks: list[dict[str, Any]] = []
    first = 0
    for last in chunk_ends([size for _, size, _ in sources]):
        path = folder / f"chunk-0-{len(chunks)}.bin"
        if not path.exists():
            _write_chunk(path, sources[first:last])
        size, count, name = path.stat().st_size, last - first, path.name
        chunks.append({"chunk_bytes": size, "chunk_size": count, "dim": None, "filename": name})
        yield last
        first = last
    index = {"chunks": chunks, "config": _config(), "updated_at": str(time.time())}
    write_whole(folder / "index.json", json.dumps(index))


def chunk_ends(sizes: Sequence[int]) -> Iterator[int]:
    """Where chunks of up to CHUNK bytes end: positions after their last files."""
    total = 0
    for i, size in enumerate(sizes):
        if total and total + size > CHUNK:
            yield i
            total = 0
        total += size
    yield len(sizes)


def _write_chunk(path: Path, sources: Sequence[Source]) -> None:
    from litdata.streaming.writer import BinaryWriter

    with tempfile.TemporaryDirectory(prefix=".part", dir=path.parent) as part:
        writer = BinaryWriter(part, chunk_size=len(sources))
        for i, (name, size, source) in enumerate(sources):
            content = (Path(source) if isinstance(source, str) else source).read_bytes()
            if len(content) != size:
                raise ValueError(f"{name} has changed while the set was written")
            writer.add_item(i, content)
        Path(writer.done()[0]).replace(path)


def _config() -> dict[str, Any]:
    """What LitData says of chunks of bytes."""
    from litdata.streaming.writer import BinaryWriter

    with tempfile.TemporaryDirectory() as folder:
        writer = BinaryWriter(folder, chunk_bytes=CHUNK)
        writer.add_item(0, b"")
        config: dict[str, Any] = writer.get_config()
        return config


def parser() -> ArgumentParser:
    """From where to where, and what."""
    about = "Write a set in chunks that are read from a folder or an object store."
    example = (
        "python -m nlzoo.data.stream data/kinetics400 chunks\n"
        "  aws s3 sync chunks s3://BUCKET/kinetics400\n"
        "  python -m nlzoo.fit --recipe i3d_nl_kinetics --data s3://BUCKET/kinetics400"
    )
    made = make_parser("python -m nlzoo.data.stream", about, example)
    made.add_argument("source", type=Path, help="folder with videos and lists")
    made.add_argument("dest", type=Path, help="folder to write; run again to go on")
    made.add_argument("--images", action="store_true", help="of images, not videos")
    made.add_argument("--splits", default="train,val", help="names of lists or folders")
    return made


def main(argv: Sequence[str]) -> None:
    """Says what is missing, and what to do next."""
    given = parse_options(parser(), argv)
    if not given.source.is_dir():
        raise FileNotFoundError(f"no folder {str(given.source)!r}: name one of videos and lists")
    splits = given.splits.split(",")
    if not all(split.isidentifier() for split in splits):
        raise ValueError(f"--splits {given.splits!r}: expected names, as in train,val,test")
    files = Files(given.source.resolve(), IMAGES if given.images else VIDEOS)
    try:
        missing = stream(files, given.dest, splits)
    except KeyboardInterrupt:
        sys.stderr.write("nlzoo: interrupted; the same command goes on\n")
        sys.exit(130)
    for split, count in missing.items():
        if count:
            sys.stderr.write(f"{count} {files.kind.noun}s of {split} are listed, but missing\n")
    sys.stderr.write(f"Next: python -m nlzoo.fit --recipe NAME --data {given.dest}\n")


if __name__ == "__main__":
    run(main)
