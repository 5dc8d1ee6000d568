"""Video files in, RGB frames out: the one place that touches a decoder.

A frame is named by its position in the film. The packets of a file are listed once, without
decoding; their sorted time stamps are the film's timeline, whatever the container's header says.
Where time stamps are missing, repeated or known to be wrong (AVI), frames are counted from the
start. Decoding begins at the last key frame before the first wanted frame, skips what no wanted
frame needs, and converts wanted frames only. One thread: loaders have workers.
"""

import re
from bisect import bisect
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from PIL import Image
from torch import Tensor

from nlzoo.files import Packed
from nlzoo.preprocessing import Unreadable

Source = str | Path | bytes | Packed
VIDEO_SUFFIXES = frozenset(
    (
        ".mp4",
        ".mkv",
        ".webm",
        ".avi",
        ".mov",
        ".m4v",
        ".mpg",
        ".mpeg",
        ".ts",
        ".flv",
        ".wmv",
        ".gif",
    )
)
IMAGE_SUFFIXES = frozenset([".jpg", ".jpeg", ".png"])
SKIPPING = frozenset(["h264", "hevc"])  # decoders that can leave out a frame nobody refers to
KEPT_BYTES = 64 << 20  # packets of larger files are read again rather than kept


@dataclass(frozen=True)
class Video:
    """What `probe` finds."""

    frames: int  # of the timeline; a damaged file may hold fewer good ones
    fps: float  # mean frames a second; 0 where unknown (a folder of images)
    width: int  # pixels, upright
    height: int
    rotation: int  # degrees counter-clockwise that frames are turned by to stand upright
    counted: bool  # frames are found by counting from the start: no usable time stamps


def probe(source: Source) -> Video:
    """Length, rate and upright size of a video. Decodes one frame.

    Args:
        source: path of a file or of a folder of JPEG or PNG frames, the bytes of a file, or a
            file inside another one.

    Raises:
        Unreadable: the file is missing, holds no video, or no frame can be decoded.
    """
    with open_video(source) as video:
        height, width = video.read([0]).shape[1:3]
        return Video(video.frames, video.fps, width, height, video.rotation, video.counted)


def read_frames(source: Source, indices: Sequence[int]) -> Tensor:
    """The frames of these positions, in this order: uint8 (T, H, W, 3), RGB, upright.

    A frame that cannot be decoded (a damaged tail) is replaced by the last good one before it.

    Raises:
        Unreadable: as `probe`.
        IndexError: a position outside 0..frames - 1.
    """
    with open_video(source) as video:
        return video.read(indices)


def iter_frames(source: Source) -> Iterator[av.VideoFrame]:
    """Every good frame of a file in order, as decoded (planes, not turned).

    Raises:
        Unreadable: at once, as `probe`; or after the last good frame of a damaged file.
    """
    with VideoFile(source) as video:
        good = 0
        for good, (_, frame) in enumerate(video.decode(), 1):  # noqa: B007
            yield frame
        if video.damage:
            raise Unreadable(f"{video.name}: damaged after {good} good frames: {video.damage}")


def open_video(source: Source) -> "VideoFile | FrameFolder":
    """A file or a folder of frames, to be closed after use (`with`)."""
    if isinstance(source, str | Path) and Path(source).is_dir():
        return FrameFolder(source)
    return VideoFile(source)


