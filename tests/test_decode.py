import hashlib
import json
import os
import random
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from nlzoo.data import decode
from nlzoo.data.decode import (
    Unreadable,
    iter_frames,
    open_video,
    probe,
    read_frames,
)
from nlzoo.data.encode import encode, write_video

ROOT = Path(__file__).parent.parent
SHARED = Path(os.environ.get("NLZOO_SHARED", ROOT / ".." / "shared"))
CLIPS = SHARED / "data" / "video_clips"
GOLDENS = CLIPS / "golden_frames.json"
GOLDEN = json.loads(GOLDENS.read_text())["clips"] if GOLDENS.is_file() else {}
needs_clips = pytest.mark.skipif(not GOLDEN, reason=f"no golden frames at {GOLDENS}")
NAMES = [n for n, clip in GOLDEN.items() if clip["stream_index"] == clip["best_stream"]]
ARM_WRESTLING = CLIPS / "kinetics_arm_wrestling.mp4"


def sha(data):
    return hashlib.sha256(data).hexdigest()


def planes_sha(frame):
    """Of the decoded planes without padding, in plane order."""
    digest = hashlib.sha256()
    for i, plane in enumerate(frame.planes):
        width = sum((c.bits + 7) // 8 for c in frame.format.components if c.plane == i)
        rows = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
        digest.update(np.ascontiguousarray(rows[:, : plane.width * width]).tobytes())
    return digest.hexdigest()


def decoded(path):
    """Hashes of the planes of every good frame, and what is wrong with the rest."""
    hashes = []
    try:
        for frame in iter_frames(path):
            hashes.append(planes_sha(frame))
    except Unreadable as error:
        return hashes, str(error)
    return hashes, ""


@needs_clips
def test_every_golden_clip_is_looked_at():
    assert len(GOLDEN) == 28
    assert set(GOLDEN) - set(NAMES) == {"nasa_13013.mp4#0"}  # the smaller of two streams


@needs_clips
@pytest.mark.parametrize("name", NAMES)
def test_planes_are_the_golden_ones_in_order(name):
    golden = GOLDEN[name]
    hashes, damage = decoded(CLIPS / name.partition("#")[0])
    assert len(hashes) == golden["decoded_frames"]
    for i, frame in golden["frames"].items():
        assert hashes[int(i)] == frame["yuv_sha256"]
    assert sha("".join(hashes).encode()) == golden["yuv_all_frames_sha256"]
    assert bool(damage) == (golden["decode_error"] is not None)


@needs_clips
@pytest.mark.parametrize("name", NAMES)
def test_any_frames_are_those_of_the_whole_film_upright(name):
    golden, path = GOLDEN[name], CLIPS / name.partition("#")[0]
    video = probe(path)
    good = golden["decoded_frames"]
    film = read_frames(path, range(good))
    turns = golden["rotation"][0] // 90
    assert film.shape == (good, video.height, video.width, 3)
    assert film.dtype == torch.uint8
    assert video.rotation == golden["rotation"][0] % 360
    same_ffmpeg = av.library_versions["libswscale"] == (9, 5, 102)
    for i, frame in golden["frames"].items():
        picture = np.rot90(film[int(i)].numpy(), -turns)
        mean = picture.reshape(-1, 3).mean(0)
        assert np.abs(mean - frame["pyav_rgb24_mean"]).max() < 2.5
        if same_ffmpeg:
            assert sha(np.ascontiguousarray(picture).tobytes()) == frame["pyav_rgb24_sha256"]
    rng = random.Random(0)
    for _ in range(6):
        few = [rng.randrange(good) for _ in range(3)]
        run = [(few[0] + 2 * i) % good for i in range(6)]
        assert torch.equal(read_frames(path, few), film[few])
        assert torch.equal(read_frames(path, run), film[run])


@needs_clips
@pytest.mark.parametrize("name", NAMES)
def test_length_is_that_of_the_film_not_of_the_header(name):
    video, golden = probe(CLIPS / name.partition("#")[0]), GOLDEN[name]
    if golden["decode_error"] is None:
        assert video.frames == golden["decoded_frames"]
    assert video.counted == (golden["container"] == "avi")
    numerator, _, denominator = golden["average_rate"].partition("/")
    assert video.fps == pytest.approx(int(numerator) / int(denominator or 1))


@needs_clips
def test_damaged_tail_is_reported_and_filled_with_the_last_good_frame():
    path = CLIPS / "decord_corrupted.mp4"
    assert "damaged after 28 good frames" in decoded(path)[1]
    with open_video(path) as video:
        frames = video.read([3, 27, 28, 49])
        assert video.damage.startswith("28 of 50 frames are good")
        assert torch.equal(frames[1], frames[2])
        assert torch.equal(frames[1], frames[3])
        assert not torch.equal(frames[0], frames[1])
    with open_video(path) as video:
        video.read([3, 20])
        assert not video.damage  # nothing wrong was met


@needs_clips
def test_bytes_and_packets_too_large_to_keep_give_the_same(monkeypatch):
    want = read_frames(ARM_WRESTLING, [5, 200, 231])
    assert torch.equal(read_frames(ARM_WRESTLING.read_bytes(), [5, 200, 231]), want)
    monkeypatch.setattr(decode, "KEPT_BYTES", 1000)
    with open_video(ARM_WRESTLING) as video:
        for _ in range(2):
            assert torch.equal(video.read([5, 200, 231]), want)


@needs_clips
def test_file_cut_off_after_its_index_keeps_its_good_frames(tmp_path):
    source = tmp_path / "whole.mp4"
    torch.manual_seed(0)
    write_video(source, torch.randint(0, 256, (40, 32, 32, 3), dtype=torch.uint8), 10)
    matroska = tmp_path / "whole.mkv"
    remux(source, matroska, "matroska")
    whole = read_frames(matroska, range(40))
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(matroska.read_bytes()[: matroska.stat().st_size // 2])
    good = probe(cut).frames
    assert 10 < good < 30
    frames = read_frames(cut, range(good))
    assert torch.equal(frames[: good - 1], whole[: good - 1])


def remux(source, target, kind, pts=None):
    """Copy packets into another container, with time stamps pts(position) where given."""
    with av.open(str(source)) as old, av.open(str(target), "w", format=kind) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for i, packet in enumerate(old.demux(video=0)):
            if packet.size:
                if pts:
                    packet.pts = packet.dts = pts(i)
                packet.stream = stream
                new.mux(packet)


def video_with_b_frames(path):
    """Every frame another grey; reordered in the file."""
    with av.open(str(path), "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        stream.options = {"bf": "3", "b-adapt": "0", "g": "12", "crf": "10"}
        for i in range(40):
            picture = np.full((32, 32, 3), 20 + 5 * i, np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode(None))


def test_reordered_frames_come_in_order_of_display(tmp_path):
    video_with_b_frames(tmp_path / "b.mp4")
    for indices in (range(40), [39, 0, 17], [13, 15, 17, 19]):
        grey = read_frames(tmp_path / "b.mp4", indices).float().mean((1, 2, 3))
        want = torch.tensor([20.0 + 5 * i for i in indices])
        assert (grey - want).abs().max() < 2.5  # neighbours differ by 5


def test_container_without_usable_time_stamps_is_counted(tmp_path):
    video_with_b_frames(tmp_path / "b.mp4")
    remux(tmp_path / "b.mp4", tmp_path / "b.h264", "h264")
    assert probe(tmp_path / "b.h264").counted
    assert probe(tmp_path / "b.h264").frames == 40
    indices = [39, 0, 17, 17]
    same = read_frames(tmp_path / "b.mp4", indices), read_frames(tmp_path / "b.h264", indices)
    assert torch.equal(*same)


def test_hidden_frames_of_vp8_do_not_count(tmp_path):
    """Two frames are made hidden, as alternate reference frames are, by one bit of theirs."""
    path = tmp_path / "hidden.webm"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libvpx", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        packets = []
        for i in range(20):
            picture = np.full((64, 64, 3), 10 * i, np.uint8)
            packets += stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24"))
        for i, packet in enumerate(packets + stream.encode(None)):
            data = bytearray(bytes(packet))
            data[0] &= 0xEF if i in (5, 11) else 0xFF
            copy = av.Packet(bytes(data))
            copy.pts, copy.dts, copy.time_base = packet.pts, packet.dts, packet.time_base
            copy.is_keyframe, copy.stream = packet.is_keyframe, stream
            file.mux(copy)
    assert probe(path).frames == 18
    film = read_frames(path, range(18))
    grey = film.float().mean((1, 2, 3))
    want = torch.tensor([10.0 * i for i in range(20) if i not in (5, 11)])
    assert (grey - want).abs().max() < 4
    assert torch.equal(read_frames(path, [17, 8]), film[[17, 8]])


def broken(tmp_path, kind):
    """A file that is no video."""
    path = tmp_path / f"{kind}.mp4"
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("This is not a video.\n" * 50)
    elif kind == "picture":
        Image.new("RGB", (64, 64)).save(path, "png")
    elif kind == "truncated":  # the index at the end is lost
        write_video(path, torch.zeros(9, 64, 64, 3, dtype=torch.uint8), 8)
        path.write_bytes(path.read_bytes()[:900])
    elif kind == "audio":
        with av.open(str(path), "w") as file:
            stream = file.add_stream("aac", rate=8000)
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 4000), np.float32), "fltp", "mono")
            samples.sample_rate = 8000
            file.mux([*stream.encode(samples), *stream.encode(None)])
    return path


@pytest.mark.parametrize("kind", ["empty", "text", "truncated", "audio", "picture", "absent"])
def test_unreadable_files_raise_one_line_with_the_path(tmp_path, kind):
    path = broken(tmp_path, kind)
    for use in (probe, lambda p: read_frames(p, [0]), lambda p: list(iter_frames(p))):
        with pytest.raises(Unreadable, match=f"{kind}.mp4: ") as error:
            use(path)
        assert "\n" not in str(error.value)
    if path.exists():
        with pytest.raises(Unreadable, match="<bytes>: "):
            probe(path.read_bytes())


def test_folder_of_frames(tmp_path):
    for i in (9, 10, 11):
        Image.new("RGB", (12, 8), (i, 2 * i, 0)).save(tmp_path / f"{i}.png")
    video = probe(tmp_path)
    assert (video.frames, video.width, video.height, video.fps) == (3, 12, 8, 0)
    assert read_frames(tmp_path, [2, 0])[:, 0, 0].tolist() == [[11, 22, 0], [9, 18, 0]]
    (tmp_path / "10.png").write_bytes(b"no picture")
    with pytest.raises(Unreadable, match=r"10\.png"):
        read_frames(tmp_path, [1])


@pytest.mark.parametrize(
    ("names", "gap"),
    [
        (["A-000001.jpg", "A-000002.jpg", "A-000004.jpg"], "A-000004.jpg follows A-000002.jpg"),
        (["1.jpg", "2.jpg", "10.jpg"], "10.jpg follows 2.jpg"),
        (["a.jpg", "b.jpg", "d.jpg"], ""),
        (["0.jpg", "5.jpg", "10.jpg"], ""),  # each fifth
        (["a1.jpg", "a2.jpg", "b1.jpg"], ""),
    ],
)
def test_a_folder_with_gaps(tmp_path, names, gap):
    for name in names:
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    if gap:
        with pytest.raises(Unreadable, match=f"frames are missing: {gap}"):
            probe(tmp_path)
    else:
        assert probe(tmp_path).frames == 3


def test_empty_folder_is_unreadable(tmp_path):
    with pytest.raises(Unreadable, match="without JPEG or PNG"):
        probe(tmp_path)


def test_positions_outside_the_film_are_refused(tmp_path):
    write_video(tmp_path / "v.mp4", torch.zeros(3, 16, 16, 3, dtype=torch.uint8), 8)
    for indices in ([3], [-1], []):
        with pytest.raises(IndexError, match="frames 0 to 2"):
            read_frames(tmp_path / "v.mp4", indices)


def test_what_is_written_is_read_back(tmp_path):
    grey = torch.arange(20, 220, 5, dtype=torch.uint8)
    film = grey[:, None, None, None].expand(-1, 16, 24, 3).contiguous()
    write_video(tmp_path / "v.mp4", film, 29.97, crf=1, gop=10)
    video = probe(tmp_path / "v.mp4")
    assert (video.frames, video.width, video.height) == (40, 24, 16)
    assert video.fps == pytest.approx(29.97, abs=1e-3)
    assert (read_frames(tmp_path / "v.mp4", range(40)).int() - film.int()).abs().max() <= 2
    with av.open(str(tmp_path / "v.mp4")) as file:
        keys = [i for i, packet in enumerate(file.demux(video=0)) if packet.is_keyframe]
    assert keys == [0, 10, 20, 30]
    assert [p.name for p in tmp_path.iterdir()] == ["v.mp4"]


def test_write_leaves_nothing_half_done(tmp_path):
    def frames():
        yield av.VideoFrame(16, 16, "rgb24")
        raise OSError("the source went away")

    with pytest.raises(OSError, match="went away"):
        encode(tmp_path / "v.mp4", frames(), (16, 16), 8, 18, 30)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="even sides"):
        write_video(tmp_path / "v.mp4", torch.zeros(1, 15, 16, 3, dtype=torch.uint8), 8)
