import os
from concurrent.futures import as_completed
from pathlib import Path

import av
import pytest
import torch

from nlzoo import program
from nlzoo.data import prepare
from nlzoo.data.decode import open_video, probe, read_frames
from nlzoo.data.encode import write_video
from nlzoo.data.kinetics import Kinetics
from nlzoo.data.layouts import Files
from nlzoo.data.transforms import resize_short

SHARED = Path(os.environ.get("NLZOO_SHARED", Path(__file__).parent.parent / ".." / "shared"))
CLIPS = SHARED / "data" / "video_clips"
TURNED = CLIPS / "decord_video_90.mov"


def film(frames=40, height=48, width=64):
    """A bright square that moves over a dark ground."""
    clip = torch.full((frames, height, width, 3), 30, dtype=torch.uint8)
    for i, frame in enumerate(clip):
        frame[8:24, i : i + 16] = 200
    return clip


@pytest.fixture
def source(tmp_path):
    root = tmp_path / "raw"
    for path in ("train/a/one.mp4", "train/b/two.mp4", "val/a/three.mp4"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        write_video(root / path, film(), 10, gop=250)
    (root / "classes.txt").write_text("a\nb\n")
    (root / "train.txt").write_text(f"train/a/one.mp4 0\n{root}/train/b/two.mp4 b\n")
    return root


def run(*argv):
    try:
        program.run(prepare.main, [str(a) for a in (*argv, "--workers", 1)])
    except SystemExit as exit_:
        return exit_.code
    return 0


def test_a_set_is_prepared_and_read_as_before(source, tmp_path, capsys):
    dest = tmp_path / "fast"
    assert run(source, dest, "--size", 24, "--gop", 10) == 0
    before = read_frames(source / "train/a/one.mp4", range(40)).float()
    after = read_frames(dest / "train/a/one.mp4", range(40))
    assert after.shape == (40, 24, 32, 3)
    small = before.unflatten(1, (24, 2)).unflatten(3, (32, 2)).mean((2, 4))
    assert (after - small).abs().mean() < 6
    video = probe(dest / "train/a/one.mp4")
    assert (video.frames, video.fps) == (40, 10)
    with av.open(str(dest / "train/a/one.mp4")) as file:
        packets = [p for p in file.demux(video=0) if p.size]
    assert [i for i, p in enumerate(packets) if p.is_keyframe] == [0, 10, 20, 30]
    assert all(p.pts == p.dts for p in packets)  # no B-frames
    data = Kinetics(str(dest), crop=16, scale=[24, 24], test_size=24, test_crop=24)
    assert data.found == {"train": 2, "val": 1, "test": 1}
    assert all(path.startswith(str(dest)) for path in data.files("train"))
    times = {path: path.stat().st_mtime_ns for path in dest.rglob("*.mp4")}
    (dest / "val/a/three.mp4").unlink()
    assert run(source, dest, "--size", 24) == 0  # goes on: only what is not there
    assert len(list(dest.rglob("*.mp4"))) == 3
    assert all(
        path.stat().st_mtime_ns == time for path, time in times.items() if path.stem != "three"
    )
    assert not list(dest.rglob("*.part*"))


def test_damaged_files_are_named_and_the_others_prepared(source, tmp_path, capsys):
    (source / "val/a/empty.mp4").touch()
    (source / "val/a/three.mkv").write_bytes((source / "val/a/three.mp4").read_bytes())
    assert run(source, tmp_path / "fast", "--size", 24) == 1
    lines = (tmp_path / "fast" / "bad_files.txt").read_text().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"{source}/val/a/empty.mp4\t")
    assert "takes the same name" in lines[1]
    assert "empty.mp4: " in capsys.readouterr().err
    assert not (tmp_path / "fast/val/a/empty.mp4").exists()
    assert (tmp_path / "fast/val/a/three.mp4").exists()