class FrameFolder:
    """A folder of JPEG or PNG frames, in the order of their names."""

    fps, rotation, counted, damage = 0.0, 0, False, ""

    def __init__(self, folder: str | Path) -> None:
        found = (p for p in Path(folder).iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        self.files = sorted(found, key=lambda p: (len(p.name), p.name))  # 2.jpg before 10.jpg
        self.frames = len(self.files)
        if not self.files:
            raise Unreadable(f"{folder}: a folder without JPEG or PNG frames")
        self._check_gaps()

    def _check_gaps(self) -> None:
        """Frames of which one is missing have other times than their positions say."""
        found = [re.search(r"\d+$", path.stem) for path in self.files]
        numbers = [int(match[0]) for match in found if match]
        steps = [b - a for a, b in pairwise(numbers)]
        if len(numbers) < self.frames or not steps or min(steps) < 1:  # not numbered
            return
        if (most := max(steps)) > min(steps):
            before, after = (self.files[steps.index(most) + i].name for i in (0, 1))
            raise Unreadable(
                f"{self.files[0].parent}: frames are missing: {after} follows {before}"
            )

    def __enter__(self) -> "FrameFolder":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def read(self, indices: Sequence[int]) -> Tensor:
        """As `read_frames`; every frame of a folder must be readable."""
        frames = [self._image(self.files[i]) for i in indices]
        if len({frame.shape for frame in frames}) > 1:
            raise Unreadable(f"{self.files[0].parent}: frames of different sizes")
        return torch.from_numpy(np.stack(frames))

    @staticmethod
    def _image(path: Path) -> np.ndarray:
        try:
            with Image.open(path) as image:
                return np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError) as error:  # Pillow's two ways to say: broken
            raise Unreadable(f"{path}: {error}") from error


