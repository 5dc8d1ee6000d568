"""RGB frames in, H.264 files out, made for fast reading."""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
from av.video.reformatter import VideoReformatter
from torch import Tensor

from nlzoo.files import whole_file

COLOUR_TAGS = "colorspace", "color_range", "color_primaries", "color_trc"


def write_video(path: str | Path, frames: Tensor, fps: float, crf: int = 18, gop: int = 30) -> None:
    """Write uint8 (T, H, W, 3) RGB frames as H.264 (yuv420p, mp4). H and W must be even.

    The same frames give the same file: x264's macroblock tree is off. With it, pictures of two by
    two macroblocks came out in other bits in one file of a hundred, by where memory lay.

    Args:
        path: appears whole or not at all.
        frames: RGB.
        fps: frames a second.
        crf: quality, 0 (lossless) to 51.
        gop: frames from one key frame to the next.
    """
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"{path}: H.264 needs even sides, not {width} x {height}")
    images = (av.VideoFrame.from_ndarray(f.numpy(), format="rgb24") for f in frames)
    encode(path, images, (width, height), fps, crf, gop, mbtree=False)


def encode(
    path: str | Path,
    frames: Iterable[av.VideoFrame],
    size: tuple[int, int],
    fps: float,
    crf: int,
    gop: int,
    preset: str = "veryfast",
    mbtree: bool = True,
) -> None:
    """Encode frames for fast reading: H.264 without B-frames and audio, scaled to `size` (w, h).

    The colour matrix and range of the first frame become those of the file.
    """
    with whole_file(path) as part, av.open(str(part), "w", format="mp4") as container:
        rate = Fraction(fps).limit_denominator(1001)
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.thread_count = 1  # what x264 writes depends on it
        stream.options = {
            "crf": str(crf),
            "preset": preset,
            "tune": "fastdecode",
            "bf": "0",
            "g": str(gop),
            "keyint_min": str(gop),
            "sc_threshold": "0",
            "x264-params": f"mbtree={mbtree:d}",
        }
        scale = VideoReformatter()
        for i, frame in enumerate(frames):
            image = scale.reformat(frame, *size, format="yuv420p", threads=1)
            image.pts, image.time_base = i, 1 / rate
            for tag in COLOUR_TAGS if i == 0 else ():
                if value := getattr(image, tag, 0):  # 0: RGB or unknown; PyAV 14 has two of them
                    setattr(stream.codec_context, tag, value)
            container.mux(stream.encode(image))
        container.mux(stream.encode(None))