def test_nothing_is_enlarged_and_odd_sides_become_even(tmp_path):
    write_video(tmp_path / "in.mp4", film(5, 22, 30), 10)
    assert prepare.prepare_video(tmp_path / "in.mp4", tmp_path / "o.mp4", prepare.Encoding()) == ""
    video = probe(tmp_path / "o.mp4")
    assert (video.width, video.height) == (30, 22)
    encoding = prepare.Encoding(size=15)
    assert prepare.prepare_video(tmp_path / "in.mp4", tmp_path / "p.mp4", encoding) == ""
    assert (probe(tmp_path / "p.mp4").width, probe(tmp_path / "p.mp4").height) == (20, 14)


@pytest.mark.skipif(not TURNED.is_file(), reason=f"no {TURNED}")
def test_turned_videos_are_written_upright(tmp_path):
    assert prepare.prepare_video(TURNED, tmp_path / "o.mp4", prepare.Encoding(crf=1)) == ""
    assert probe(TURNED).rotation == 270
    assert probe(tmp_path / "o.mp4").rotation == 0
    before, after = (read_frames(path, range(3)) for path in (TURNED, tmp_path / "o.mp4"))
    small = resize_short(before.permute(0, 3, 1, 2), 256)[..., :454, :]
    assert (after.permute(0, 3, 1, 2)[..., : small.shape[-2], :].float() - small).abs().mean() < 6


def assert_same_colours(source, folder, within=1):
    assert prepare.prepare_video(source, folder / "o.mp4", prepare.Encoding(720, crf=1)) == ""
    before, after = (read_frames(path, range(3)).float() for path in (source, folder / "o.mp4"))
    assert (after - before).abs().mean() < within


@pytest.mark.parametrize("name", ["bt601_full_range", "bt601_limited_range", "bt709_full_range"])
def test_colours_stay(tmp_path, name):
    path = CLIPS / f"{name}.mp4"
    if not path.is_file():
        pytest.skip(f"no {path}")
    assert_same_colours(path, tmp_path)


@pytest.mark.parametrize("matrix", [1, 6, 9])  # BT.709, BT.601, BT.2020
@pytest.mark.parametrize("range_", [1, 2])  # limited, full
def test_colours_of_any_tags_stay(tmp_path, matrix, range_):
    ramp = torch.arange(0, 256, 4).expand(48, 64)
    picture = torch.stack([ramp, ramp.flip(1), torch.full_like(ramp, 90)], -1).byte()
    with av.open(str(tmp_path / "in.mp4"), "w") as file:
        stream = file.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, range_
        for i in range(3):
            frame = av.VideoFrame.from_ndarray(picture.numpy(), format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_color_range=range_)
            frame.pts = i
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    assert_same_colours(tmp_path / "in.mp4", tmp_path)


