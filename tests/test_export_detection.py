"""Detectors as graphs of fixed sizes, against torchvision's own."""

import json

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from processes import Process, done
from torch import nn
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign, batched_nms

from nlzoo import NonLocalBlock, create_model
from nlzoo.data.sample_coco import make_coco
from nlzoo.export import __main__ as program
from nlzoo.export.canvas import Canvas, detections
from nlzoo.export.detection import StaticDetector
from nlzoo.export.eager import OnCanvas
from nlzoo.export.matching import compare_detections, draw_canvases
from nlzoo.export.onnx import export_onnx
from nlzoo.export.parity import ToleranceError
from nlzoo.export.roi_align import RoIAlign, table_of
from nlzoo.export.runtime import Runner
from nlzoo.export.source import load_network
from nlzoo.export.suppress import ROUNDS, suppress
from nlzoo.export.tensorrt import build_engine
from nlzoo.models import save_model

HEIGHT, WIDTH = 160, 192
FULL, PADDED, LOW = (HEIGHT, WIDTH), (143, 133), (65, WIDTH)
SIZES = [FULL, PADDED, LOW]
RCNN = {
    "rpn_pre_nms_top_n_test": 200,
    "rpn_post_nms_top_n_test": 100,
    "box_detections_per_img": 20,
    "box_score_thresh": 0.3,
}
SMALL = {
    "channels": 16,
    "hidden": 32,
    "head": [16, 16, 16, 16],
    "anchors": [16, 32, 48, 64, 96],
    "canonical": 56,
    "min_size": 144,
    "max_size": 190,
    "trainable": 5,
    "rcnn": RCNN,
}
NAMES = {
    "faster_rcnn_resnet18_fpn": {},
    "mask_rcnn_resnet18_fpn": {"norm": "frozen", "eps": 0.0},
    "mask_rcnn_resnet18_fpn_nl1": {"key_mask": True},
    "mask_rcnn_resnet18_fpn_v2_nl1": {},
    "keypoint_rcnn_resnet18_fpn_nl4head_nl1": {"keypoints": 7},
}


def detector(name, options=None, seed=0):
    """Random weights, statistics too, that find something; blocks say something."""
    options = dict(options or {})
    block = {"key_mask": True} if options.pop("key_mask", False) else None
    torch.manual_seed(seed)
    model = create_model(name, num_classes=4, non_local=block, **SMALL, **options).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d):
            module.running_var.uniform_(0.8, 1.5)
            module.running_mean.normal_(std=0.1)
        if isinstance(module, NonLocalBlock):
            nn.init.normal_(module.out.weight, std=module.inner**-0.5)
    heads = model.roi_heads
    spread(model, {model.rpn.head.cls_logits: 2.0, model.rpn.head.bbox_pred: 0.2})
    spread(model, {heads.box_predictor.cls_score: 1.5, heads.box_predictor.bbox_pred: 0.5})
    return model


@torch.no_grad()
def spread(model, layers):
    """Scale the layers to outputs of these standard deviations."""
    found = {}
    handles = [
        layer.register_forward_hook(lambda layer, _, y: found.setdefault(layer, []).append(y.std()))
        for layer in layers
    ]
    OnCanvas(model, FULL)(**canvas())
    for handle in handles:
        handle.remove()
    for layer, wanted in layers.items():
        layer.weight.mul_(wanted / max(found[layer]))


def canvas(size=FULL, seed=0, batch=1):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(batch, 3, HEIGHT, WIDTH, generator=generator)
    return {"images": images, "sizes": torch.tensor([size] * batch, dtype=torch.float32)}


def same(one, two, masks=0.99):
    """Of two images' detections: as many, of the same labels, at the same places."""
    assert torch.equal(one["labels"], two["labels"])
    assert (one["boxes"] - two["boxes"]).abs().max() < 1e-3
    assert (one["scores"] - two["scores"]).abs().max() < 1e-5
    if "masks" in one:
        a, b = (paste_masks_in_image(x["masks"], x["boxes"], FULL) > 0.5 for x in (one, two))
        both, either = (a & b).sum((1, 2, 3)), (a | b).sum((1, 2, 3))
        assert (both >= masks * either).all()
    if "keypoints" in one:
        assert (one["keypoints"] - two["keypoints"]).abs().max() < 1e-2


@torch.no_grad()
@pytest.mark.parametrize(("name", "options"), NAMES.items())
def test_equals_torchvision_on_the_same_canvas(name, options):
    model = detector(name, options)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    static, eager = StaticDetector(model, FULL), OnCanvas(model, FULL)
    for seed, size in enumerate(SIZES):
        inputs = canvas(size, seed)
        ours, theirs = static(**inputs), eager(**inputs)
        number = int(theirs["num"])
        assert 0 < number == int(ours["num"])
        assert ours["exact"]
        same(detections(theirs, 0, number), detections(ours, 0, number))
        assert [name for name in static.outputs if name in ours] == list(ours)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key])


