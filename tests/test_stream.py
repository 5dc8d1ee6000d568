"""Sets in chunks: written whole or to be gone on with, read as the files they were made of."""

import json
import os
import shutil
import signal
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from lightning import Callback
from object_store import BUCKET, own_store  # noqa: F401
from PIL import Image
from processes import Process, done
from test_programs import assert_same_end, options

from nlzoo import program
from nlzoo.data import chunks, stream
from nlzoo.data.charades import Charades
from nlzoo.data.images import Images
from nlzoo.data.kinetics import Kinetics
from nlzoo.data.sample import make_sample
from nlzoo.data.sample_images import make_images
from nlzoo.preprocessing import Preprocessing

litdata = pytest.importorskip("litdata")

SMALL = 100_000  # bytes of a chunk: about seven clips of the sample


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return make_sample(tmp_path_factory.mktemp("videos") / "set", train=24, val=7)


@pytest.fixture(scope="module")
def streamed(videos, tmp_path_factory):
    return write(videos, tmp_path_factory.mktemp("streamed") / "set")


def write(source, dest, *options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "CHUNK", SMALL)
        stream.main([str(source), str(dest), *options])
    return dest


def kinetics(path, workers=0):
    sizes = {"scale": (34, 40), "crop": 32, "test_size": 40, "test_crop": 32}
    return Kinetics(str(path), stride=1, batch_size=4, workers=workers, clips=2, **sizes)


def images(path):
    data = Images(str(path), batch_size=4, workers=0)
    data.preprocessing = Preprocessing(frames=0, crop=32, test_size=40, test_crop=32)
    return data


def assert_same_batches(data, other):
    assert data.classes == other.classes
    assert data.expected == other.expected
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        for batch, same in zip(getattr(data, loader)(), getattr(other, loader)(), strict=True):
            assert not batch[3]
            assert all(map(torch.equal, batch[:3], same[:3]))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_files(videos, streamed, workers):
    assert len(list((streamed / "chunks/train").glob("*.bin"))) > 2
    assert_same_batches(kinetics(streamed, workers), kinetics(videos))


def test_batches_are_those_of_the_images(tmp_path):
    folder = make_images(tmp_path / "images", train=12, val=6)
    (tmp_path / "packed").mkdir()
    for split, name in (("train", "train"), ("val", "validation")):
        with tarfile.open(tmp_path / "packed" / f"{name}.tar", "w") as tar:
            tar.add(folder / split, ".")
    for source in (folder, tmp_path / "packed"):
        dest = write(source, tmp_path / f"{source.name}_chunks", "--images")
        assert_same_batches(images(dest), images(folder))


def test_lists_are_those_of_the_source(videos, tmp_path):
    """Absolute paths, and files that are missing."""
    for split in ("train", "val"):
        paths = sorted((videos / split).iterdir())
        lines = [f"{tmp_path / 'set' / split / p.name} {i % 3}\n" for i, p in enumerate(paths)]
        (tmp_path / "set" / split).mkdir(parents=True)
        for path in paths[1:]:
            shutil.copy(path, tmp_path / "set" / split)
        (tmp_path / "set" / f"{split}.txt").write_text("".join(lines))
    data, other = (kinetics(p) for p in (write(tmp_path / "set", tmp_path / "c"), tmp_path / "set"))
    assert (data.expected["train"], data.found["train"]) == (24, 23)
    assert_same_batches(data, other)


def test_batches_are_those_of_charades(videos, tmp_path):
    for split, name in (("train", "train"), ("val", "test")):
        paths = sorted((videos / split).iterdir())
        rows = [f"{path.stem},c00{i % 3} 0.5 1.2,2" for i, path in enumerate(paths)]
        (tmp_path / "set/Charades").mkdir(parents=True, exist_ok=True)
        text = "\n".join(("id,actions,length", *rows))
        (tmp_path / f"set/Charades/Charades_v1_{name}.csv").write_text(text)
        shutil.copytree(videos / split, tmp_path / "set" / split)
    dest = write(tmp_path / "set", tmp_path / "chunks", "--splits", "train,test")
    sizes = {"frames": 8, "stride": 1, "crop": 32, "test_size": 40, "test_crop": 32, "clips": 2}
    data, other = (
        Charades(str(path), val="test", batch_size=4, workers=0, **sizes)
        for path in (dest, tmp_path / "set")
    )
    assert_same_batches(data, other)