def test_pictures_of_rgb_are_not_tagged_as_rgb(tmp_path):
    with av.open(str(tmp_path / "in.mov"), "w") as file:
        stream = file.add_stream("png", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb24"
        for i, picture in enumerate(film(3)):
            frame = av.VideoFrame.from_ndarray(picture.numpy(), format="rgb24")
            frame.pts = i
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    assert_same_colours(tmp_path / "in.mov", tmp_path, within=2)  # halved chroma
    with av.open(str(tmp_path / "o.mp4")) as file:
        assert file.streams.video[0].codec_context.colorspace == 2  # unspecified


def test_lists_follow_their_videos(tmp_path):
    raw, fast = tmp_path / "raw", tmp_path / "fast"
    (raw / "annotations").mkdir(parents=True)
    videos = [raw / name for name in ("a b.webm", "c.AVI", "d.mp4.avi", "annotations/e.mkv")]
    for path in (*videos, raw / "x.avid", tmp_path / "other.avi"):
        path.touch()
    text = '"a b.webm",0\n{}/c.AVI 1\nd.mp4.avi\t2\nx.avid 3\n../other.avi 4\ngone.avi 5\n'
    (raw / "train.csv").write_text(text.format(raw))
    (raw / "annotations" / "val.txt").write_text("e.mkv 0")
    prepare.copy_lists(Files(raw), fast, videos)
    want = '"a b.mp4",0\n{}/c.mp4 1\nd.mp4.mp4\t2\nx.avid 3\n{}/other.avi 4\ngone.avi 5\n'
    assert (fast / "train.csv").read_text() == want.format(fast, tmp_path)
    assert (fast / "annotations" / "val.txt").read_text() == "e.mp4 0"


def test_bad_arguments_end_in_one_line_and_code_2(source, tmp_path, capsys):
    (tmp_path / "nothing").mkdir()
    (tmp_path / "file").touch()
    for argv, message in [
        ((tmp_path / "absent", tmp_path / "fast"), "no folder"),
        ((tmp_path / "nothing", tmp_path / "fast"), "holds no video file"),
        ((source, source / "fast"), "is inside"),
        ((source, tmp_path / "file"), "file"),
        ((source, tmp_path / "fast", "--crf", 99), "--crf is 0 to 51"),
    ]:
        assert run(*argv) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "fast").exists()


def damage_tail(path):
    """Frame 25 and what follows it."""
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as file:
        packets = [(p.pos, p.size) for p in file.demux(video=0) if p.size]
    start, size = packets[25]
    data[start : start + size] = b"\xff" * size
    path.write_bytes(data)


@pytest.mark.slow
def test_damage_is_remembered_until_its_source_is_done_again(source, tmp_path, monkeypatch):
    dest, tail, empty = tmp_path / "fast", source / "train/b/two.mp4", source / "val/a/empty.mp4"
    damage_tail(tail)
    empty.touch()
    assert run(source, dest, "--size", 24) == 1
    text = (dest / "bad_files.txt").read_text()
    assert [line.partition("\t")[0] for line in text.splitlines()] == [str(tail), str(empty)]
    monkeypatch.chdir(tmp_path)
    assert run("raw", dest, "--size", 24) == 1  # the same set by another name
    assert (dest / "bad_files.txt").read_text() == text
    write_video(empty, film(), 10)
    assert run(source, dest, "--size", 24) == 1
    assert (dest / "bad_files.txt").read_text() == text.splitlines(keepends=True)[0]
    write_video(tail, film(), 10)
    (dest / "train/b/two.mp4").unlink()
    assert run(source, dest, "--size", 24) == 0
    assert not (dest / "bad_files.txt").exists()


def test_finished_targets_are_no_jobs(source, tmp_path, monkeypatch):
    assert run(source, tmp_path / "fast", "--size", 24) == 0
    (tmp_path / "fast/val/a/three.mp4").unlink()
    jobs = []
    monkeypatch.setattr(prepare, "_run", lambda todo, *_: jobs.extend(todo.values()))
    assert run(source, tmp_path / "fast", "--size", 24) == 0
    assert jobs == [source / "val/a/three.mp4"]


def test_damage_is_written_when_interrupted(source, tmp_path, monkeypatch):
    def interrupted(running):
        yield next(as_completed(running))
        raise KeyboardInterrupt

    damage_tail(source / "train/a/one.mp4")
    monkeypatch.setattr(prepare, "as_completed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare(source, tmp_path / "fast", prepare.Encoding(24), 1)
    assert str(source / "train/a/one.mp4") in (tmp_path / "fast/bad_files.txt").read_text()


def test_damaged_tail_gives_its_good_frames(tmp_path):
    write_video(tmp_path / "bad.mp4", film(), 10)
    damage_tail(tmp_path / "bad.mp4")
    reason = prepare.prepare_video(tmp_path / "bad.mp4", tmp_path / "o.mp4", prepare.Encoding())
    assert "Invalid data" in reason
    with open_video(tmp_path / "o.mp4") as video:
        assert video.frames == 25