class VideoFile:
    """One open file. `frames` and `fps` are known at once; `damage` says what reading met."""

    def __init__(self, source: Source) -> None:
        """Open the file and list its packets. Raises Unreadable."""
        self.name = "<bytes>" if isinstance(source, bytes) else str(source)
        self.damage = ""  # "28 of 50 frames are good: ...", once that is known
        self.rotation = 0  # known after the first read
        self._source = source
        if not isinstance(source, str | Path | bytes):
            self._source = source.read_bytes()  # what fails here is not the video
        self._to_rgb = VideoReformatter()
        try:
            self._open()
            self._scan()
        except (av.FFmpegError, OSError) as error:
            raise Unreadable(f"{self.name}: {_reason(error)}") from error
        if not self.frames:
            raise Unreadable(f"{self.name}: holds no video frame")

    def __enter__(self) -> "VideoFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def _open(self) -> None:
        file = BytesIO(self._source) if isinstance(self._source, bytes) else str(self._source)
        self._container = av.open(file, "r", metadata_errors="ignore")
        stream = self._container.streams.best("video")
        if stream is None or stream.disposition & Disposition.attached_pic:
            raise Unreadable(f"{self.name}: holds no video stream")
        if self._container.format.name.endswith("_pipe"):  # FFmpeg's readers of single pictures
            raise Unreadable(f"{self.name}: an image, not a video")
        stream.codec_context.thread_count = 1
        self._stream = stream
        self._context: Any = stream.codec_context  # its stubs lack decode()

    # -- the timeline -----------------------------------------------------------------------

    def _scan(self) -> None:
        """List the packets; keep them too, where the file is small."""
        kept: list[av.Packet[Any]] = []
        self._packets: list[tuple[int | None, bool]] = []  # time stamp, key frame
        times: list[int | None] = []
        size = 0
        try:
            for packet in self._demux():
                self._packets.append((packet.pts, packet.is_keyframe))
                if not (packet.is_discard or self._is_hidden(packet)):
                    times.append(packet.pts)
                size += packet.size
                if size <= KEPT_BYTES:
                    kept.append(packet)
        except av.FFmpegError as error:  # a broken tail: what came before it is good
            self.damage = _reason(error)
        self._kept = kept if size <= KEPT_BYTES else []
        self.frames = len(times)
        self.fps = float(self._stream.average_rate or self._stream.guessed_rate or 0)
        known = [t for t in times if t is not None]
        self.counted = self._container.format.name == "avi" or len(set(known)) < self.frames
        self._times = sorted(known)
        self._index: dict[int | None, int] = {t: i for i, t in enumerate(self._times)}

    def _demux(self) -> Iterator["av.Packet[Any]"]:
        """Whole packets of the stream, in decoding order."""
        for packet in self._container.demux(self._stream):
            if packet.is_corrupt:
                self.damage = "the file is cut off"
            elif packet.size:
                yield packet

    def _is_hidden(self, packet: "av.Packet[Any]") -> bool:
        """VP8 stores frames that are only referred to in packets of their own."""
        return self._context.name == "vp8" and not memoryview(packet)[0] & 0x10

    def _packets_from(self, first: int) -> Iterator["av.Packet[Any]"]:
        if self._kept:
            return iter(self._kept[first:])
        self._container.close()
        self._open()
        return islice(self._demux(), first, None)

    def _key_before(self, frame: int) -> int:
        """Position of the packet to start from."""
        if self.counted:
            return 0
        time = self._times[frame]
        starts = (
            i
            for i, (pts, key) in enumerate(self._packets)
            if key and pts is not None and pts <= time
        )
        return max(starts, default=0)

    # -- decoding ---------------------------------------------------------------------------

    def decode(
        self, first: int = 0, wanted: Container[int] | None = None
    ) -> Iterator[tuple[int, av.VideoFrame]]:
        """(position, frame) from packet `first` on, in order, up to the first damage.

        With `wanted`, other frames that no frame refers to are left out.
        """
        packets = self._packets_from(first)
        if self._context.is_open:
            self._context.flush_buffers()
        self._context.skip_frame = "DEFAULT"
        if self.counted or self._context.name not in SKIPPING:
            wanted = None
        count = 0
        try:
            for packet in chain(packets, (None,)):
                if packet is not None and wanted is not None:
                    needed = self._index.get(packet.pts) in wanted
                    self._context.skip_frame = "DEFAULT" if needed else "NONREF"
                for frame in self._context.decode(packet):
                    position = count if self.counted else self._index.get(frame.pts)
                    count += 1
                    if position is not None:
                        yield position, frame
        except av.FFmpegError as error:
            self.damage = _reason(error)

    def read(self, indices: Sequence[int]) -> Tensor:
        """As `read_frames`."""
        wanted = set(indices)
        if not wanted or min(wanted) < 0 or max(wanted) >= self.frames:
            raise IndexError(f"{self.name} has frames 0 to {self.frames - 1}, not {indices}")
        found = self._collect(wanted, self._key_before(min(wanted)), skip=True)
        if len(found) < len(wanted):
            found = self._collect(wanted, 0, skip=False)
            self._replace_missing(found, wanted)
        return torch.from_numpy(np.stack([found[i] for i in indices]))

    def _collect(self, wanted: set[int], first: int, skip: bool) -> dict[int, np.ndarray]:
        """Wanted frames by position, and the last good frame where some are missing."""
        found: dict[int, np.ndarray] = {}
        last = None
        for position, frame in self.decode(first, wanted if skip else None):
            last = position, frame
            if position in wanted:
                found[position] = self._upright_rgb(frame, found)
                if len(found) == len(wanted):
                    return found
        if last and not skip:
            reason = self.damage or "the others cannot be decoded"
            self.damage = f"{last[0] + 1} of {self.frames} frames are good: {reason}"
            found[last[0]] = self._upright_rgb(last[1], found)
        return found

    def _replace_missing(self, found: dict[int, np.ndarray], wanted: set[int]) -> None:
        """Fill the holes with the last good frame before each; in place."""
        if not found:
            raise Unreadable(f"{self.name}: no frame decodes: {self.damage or 'no reason'}")
        good = sorted(found)
        for i in wanted - found.keys():
            found[i] = found[good[max(bisect(good, i) - 1, 0)]]

    def _upright_rgb(self, frame: av.VideoFrame, found: dict[int, np.ndarray]) -> np.ndarray:
        """(H, W, 3); of the size of the first frame where the size changes on the way."""
        turns = round(frame.rotation / 90) % 4
        self.rotation = 90 * turns
        picture = self._to_rgb.reformat(frame, format="rgb24", threads=1)
        plane: Any = picture.planes[0]
        shape, strides = (picture.height, picture.width, 3), (plane.line_size, 3, 1)
        rgb = np.ndarray(shape, np.uint8, plane, strides=strides)  # no copy yet
        rgb = np.rot90(rgb, turns)
        shape = next(iter(found.values())).shape if found else rgb.shape
        if rgb.shape != shape:
            rgb = np.asarray(Image.fromarray(rgb).resize(shape[1::-1]))
        return rgb


def _reason(error: Exception) -> str:
    """What FFmpeg says, without the path, the number and the function."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0]
