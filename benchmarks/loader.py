"""Clips a second of one loader worker, beside pytorchvideo's EncodedVideo on the same files.

    python -m benchmarks.loader FOLDER           # videos of about ten seconds, such as Kinetics'
    python -m benchmarks.loader --render         # the table again, from JSON

Every variant takes the same 32 frames with stride 2 of the same videos, those that both sides read
alike, in one DataLoader worker:
"frames" as decoded, or "training clip": short side 256 to 320, a crop of 224 x 224, a flip. "Raw"
are the files as they are, "prepared" what `python -m nlzoo.data.prepare` makes of them. The other
side's clip is scaled as pytorchvideo's transforms do, in float32, after every second frame is left
out.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.transforms._functional_tensor as functional_tensor
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from benchmarks.measure import describe, interleaved, machine, median, ratio, table, write_json
from nlzoo.data.clips import generator, train_clip
from nlzoo.data.decode import Video, open_video, probe
from nlzoo.data.layouts import Files
from nlzoo.data.prepare import Encoding, prepare
from nlzoo.data.transforms import TrainTransform, crop_at
from nlzoo.preprocessing import Unreadable
from nlzoo.program import make_parser, parse_options, run

# the last release of pytorchvideo imports this module under the name it had
sys.modules.setdefault("torchvision.transforms.functional_tensor", functional_tensor)
from pytorchvideo.data.encoded_video import EncodedVideo  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "loader.json"
FRAMES, STRIDE, CLIPS, BATCH = 32, 2, 32, 8
BARS = {("raw", "frames"): 1.8, ("prepared", "frames"): 4.5}  # what EncodedVideo itself does
Read = Callable[[str, Video, np.random.Generator], Tensor]


def ours_frames(path: str, video: Video, rng: np.random.Generator) -> Tensor:
    """(T, C, H, W) uint8; length and rate are looked up again, as in training."""
    with open_video(path) as file:
        return file.read(train_clip(file.frames, FRAMES, STRIDE, rng)).permute(0, 3, 1, 2)


def ours_clip(path: str, video: Video, rng: np.random.Generator) -> Tensor:
    return TrainTransform()(ours_frames(path, video, rng), rng)


def theirs_frames(path: str, video: Video, rng: np.random.Generator) -> Tensor:
    """(C, T, H, W) float32; length and rate are given."""
    start = train_clip(video.frames, FRAMES, STRIDE, rng)[0]
    file = EncodedVideo.from_path(path, decode_audio=False)
    clip = file.get_clip(start / video.fps, (start + FRAMES * STRIDE - 0.5) / video.fps)["video"]
    file.close()
    return clip[:, ::STRIDE]


def theirs_clip(path: str, video: Video, rng: np.random.Generator) -> Tensor:
    clip = theirs_frames(path, video, rng)
    size, (height, width) = int(rng.integers(256, 321)), clip.shape[-2:]
    short = min(height, width)
    scaled = F.interpolate(clip, (height * size // short, width * size // short), mode="bilinear")
    top, left = (int(rng.integers(side - 224 + 1)) for side in scaled.shape[-2:])
    cut = crop_at(scaled.transpose(0, 1), top, left, 224)
    return cut.flip(-1) if rng.random() < 0.5 else cut


READERS: dict[str, tuple[Read, Read]] = {
    "frames": (theirs_frames, ours_frames),
    "training clip": (theirs_clip, ours_clip),
}


@dataclass
class Clips(Dataset[Tensor]):
    """CLIPS clips, of the videos in turn; the start depends on the index only."""

    videos: list[tuple[str, Video]]
    read: Read

    def __len__(self) -> int:
        return CLIPS

    def __getitem__(self, index: int) -> Tensor:
        path, video = self.videos[index % len(self.videos)]
        return self.read(path, video, generator(index))


def loader(videos: list[tuple[str, Video]], read: Read) -> DataLoader[Any]:
    """One worker that stays; frames as decoded differ in size, so their batches are lists."""
    collate = default_collate if read in READERS["training clip"] else list
    return DataLoader(
        Clips(videos, read), BATCH, num_workers=1, collate_fn=collate, persistent_workers=True
    )


def load(batches: DataLoader[Any]) -> None:
    """One epoch."""
    for _ in batches:
        pass


def same_frames(path: str, video: Video) -> bool:
    """Whether both sides take the same frames; they may round the colours differently."""
    try:
        theirs = theirs_frames(path, video, generator(0)).transpose(0, 1)
    except Exception:  # EncodedVideo gives up on a damaged or unusual file in any way
        return False
    ours = ours_frames(path, video, generator(0))
    return theirs.shape == ours.shape and bool((theirs - ours.float()).abs().mean() <= 0.5)


def comparable(root: Path) -> list[tuple[str, Video]]:
    """The videos of which both sides take the same whole clip."""
    found = []
    for path in sorted(Files(root).paths):
        try:
            video = probe(path)
        except Unreadable:
            continue
        if video.frames >= FRAMES * STRIDE and same_frames(path, video):
            found.append((path, video))
    if not found:
        raise SystemExit(f"{root}: no video of {FRAMES * STRIDE} frames that both sides can read")
    return found


def measure(folder: Path, rounds: int) -> list[dict[str, Any]]:
    rows = []
    with tempfile.TemporaryDirectory() as made:
        prepare(folder, Path(made) / "prepared", Encoding(), workers=2)
        for files, root in (("raw", folder), ("prepared", Path(made) / "prepared")):
            videos = comparable(root)
            for work, readers in READERS.items():
                names = ("EncodedVideo", "nlzoo")
                calls = {
                    name: partial(load, loader(videos, read))
                    for name, read in zip(names, readers, strict=True)
                }
                seconds = interleaved(calls, rounds)
                faster = ratio(seconds["EncodedVideo"], seconds["nlzoo"])
                row: dict[str, Any] = {"files": files, "videos": len(videos), "work": work}
                row |= {f"{n}, clips/s": CLIPS / median(s) for n, s in seconds.items()}
                row |= {"times as fast": faster, "wanted": BARS.get((files, work), "")}
                row |= {"seconds": seconds}
                rows.append(row)
    return rows


def render() -> str:
    """Write the Markdown table beside the JSON file; return it."""
    results = json.loads(RESULTS.read_text())
    facts = describe(results["machine"])
    columns = [column for column in results["rows"][0] if column != "seconds"]
    text = f"One loader worker, {FRAMES} frames with stride {STRIDE}; {facts}.\n\n"
    text += table(results["rows"], columns) + "\n"
    RESULTS.with_suffix(".md").write_text(text)
    return text


def main() -> None:
    parser = make_parser("python -m benchmarks.loader", __doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="folder of videos")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--render", action="store_true")
    options = parse_options(parser, sys.argv[1:])
    if not options.render:
        if options.folder is None:
            parser.error("name a folder of videos")
        torch.set_num_threads(1)
        rows = measure(options.folder, options.rounds)
        write_json(RESULTS, {"machine": machine(), "rows": rows})
    print(render())


if __name__ == "__main__":
    run(lambda _: main())