@torch.no_grad()
def test_images_of_a_batch_are_alone():
    model = detector("keypoint_rcnn_resnet18_fpn_nl1", {"keypoints": 7})
    static, two = StaticDetector(model, FULL), canvas(batch=2)
    two["sizes"][1] = torch.tensor(PADDED)
    together = static(**two)
    for i in range(2):
        alone = static(two["images"][i : i + 1], two["sizes"][i : i + 1])
        one, other = (detections(x, j, 20) for x, j in ((together, i), (alone, 0)))
        same(one, other)


@torch.no_grad()
@pytest.mark.parametrize("size", [FULL, (0, 0)])
def test_images_in_which_nothing_is(size):
    model = detector("mask_rcnn_resnet18_fpn")
    model.roi_heads.box_predictor.cls_score.bias[0] += 20
    inputs = canvas(size)
    ours, theirs = StaticDetector(model, FULL)(**inputs), OnCanvas(model, FULL)
    assert ours["num"].tolist() == [0]
    assert ours["exact"]
    assert all(x.isfinite().all() for x in ours.values())
    if size != FULL:  # which torchvision itself does not take
        return
    assert theirs(**inputs)["num"].tolist() == [0]
    found = Canvas(model.preprocessing, (1, 3, *FULL)).take(ours, [FULL], [(80, 96)])[0]
    assert [len(x) for x in found.values()] == [0] * 4
    assert found["masks"].shape == (0, 1, 80, 96)


@torch.no_grad()
def test_too_many_candidates_are_told(monkeypatch):
    """With 30 of them, all above the threshold, of which suppression leaves fewer than 20."""
    model = detector("faster_rcnn_resnet18_fpn")
    model.roi_heads.score_thresh, model.roi_heads.nms_thresh = 0.0, 0.1
    monkeypatch.setattr("nlzoo.export.detection.CANDIDATES", 30)
    outputs = StaticDetector(model, FULL)(**canvas())
    assert outputs["num"] < 20
    assert not outputs["exact"]
    with pytest.warns(UserWarning, match="some detections may be missing"):
        Canvas(model.preprocessing, (1, 3, *FULL)).take(outputs, [FULL], [FULL])


# -- its parts ------------------------------------------------------------------------------


def random_boxes(generator, number, spread):
    corners = torch.rand(number, 2, generator=generator) * spread
    return torch.cat([corners, corners + torch.rand(number, 2, generator=generator) * 30], 1)


