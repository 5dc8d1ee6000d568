"""Every runtime under one call."""

import importlib.util
import json
import subprocess
import sys
import threading
from dataclasses import replace

import onnx
import pytest
import torch
from test_export import clips
from torch import nn

from nlzoo import create_model
from nlzoo.answers.watch import score_image, score_video, watch
from nlzoo.data.encode import write_video
from nlzoo.data.sample_images import make_images
from nlzoo.export import __main__ as program
from nlzoo.export.onnx import export_onnx
from nlzoo.export.parity import compare
from nlzoo.export.runtime import Runner
from nlzoo.models import save_model
from nlzoo.program import run


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "v.mp4"
    write_video(path, torch.randint(0, 256, (20, 64, 80, 3), dtype=torch.uint8), 10)
    return path


@pytest.mark.parametrize("runtime", ["eager", "onnxruntime", "openvino"])
def test_every_runtime_computes_the_network(exported, runtime):
    if runtime == "openvino" and not importlib.util.find_spec("openvino"):
        pytest.skip("openvino is not installed")
    source, model, path = exported
    with Runner(source if runtime == "eager" else path, runtime, threads=1) as runner:
        assert compare(model, runner, [clips(3), clips(1)]).relative_l2 <= 1e-5
        first = runner(clips(2))
        kept = first.clone()
        runner(clips(2, seed=1))
        assert torch.equal(first, kept)  # the next call does not overwrite it
        assert list(runner.run(clips(1))) == ["output"]


@pytest.mark.every
def test_compiled(exported):
    with Runner(exported[0], "compile") as runner:
        assert compare(exported[1], runner, [clips(2)]).relative_l2 <= 1e-5


def test_threads_of_the_process_stay_as_they_are(exported):
    before = torch.get_num_threads()
    with Runner(exported[0], threads=before + 1) as runner:
        runner(clips(1))
    assert torch.get_num_threads() == before


def test_one_runner_a_thread(exported):
    errors = []

    def use(runner):
        try:
            runner(clips(1))
        except RuntimeError as error:
            errors.append(str(error))

    with Runner(exported[2]) as runner:
        thread = threading.Thread(target=use, args=(runner,))
        thread.start()
        thread.join()
    assert "another thread" in errors[0]


def test_shapes_and_dtypes_are_checked_before_the_call(exported):
    with Runner(exported[2]) as runner:
        with pytest.raises(ValueError, match=r"\(1, 3, 8, 32, 32\), wanted \(batch, 3, 8, 64, 64"):
            runner(clips(1, side=32))
        with pytest.raises(ValueError, match=r"dtype torch.float64, wanted torch.float32"):
            runner(clips(1).double())
    with pytest.raises(ValueError, match="unknown runtime 'onnxrt'; did you mean 'onnxruntime'"):
        Runner(exported[2], "onnxrt")
    with pytest.raises(ValueError, match=r"'eager' cannot take \.onnx: onnxruntime or openvino"):
        Runner(exported[2], "eager")
    with pytest.raises(ValueError, match="'openvino' cannot take a network: eager or compile can"):
        Runner(torch.nn.ReLU(), "openvino")


def test_files_that_cannot_be_run(exported, tmp_path, capsys):
    (tmp_path / "text.onnx").write_text("hello")
    (tmp_path / "part.onnx").write_bytes(exported[2].read_bytes()[:5000])
    file = onnx.load(exported[2])
    onnx.save(file, tmp_path / "apart.onnx", save_as_external_data=True, location="apart.data")
    (tmp_path / "apart.data").unlink()
    file = onnx.load(exported[2])
    del file.metadata_props[:]
    onnx.save(file, tmp_path / "foreign.onnx")
    messages = {
        "none.onnx": "no file",
        "text.onnx": "not an ONNX file, or is truncated",
        "part.onnx": "not an ONNX file, or is truncated",
        "apart.onnx": "keeps its weights in apart.data, which is not beside it",
        "foreign.onnx": "--clip 32x2 --size 256 --crop 256",
    }
    for name, message in messages.items():
        with pytest.raises(SystemExit) as exit_:
            run(program.main, ["run", str(tmp_path / name), "a.mp4"])
        assert exit_.value.code == 2
        error = capsys.readouterr().err
        assert name in error
        assert message in error
        assert error.count("\n") == 1