def test_memory_stays(streamed):
    """300 clips decoded from chunks."""
    loader = kinetics(streamed).train_dataloader()
    resident = []
    for epoch in range(13):
        loader.sampler.set_epoch(epoch)
        for _ in loader:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
        resident.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
    assert resident[-1] - resident[2] < 8, resident  # MB; 250 clips are 25 MB


# -- writing --------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from nlzoo.data import stream
stream.CHUNK = {chunk}
replace, names = Path.replace, []
def kill(self, target):
    if str(target).endswith(".bin"):
        names.append(target)
        if len(names) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
    return replace(self, target)
Path.replace = kill
stream.main(sys.argv[1:])
"""


def test_a_killed_writer_goes_on(videos, streamed, tmp_path, capsys):
    dest = tmp_path / "set"
    killed = Process("-c", KILLED.format(chunk=SMALL), videos, dest)
    assert killed.end()[0] == -signal.SIGKILL
    there = {path: path.stat().st_ino for path in dest.glob("chunks/*/*.bin")}
    assert [path.name for path in sorted(there)] == ["chunk-0-0.bin", "chunk-0-1.bin"]
    with pytest.raises(ValueError, match="is not finished"):
        kinetics(dest)
    write(videos, dest)
    assert {path: path.stat().st_ino for path in there} == there
    assert contents(dest) == contents(streamed)
    write(videos, dest)  # finished: nothing changes
    assert contents(dest) == contents(streamed)
    assert "Next: " in capsys.readouterr().err


def contents(folder):
    files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    for name in ("chunks/train/index.json", "chunks/val/index.json"):
        files[name] = json.loads(files[name])["chunks"]  # without the time
    return files


def bad_sources(videos, dest):
    """Name, and what is said, of sources and destinations that are refused."""
    base = dest.parent
    (base / "plain").mkdir()
    shutil.copy(next((videos / "val").iterdir()), base / "plain/a.mp4")
    yield base / "plain", dest, "nothing to read in .*expected train.csv"
    (base / "frames/train/a/film").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(base / "frames/train/a/film/1.jpg")
    yield base / "frames", dest, "film is a folder of frames: make a video of it"
    (base / "outside").mkdir()
    (base / "outside/train.txt").write_text(f"{base / 'plain/a.mp4'} 0\n")
    yield base / "outside", dest, r"a.mp4 is outside .*outside: link it there"
    (base / "missing").mkdir()
    (base / "missing/train.txt").write_text("b.mp4 0\n")
    yield base / "missing", dest, r"train.txt, line 1: none of its 1 files is there"
    (base / "full").mkdir()
    (base / "full/a").touch()
    yield videos, base / "full", "full holds something else; write to another folder"
    yield videos, base / "full/a", "a holds something else"
    yield videos, videos / "chunks", "chunks is inside .*set; write to another folder"
    yield base / "nowhere", dest, "no folder '.*nowhere': name one"


def test_bad_sources_are_refused(videos, streamed, tmp_path):
    for source, dest, words in bad_sources(videos, tmp_path / "dest"):
        with pytest.raises((ValueError, OSError), match=words) as caught:
            stream.main([str(source), str(dest)])
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "dest").exists()
    with pytest.raises(ValueError, match="holds chunks of other files"):
        stream.main([str(make_sample(tmp_path / "other", 4, 4)), str(streamed)])
    with pytest.raises(ValueError, match="is a streamed set already: copy it"):
        stream.main([str(streamed), str(tmp_path / "again")])
    with pytest.raises(ValueError, match="--splits 'a/b': expected names"):
        stream.main([str(videos), str(tmp_path / "again"), "--splits", "a/b"])


def test_errors_are_one_line_and_exit_code_two(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        program.run(stream.main, [str(tmp_path), str(tmp_path / "chunks")])
    assert len(capsys.readouterr().err.splitlines()) == 1


# -- reading --------------------------------------------------------------------------------


def test_bad_sets_are_refused(streamed, tmp_path):
    def copy(name):
        return Path(shutil.copytree(streamed, tmp_path / name))

    (copy("missing") / "chunks/val/chunk-0-0.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"val/chunk-0-0.bin is missing: copy it again"):
        kinetics(tmp_path / "missing")
    chunk = copy("truncated") / "chunks/train/chunk-0-1.bin"
    os.truncate(chunk, 50_000)
    with pytest.raises(ValueError, match=r"chunk-0-1.bin has 50000 bytes instead of \d+: copy"):
        kinetics(tmp_path / "truncated")
    (copy("other") / "stream.json").write_text("[]")
    with pytest.raises(ValueError, match=r"stream.json is not of a streamed set"):
        kinetics(tmp_path / "other")
    with pytest.raises(ValueError, match="is a set of videos, not of images"):
        images(streamed)
    with pytest.raises(ValueError, match="ftp://a/b: expected a folder, or s3:// or gs://"):
        kinetics("ftp://a/b")


def test_litdata_is_optional(videos, streamed, monkeypatch):
    monkeypatch.setitem(sys.modules, "litdata", None)
    for use in (lambda: kinetics(streamed), lambda: stream.main([str(videos), "nowhere"])):
        with pytest.raises(ValueError, match=r'pip install "nlzoo\[stream\]"'):
            use()
    assert kinetics(videos).found["train"] == 24


def test_dropped_connections_change_nothing(videos, streamed, store, monkeypatch):
    monkeypatch.setattr(chunks, "PAUSE", 0.001)
    url = store.sync(streamed, "dropped")
    store.line.breaks = [0, 300]  # at once, in the head
    data = kinetics(url)
    assert store.line.broken == 2
    store.line.breaks = [0, *[6_000] * 8]  # a file is two answers, a short one and a long one
    assert_same_batches(data, kinetics(videos))
    assert (store.line.broken, store.line.breaks) == (7, [])
    assert str(data.files("val")[0]).startswith(f"{url}/val/")


def test_workers_read_from_the_store(videos, streamed, store):
    assert_same_batches(kinetics(store.sync(streamed, "workers"), workers=2), kinetics(videos))


def test_an_unreachable_store_is_said_after_retries(streamed, store, monkeypatch):
    monkeypatch.setattr(chunks, "PAUSE", 0.001)
    data = kinetics(store.sync(streamed, "unreachable"))
    store.line.breaks = [0] * 100
    before = store.line.broken
    with pytest.raises(
        OSError, match=r"chunks/train/chunk-0-0.bin cannot be read, tried 6 times in"
    ):
        data.files("train")[0].read_bytes()
    assert store.line.broken - before == chunks.TRIES
    with pytest.raises(OSError, match=r"stream.json cannot be read, tried 6 times in") as caught:
        kinetics(f"s3://{BUCKET}/unreachable")
    assert "\n" not in str(caught.value)
    store.line.breaks = []


def test_bad_chunks_of_a_store_stop_training(streamed, store, monkeypatch):
    """They are no damaged videos, which are replaced."""
    monkeypatch.setattr(chunks, "PAUSE", 0.001)
    data = kinetics(store.sync(streamed, "bad"))
    store.client.delete_object(Bucket=BUCKET, Key="bad/chunks/train/chunk-0-0.bin")
    with pytest.raises(FileNotFoundError, match=r"bad/chunks/train/chunk-0-0.bin is not there"):
        list(data.train_dataloader())
    half = (streamed / "chunks/train/chunk-0-0.bin").read_bytes()[:40_000]
    store.client.put_object(Bucket=BUCKET, Key="bad/chunks/train/chunk-0-0.bin", Body=half)
    with pytest.raises(OSError, match=r"bad/chunks/train/chunk-0-0.bin cannot be read"):
        list(data.train_dataloader())
    with pytest.raises(FileNotFoundError, match=r"s3://bucket/none/stream.json is not there"):
        kinetics(f"s3://{BUCKET}/none")


# -- programs -------------------------------------------------------------------------------


class Seen(Callback):
    """Notes which files each process was trained on; ends its process before iteration `kill`."""

    def __init__(self, file: str, kill: int = -1) -> None:
        self.file, self.kill = file, kill

    def on_train_batch_start(self, trainer, task, batch, index):
        if trainer.global_step == self.kill:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_batch_end(self, trainer, task, outputs, batch, index):
        with Path(self.file).open("a") as file:
            file.writelines(f"{trainer.current_epoch} {i}\n" for i in batch[2].tolist())


def fit(path, folder, *extra, kill=-1):
    """A training in a process of its own, its exit code, and the files of each epoch so far."""
    seen = {"file": f"{folder}.seen", "kill": kill}
    entry = {"class_path": "test_stream.Seen", "init_args": seen}
    callback = ("--trainer.callbacks+", json.dumps(entry))
    argv = [*options(path, folder), "--task.arch.dropout", "0", *callback, *extra]
    code, _, error = Process("-m", "nlzoo.fit", *argv).end()
    files = {}
    for line in Path(f"{folder}.seen").read_text().splitlines():
        epoch, index = map(int, line.split())
        files.setdefault(epoch, []).append(index)
    return code, files, error


@pytest.fixture(scope="module")
def run(videos, tmp_path_factory):
    """A training from files."""
    folder = tmp_path_factory.mktemp("runs") / "files"
    code, _, error = fit(videos, folder)
    assert code == 0, error
    return folder


@pytest.mark.slow
def test_a_killed_training_goes_on_with_other_workers(videos, streamed, store, run, tmp_path):
    """Through a line that breaks; the end is that of a training from files."""
    url = store.sync(streamed, "killed")
    store.line.breaks = [20_000] * 4
    code, files, error = fit(url, tmp_path / "run", "--data.workers", "1", kill=8)
    assert code == -signal.SIGKILL, error
    assert [len(some) for some in files.values()] == [24, 8]
    store.line.breaks = [20_000] * 4
    code, files, error = fit(url, tmp_path / "run", "--data.workers", "2", "--resume", "auto")
    assert code == 0, error
    assert [sorted(some) for some in files.values()] == [list(range(24))] * 2
    assert files[0] != files[1]
    assert_same_end(run, tmp_path / "run")


@pytest.mark.every
def test_two_ranks_share_the_files(streamed, videos, tmp_path):
    ranks = ("--trainer.devices", "2", "--trainer.strategy", "ddp_find_unused_parameters_false")
    small = ("--data.batch_size", "2", "--data.workers", "1")
    ends = []
    for path, name in ((streamed, "chunks"), (videos, "files")):
        code, files, error = fit(path, tmp_path / name, *ranks, *small)
        assert code == 0, error
        assert [sorted(some) for some in files.values()] == [list(range(24))] * 2
        ends.append(tmp_path / name)
    assert_same_end(*ends)
    checkpoint = str(ends[0] / "checkpoints/last.ckpt")
    reports = []
    for path, name, extra in ((streamed, "ranks", ranks), (videos, "one", ())):
        argv = ["--checkpoint", checkpoint, "--data", str(path), "--run", str(tmp_path / name)]
        done(Process("-m", "nlzoo.evaluate", *argv, *extra))
        reports.append(json.loads((tmp_path / name / "evaluation.json").read_text()))
    assert reports[0] == reports[1]