@pytest.mark.parametrize("labels", [None, 3])
def test_suppression_is_torchvisions(labels):
    generator = torch.Generator().manual_seed(0)
    for number, spread, threshold in [(1, 9, 0.5), (80, 20, 0.5), (200, 60, 0.7), (150, 200, 0.3)]:
        boxes = random_boxes(generator, number, spread)
        boxes[number // 2 :: 9] = 0  # empty
        boxes[1::7] = boxes[0]  # and alike
        valid = torch.rand(number, generator=generator) > 0.2
        kinds = torch.randint(0, labels or 1, (number,), generator=generator)
        scores = torch.arange(number, 0, -1.0)
        rows = valid.nonzero().flatten()
        wanted = rows[batched_nms(boxes[rows], scores[rows], kinds[rows], threshold)]
        given = kinds[None] if labels else None
        kept, settled = suppress(boxes[None], valid[None], threshold, given)
        assert kept[0].nonzero().flatten().tolist() == sorted(wanted.tolist())
        assert settled.all()


def test_chains_that_are_too_long_are_told():
    """Each box suppresses the next one only: every second is kept."""
    start = torch.arange(4 * ROUNDS) * 3.0
    boxes = torch.stack([start, start * 0, start + 10, start * 0 + 10], 1)
    kept, settled = suppress(boxes[None], torch.ones(1, len(boxes), dtype=torch.bool), 0.5)
    right = (torch.arange(len(boxes)) % 2 == 0)[None]
    assert torch.equal(kept[:, :ROUNDS], right[:, :ROUNDS])
    assert torch.equal(kept[settled], right[settled])
    assert settled.any()
    assert not settled.all()


@pytest.mark.parametrize(("bins", "canonical"), [(7, 224), (14, 56)])
def test_roi_align_is_torchvisions(bins, canonical):
    generator = torch.Generator().manual_seed(0)
    sizes = [(HEIGHT >> i, WIDTH >> i) for i in range(2, 6)]
    maps = [torch.randn(2, 5, *size, generator=generator) for size in sizes]
    pool = MultiScaleRoIAlign(list("0123"), bins, 2, canonical_scale=canonical)
    boxes = random_boxes(generator, 60, 150).view(2, 30, 4)
    boxes[:, :5] *= 1.2  # beyond the image
    boxes[:, 5:8] = 0
    boxes[:, 8:12, 2:] = boxes[:, 8:12, :2]  # empty
    boxes[:, 12:15] = torch.tensor([0.0, 0, WIDTH, HEIGHT])
    boxes[:, 15:18] *= torch.tensor([0.1, 0.1, 1, 1])
    wanted = pool(dict(zip("0123", maps, strict=True)), list(boxes), [FULL, FULL])
    found = RoIAlign(pool, sizes)(table_of(maps), boxes)
    assert (found - wanted).abs().max() < 1e-5


# -- the host's part ------------------------------------------------------------------------


def test_a_runner_is_called_like_the_network(tmp_path):
    """The canvas is the one that the network itself puts such an image on."""
    model = detector("mask_rcnn_resnet18_fpn_nl1")
    save_model(model, tmp_path / "m.safetensors")
    image = torch.randint(0, 256, (3, 120, 150), dtype=torch.uint8)
    with torch.no_grad(), Runner(tmp_path / "m.safetensors", shape=(1, 3, 160, 192)) as runner:
        one, two = model([image])[0], runner([image])[0]
    assert len(one["labels"])
    assert {k: v.shape for k, v in one.items()} == {k: v.shape for k, v in two.items()}
    assert torch.equal(one["labels"], two["labels"])
    assert (one["boxes"] - two["boxes"]).abs().max() < 1e-3
    assert (one["scores"] - two["scores"]).abs().max() < 1e-5


def test_what_does_not_fit_on_a_canvas():
    pre = detector("faster_rcnn_resnet18_fpn").preprocessing
    with pytest.raises(
        ValueError, match=r"190 x 95 pixels, .* of 160 x 192: .*--shape 1,3,192,192"
    ):
        Canvas(pre, (1, 3, *FULL)).put([torch.zeros(3, 100, 50)])
    with pytest.raises(ValueError, match="2 images at once: the file takes 1"):
        Canvas(pre, (1, 3, *FULL)).put([torch.zeros(3, 9, 9)] * 2)
    _, spec = load_network(detector("faster_rcnn_resnet18_fpn"))
    assert spec.shape == (1, 3, 192, 192)  # takes any image


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dynamic": ["height"]}, "height of a detector's canvas cannot be free"),
        ({"shape": (1, 3, 100, 180)}, "a canvas of 100 x 180 pixels: give multiples of 32"),
        (
            {"shape": (1, 3, 64, 32)},
            "no image fits on a canvas of 64 x 32 .*; give --shape 1,3,160,192",
        ),
        ({"shape": (3, 128, 128)}, r"give \(batch, 3, height, width\)"),
        ({"layout": "clip"}, "is a detector: leave layout and islands as they are"),
    ],
)
def test_wishes_that_a_detector_cannot_have(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        export_onnx(detector("faster_rcnn_resnet18_fpn"), tmp_path / "m.onnx", **options)
    assert not [*tmp_path.iterdir()]


@torch.no_grad()
def test_other_detections_are_out_of_tolerance():
    model = detector("faster_rcnn_resnet18_fpn")
    _, spec = load_network(model, (1, 3, *FULL))
    inputs, one = draw_canvases(spec), OnCanvas(model, FULL)
    equal = compare_detections(lambda x: one(**x), lambda x: one(**x), inputs)
    equal.check(["fp32"])
    assert (equal.top1_agreement, equal.relative_l2, equal.max_pixels) == (1, 0, 0)
    assert equal.detections > 10
    model.roi_heads.box_predictor.bbox_pred.weight.mul_(-1)
    other = OnCanvas(detector("faster_rcnn_resnet18_fpn"), FULL)
    with pytest.raises(ToleranceError, match="with 95% in both"):
        compare_detections(lambda x: one(**x), lambda x: other(**x), inputs).check(["fp32"])


# -- files ----------------------------------------------------------------------------------


@pytest.mark.every
@pytest.mark.parametrize("name", NAMES)
def test_files_and_engines(tmp_path, name):
    """On ONNX Runtime; engines are built, which needs no GPU."""
    model, path = detector(name, NAMES[name]), tmp_path / "m.onnx"
    parity = export_onnx(model, path, shape=(1, 3, *FULL))
    assert parity.top1_agreement == 1
    assert parity.max_pixels < 1e-3
    assert parity.max_score < 1e-5
    eager = OnCanvas(model, FULL)
    with torch.no_grad(), Runner(path) as runner:
        for seed, size in enumerate(SIZES):
            inputs = canvas(size, seed)
            number, outputs = int(eager(**inputs)["num"]), runner.run(inputs)
            assert 0 < number == int(outputs["num"])
            same(*(detections(x, 0, number) for x in (eager(**inputs), outputs)))
    nodes = {node.op_type for node in onnx.load(path).graph.node}
    assert not nodes & {"NonMaxSuppression", "RoiAlign", "NonZero", "Loop", "If"}
    pytest.importorskip("tensorrt_rtx")
    build_engine(path, tmp_path / "m.engine", backend="tensorrt_rtx")


@pytest.mark.every
@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_half_precision_is_of_the_backbone(tmp_path, norm):
    model = detector("mask_rcnn_resnet18_fpn_nl1", {"norm": norm, "key_mask": True})
    parity = export_onnx(model, tmp_path / "m.onnx", precision="fp16", raw=True)
    assert parity.relative_l2 < 2e-2
    graph = onnx.load(tmp_path / "m.onnx").graph
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert {x.type.tensor_type.elem_type for x in graph.output[:2]} == {onnx.TensorProto.FLOAT}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The sample's set, and a network that is trained on it: minutes."""
    folder = tmp_path_factory.mktemp("trained")
    root = make_coco(folder / "coco")
    recipe = ["--recipe", "mask_rcnn_r50_nl_coco", "--recipe", "_masks_sample"]
    run = ["--data", str(root), "--run", str(folder / "run"), "--data.workers", "0"]
    run += ["--trainer.max_epochs", "10"]  # of 20: half as good, as soon
    done(Process("-m", "nlzoo.fit", *recipe, *run))
    return root, folder / "run/checkpoints/best.ckpt", folder


@pytest.mark.every
def test_programs_on_the_trained_sample(trained, capsys):
    """The file, network and AP are the same; so are the answers, and what int8 loses is told."""
    root, checkpoint, folder = trained
    path, other = str(folder / "m.onnx"), str(folder / "q.onnx")

    def call(*words):
        program.main([*map(str, words)])
        return capsys.readouterr().out

    assert "100.0% of 300 detections in both" in call("onnx", checkpoint, "--output", path)
    assert "100.0% of 300 detections in both" in call("parity", checkpoint, path)
    short = ("--rounds", 6, "--threads", 1, "--video", root / "val2017/000000000001.png")
    call("bench", checkpoint, path, "--data", root, *short, "--output", folder / "b.json")
    eager, exported = json.loads((folder / "b.json").read_text())["rows"]
    for name in ("box AP", "mask AP"):
        assert f"{eager[name]:.3f}" == f"{exported[name]:.3f}"
        assert exported[name] > 0.2
    call("report", folder / "b.json", "--output", folder / "b.html")
    assert "mask AP" in (folder / "b.html").read_text()
    images = sorted((root / "val2017").iterdir())[:4]
    draw = ("--draw", folder / "drawn", "--coco", folder / "found.json")
    answers = json.loads(call("run", path, *images, "--json", *draw))
    with Runner(checkpoint) as runner:
        for image, answer in zip(images, answers, strict=True):
            pixels = torch.from_numpy(np.array(Image.open(image))).movedim(-1, 0)
            found = runner([pixels])[0]["scores"]
            assert [x["score"] for x in answer["top"]] == pytest.approx(
                found[found > 0.5].tolist(), abs=1e-5
            )
    assert len([*(folder / "drawn").iterdir()]) == 4
    assert len(json.loads((folder / "found.json").read_text())["images"]) == 4
    assert "does not build" not in call("check", path, "--target", "ort")
    said = call("quantize", path, "--output", other, "--data", root, "--clips", 16)
    assert "mask AP" in said
    assert "before" in said


@pytest.mark.every
@torch.no_grad()
def test_the_trained_sample_equals_torchvision(trained):
    root, checkpoint, _ = trained
    model, spec = load_network(checkpoint)
    side = spec.shape[2:]
    static, eager, put = (
        StaticDetector(model, side),
        OnCanvas(model, side),
        Canvas(spec.preprocessing, spec.shape),
    )
    counts = []
    for image in sorted((root / "val2017").iterdir()):
        pixels = torch.from_numpy(np.array(Image.open(image))).movedim(-1, 0)
        inputs, _ = put.put([pixels])
        ours, theirs = static(**inputs), eager(**inputs)
        assert ours["num"] == theirs["num"]
        counts.append(int(ours["num"]))
        same(*(detections(x, 0, counts[-1]) for x in (theirs, ours)))
    assert max(counts) > 1