def answers(capsys, *argv):
    program.main(["run", *map(str, argv), "--json"])
    (answer,) = json.loads(capsys.readouterr().out)
    return {top["class"]: top["score"] for top in answer["top"]}


def test_run_prints_what_predict_prints(exported, video, capsys):
    found = answers(capsys, exported[2], video)
    scores, _ = score_video(exported[1], video, 10, 1)
    assert found == pytest.approx(dict(zip("ab", scores.tolist(), strict=True)), abs=1e-5)


def test_files_of_others_run_with_what_is_told(exported, video, tmp_path, capsys):
    file = onnx.load(exported[2])
    del file.metadata_props[:]
    onnx.save(file, tmp_path / "foreign.onnx")
    (tmp_path / "names.txt").write_text("a\nb\n")
    told = ("--clip", "8x1", "--crop", "64", "--classes", tmp_path / "names.txt")
    wanted = answers(capsys, exported[2], video)
    assert answers(capsys, tmp_path / "foreign.onnx", video, *told) == pytest.approx(wanted)
    with pytest.raises(ValueError, match="leave --clip out"):
        program.main(["run", str(exported[2]), str(video), *map(str, told)])
    with pytest.raises(ValueError, match="--clip FRAMESxSTRIDE is missing"):
        program.main(["run", str(tmp_path / "foreign.onnx"), str(video), "--crop", "64"])
    with pytest.raises(ValueError, match="expected --clip FRAMESxSTRIDE"):
        program.main(["run", str(tmp_path / "foreign.onnx"), str(video), "--clip", "8"])


@pytest.mark.slow
def test_images(tmp_path, capsys):
    """The same programs: of an image, and of class folders of them."""
    data = make_images(tmp_path / "set", train=8, val=4)
    image = next((data / "val" / "same").iterdir())
    own = create_model("resnet8_cifar10").preprocessing
    seen = replace(own, test_size=40, classes=("different", "same"))
    torch.manual_seed(0)
    model = create_model("resnet8_cifar10_nl2", num_classes=2, preprocessing=seen).eval()
    save_model(model, tmp_path / "m.safetensors")
    source, path = str(tmp_path / "m.safetensors"), str(tmp_path / "m.onnx")
    program.main(["onnx", source, "--output", path])
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == f"Next: python -m nlzoo.export run {path} IMAGE"
    found, scores = answers(capsys, path, image), score_image(model, image).tolist()
    assert found == pytest.approx(dict(zip(seen.classes, scores, strict=True)), abs=1e-5)

    whole = ("--data", str(data), "--output")
    program.main(["quantize", path, *whole, str(tmp_path / "q.onnx"), "--clips", "4"])
    assert "on 4 validation images" in capsys.readouterr().out
    short = ("--rounds", "6", "--threads", "1", "--video", str(image))
    program.main(["bench", source, path, *short, *whole, str(tmp_path / "b.json")])
    rows = json.loads((tmp_path / "b.json").read_text())
    assert {row["stage"] for row in rows["stages"]} >= {"decode", "preprocess", "compute"}


class Two(nn.Module):
    """No network of nlzoo."""

    def forward(self, x):
        return x * 2.0


def test_networks_without_preprocessing_say_so(tmp_path):
    export_onnx(Two(), tmp_path / "m.onnx", shape=(2, 3, 4))
    with Runner(tmp_path / "m.onnx") as runner:
        with pytest.raises(ValueError, match="Two says nothing of videos or images"):
            watch(runner, "v.mp4", 1, 1)
        assert torch.equal(runner(torch.ones(5, 3, 4)), torch.full((5, 3, 4), 2.0))


def test_running_a_file_loads_no_network_and_no_trainer(exported, video):
    code = (
        "import sys; from nlzoo.export import __main__ as p; p.main(sys.argv[1:]);"
        "print({'lightning', 'timm', 'pytorchvideo', 'matplotlib'} & {*sys.modules})"
    )
    command = [sys.executable, "-c", code, "run", str(exported[2]), str(video), "--clips", "1"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert text.splitlines()[-1] == "set()"
