"""Where a position looks, against the attention matrix written out; scores of a file over views."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from nlzoo import NonLocalBlock, create_model, ops
from nlzoo.answers.watch import look_at_video, score_video
from nlzoo.data.decode import read_frames
from nlzoo.data.encode import write_video
from nlzoo.explain import Look, _label, draw, look, most_motion
from nlzoo.networks.video import VideoResNet
from nlzoo.preprocessing import Preprocessing, Unreadable

FORMS = tuple(ops.ROUTES)


def network(form: str = "embedded_gaussian", **options: Any) -> VideoResNet:
    """Three blocks that do something, in a network of a few channels, in evaluation mode."""
    torch.manual_seed(0)
    model = create_model(
        "i3d_r18",
        width=8,
        geometry="slowfast",
        num_classes=4,
        zero_init_residual=False,
        non_local={"places": "res3:0,1 res4:0", "form": form, "zero_init": False, **options},
        preprocessing=Preprocessing(frames=4, stride=2, crop=32, test_size=32, test_crop=32),
    )
    for name, p in model.named_parameters():
        if ".non_local." in name:
            nn.init.normal_(p, std=0.3)
    return model.eval()


def clip(*size: int) -> Tensor:
    return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))


def matrix(block: NonLocalBlock, x: Tensor) -> Tensor:
    """All N x M weights of a block, from its own convolutions."""
    kernel = block.subsample
    gaussian = block.form == "gaussian"
    theta = x if gaussian else block.theta(x)
    phi = F.max_pool3d(x, kernel)
    phi = phi if gaussian else block.phi(phi)
    theta, phi = theta[0].flatten(1), phi[0].flatten(1)
    if block.form == "concatenation":
        a, b = block.w_f.chunk(2)
        return torch.relu((a @ theta)[:, None] + (b @ phi)[None]) / phi.shape[1]
    f = theta.mT @ phi
    return f / phi.shape[1] if block.form == "dot_product" else (f * block.scale).softmax(1)


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_the_attention_matrix(form: str) -> None:
    model, x = network(form), clip(8, 48, 64)
    inputs: list[Tensor] = []
    for name in ("res3.0", "res3.1", "res4.0"):
        block = model.get_submodule(f"{name}.non_local")
        block.register_forward_pre_hook(lambda m, args: inputs.append(args[0]))
    at = (5, 17, 63)
    looks = look(model, x, at)
    assert [one.block for one in looks] == ["res3.0", "res3.1", "res4.0"]
    assert [one.at for one in looks] == [at] * 3
    for one, seen in zip(looks, inputs, strict=True):
        block = model.get_submodule(f"{one.block}.non_local")
        size, grid = x.shape[2:], seen.shape[2:]
        t, y, w = (a * g // s for a, g, s in zip(at, grid, size, strict=True))
        with torch.no_grad():
            wanted = matrix(block, seen)[(t * grid[1] + y) * grid[2] + w]
        torch.testing.assert_close(one.weights, wanted)
        if "gaussian" in form:
            assert one.weights.sum().item() == pytest.approx(1, abs=1e-5)


AXIS = st.integers(1, 14).flatmap(
    lambda size: st.tuples(st.just(size), st.integers(1, size), st.integers(0, size - 1))
)


@given(st.tuples(AXIS, AXIS, AXIS))
@example(((8, 6, 4), (12, 9, 8), (14, 12, 7)))  # on the first pixel of a cell of broken size
@settings(deadline=None, max_examples=60)
def test_the_query_is_the_cell_that_holds_it(axes: Any) -> None:
    """A block after pooling to a grid."""
    size, grid, at = zip(*axes, strict=True)
    block = NonLocalBlock(1, inner=1, form="gaussian")
    model = nn.Sequential(nn.AdaptiveAvgPool3d(grid), block)
    seen: list[Tensor] = []
    block.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    (one,) = look(model, clip(*size)[:, :1], at)
    assert one.block == "1"
    t, y, x = (a * g // s for a, g, s in zip(at, grid, size, strict=True))
    values = seen[0].flatten()
    torch.testing.assert_close(one.weights, (seen[0][0, 0, t, y, x] * values).softmax(0))


@pytest.mark.parametrize("subsample", [None, 2, (2, 2, 2)])
def test_boxes_cover_the_clip(subsample: Any) -> None:
    """Each frame and pixel of the clip is in one box, and every box is one key's window."""
    model = network(subsample=subsample)
    for one in look(model, clip(8, 64, 32), (0, 0, 0)):
        assert one.boxes.shape == (len(one.weights), 6)
        covered = torch.zeros(8, 64, 32, dtype=torch.int64)
        for box in one.boxes.tolist():
            assert all(side.is_integer() for side in box)
            t0, y0, x0, t1, y1, x1 = map(int, box)
            covered[t0:t1, y0:y1, x0:x1] += 1
        assert (covered == 1).all()
    first = look(model, clip(8, 64, 32), (0, 0, 0))[0].boxes[0]
    time, space = {None: (2, 8), 2: (2, 16), (2, 2, 2): (4, 16)}[subsample]
    assert first.tolist() == [0, 0, 0, time, space, space]


def test_boxes_of_a_query_that_sees_its_own_frame() -> None:
    for one in look(network(extent="space"), clip(8, 32, 32), (5, 3, 3)):
        assert one.boxes[:, 0].unique().tolist() == [4]
        assert one.boxes[:, 3].unique().tolist() == [6]  # two frames a position after pool2


@pytest.mark.parametrize(
    ("model", "size", "at", "message"),
    [
        (
            network,
            (1, 3, 4, 32, 32),
            (4, 0, 0),
            r"\(4, 0, 0\) is outside the clip of \(4, 32, 32\)",
        ),
        (network, (1, 3, 4, 32, 32), (0, -1, 0), "is outside the clip"),
        (network, (1, 3, 4, 32, 32), (0, 0), "is outside the clip"),
        (network, (2, 3, 4, 32, 32), None, r"takes one clip .* got shape \(2, 3, 4, 32, 32\)"),
        (network, (3, 4, 32, 32), None, "takes one clip"),
        (lambda: nn.Conv3d(3, 1, 1), (1, 3, 4, 32, 32), None, "Conv3d has no non-local block"),
    ],
)
def test_wrong_queries(model: Any, size: Any, at: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        look(model(), torch.zeros(size), at)


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(fails: bool) -> None:
    model = network().train()
    model.res4.eval()
    if fails:
        model.res4[0].non_local.phi = None
    modes = [m.training for m in model.modules()]
    means = model.stem.norm.running_mean.clone()
    if fails:
        with pytest.raises(AttributeError):
            look(model, clip(4, 32, 32))
    else:
        look(model, clip(4, 32, 32))
    assert [m.training for m in model.modules()] == modes
    assert model.training
    assert not model.res4.training
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert torch.equal(model.stem.norm.running_mean, means)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_compiled_models_are_seen_through() -> None:
    torch.compiler.reset()
    model, x = network(), clip(4, 32, 32)
    wanted = look(model, x, (0, 0, 0))
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        compiled(x)
    for one, other in zip(wanted, look(compiled, x, (0, 0, 0)), strict=True):
        assert torch.equal(one.weights, other.weights)


@given(st.integers(0, 6), st.integers(8, 40), st.integers(8, 40), st.booleans())
@settings(deadline=None, max_examples=30)
def test_most_motion_finds_a_moving_square(frame: int, y: int, x: int, pixels: bool) -> None:
    """A square that jumps once, by its own side."""
    frames = torch.full((1, 3, 8, 64, 64), 100, dtype=torch.uint8)
    frames[:, :, : frame + 1, y : y + 8, x : x + 8] = 200
    frames[:, :, frame + 1 :, y : y + 8, x + 8 : x + 16] = 200
    t, cy, cx = most_motion(frames if pixels else frames.float())
    assert t == frame
    assert y <= cy <= y + 8
    assert abs(cx - (x + 8)) <= 1


def test_most_motion_of_still_clips_is_the_centre() -> None:
    assert most_motion(torch.ones(1, 3, 8, 32, 64)) == (4, 16, 32)
    assert most_motion(clip(1, 20, 10)) == (0, 10, 5)
    assert look(network(), torch.ones(1, 3, 8, 32, 64))[0].at == (4, 16, 32)


def test_strongest_keys() -> None:
    weights = torch.tensor([0.1, -5.0, 0.04, 3.0, 0.0])
    one = Look("res3.0", (0, 0, 0), weights, torch.zeros(5, 6))
    assert one.strongest(10) == [1, 3, 0]  # 0.04 is below 1 % of 5
    assert one.strongest(2) == [1, 3]


# -- pictures ---------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "jpg", "pdf"])
def test_draw_writes_one_whole_picture(tmp_path: Path, suffix: str) -> None:
    frames = torch.randint(0, 255, (8, 32, 48, 3), dtype=torch.uint8)
    looks = look(network("dot_product"), frames.permute(3, 0, 1, 2)[None], (2, 5, 40))
    path = tmp_path / "new" / f"picture.{suffix}"
    draw(looks, frames, path, numbers=range(10, 18))
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    if suffix != "pdf":
        with Image.open(path) as image:
            pixels = image.convert("RGB")
        assert pixels.width >= 240
        assert len(pixels.resize((64, 64)).getcolors(4096)) > 50
    else:
        assert path.read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("size", "least"), [((32, 32), (500, 500)), ((8, 96), (1200, 100)), ((96, 8), (500, 1000))]
)
def test_one_image_is_shown_large(tmp_path: Path, size: Any, least: Any) -> None:
    image = torch.randint(0, 255, (1, *size, 3), dtype=torch.uint8)
    weights, box = torch.ones(1), torch.tensor([[0.0, 2, 2, 1, 4, 4]])
    draw([Look("a", (0, 4, 4), weights, box)], image, tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as picture:
        assert all(least[i] <= picture.size[i] <= 1500 for i in (0, 1))


def test_blocks_of_an_image_are_three_in_a_row(tmp_path: Path) -> None:
    image = torch.randint(0, 255, (1, 32, 32, 3), dtype=torch.uint8)
    weights, box = torch.ones(1), torch.tensor([[0.0, 2, 2, 1, 4, 4]])
    looks = [Look(name, (0, 4, 4), weights, box) for name in "abcde"]
    sides = {}
    for count in (3, 4, 5):
        draw(looks[:count], image, tmp_path / "x.png")
        with Image.open(tmp_path / "x.png") as picture:
            sides[count] = picture.size
    assert sides[3][0] > 2.5 * sides[3][1]
    assert sides[4] == sides[5] == (sides[3][0], 2 * sides[3][1])


@pytest.mark.parametrize("top", [0, 40])
def test_a_weight_covers_nothing_of_its_box(top: int) -> None:
    axes = Figure(figsize=(5, 5)).subplots()
    axes.imshow(torch.zeros(100, 100))
    _label(axes, 10, top, top + 20, "0.5")
    axes.figure.canvas.draw()
    edges = axes.transData.inverted().transform(axes.texts[0].get_window_extent())[:, 1]
    assert max(edges) < top or min(edges) > top + 20


def test_the_weight_of_a_box_as_large_as_the_frame_is_in_the_frame() -> None:
    axes = Figure(figsize=(2, 2)).subplots()
    axes.imshow(torch.zeros(32, 32))
    _label(axes, 0, 0, 32, "0.5")
    axes.figure.canvas.draw()
    frame, label = axes.get_window_extent(), axes.texts[0]
    assert frame.contains(*axes.transData.transform(label.xy))  # else it is not drawn
    assert all(frame.contains(x, y) for x, y in label.get_window_extent().corners())


def test_a_failed_picture_leaves_the_old_one(tmp_path: Path) -> None:
    frames = torch.zeros(4, 32, 32, 3, dtype=torch.uint8)
    looks = look(network(), frames.permute(3, 0, 1, 2)[None])
    path = tmp_path / "picture.doc"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="doc"):
        draw(looks, frames, path)
    assert [p.name for p in tmp_path.iterdir()] == ["picture.doc"]
    assert path.read_bytes() == b"old"


# -- files ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 frames of 96 x 64 pixels; a bright square jumps at frame 9, right of the centre."""
    frames = torch.full((20, 64, 96, 3), 60, dtype=torch.uint8)
    frames += torch.arange(20, dtype=torch.uint8).view(20, 1, 1, 1) // 5
    frames[:9, 8:24, 40:56] = 250
    frames[9:, 8:24, 56:72] = 250
    path = tmp_path_factory.mktemp("films") / "film.mp4"
    write_video(path, frames, fps=25)
    return path


def by_hand(model: VideoResNet, film: Path, clips: int, crops: int) -> Tensor:
    """Mean of softmaxes: short side 32, so 48 x 32; crops 0, 8 and 16 pixels from the left."""
    scores = []
    for k in range(clips):
        positions = [(20 * k // clips + 2 * i) % 20 for i in range(4)]
        frames = read_frames(film, positions).permute(0, 3, 1, 2)
        small = F.interpolate(frames, (32, 48), mode="bilinear").transpose(0, 1)
        for left in (0, 8, 16) if crops == 3 else (8,):
            view = small[None, :, :, :, left : left + 32].contiguous()
            with torch.no_grad():
                scores.append(model(view)[0].double().softmax(0))
    return torch.stack(scores).mean(0)


@pytest.mark.parametrize(("clips", "crops"), [(1, 1), (3, 3), (2, 1)])
@pytest.mark.parametrize("as_bytes", [False, True])
def test_scores_are_the_mean_over_views(film: Path, clips: int, crops: int, as_bytes: bool) -> None:
    model = network()
    scores, damage = score_video(model, film.read_bytes() if as_bytes else film, clips, crops)
    assert damage == ""
    assert scores.shape == (4,)
    assert scores.sum().item() == pytest.approx(1)
    torch.testing.assert_close(scores, by_hand(model, film, clips, crops))


def test_scores_of_wrong_views(film: Path) -> None:
    for views, message in [((0, 3), "clips = 0"), ((1, 2), "crops = 2")]:
        with pytest.raises(ValueError, match=message):
            score_video(network(), film, *views)


@pytest.mark.parametrize("content", [b"", b"this is not a video\n" * 50])
def test_unreadable_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.mp4"
    path.write_bytes(content)
    for video in (path, tmp_path / "absent.mp4"):
        with pytest.raises(Unreadable, match=video.name) as caught:
            score_video(network(), video, 1, 1)
        assert "\n" not in str(caught.value)
        with pytest.raises(Unreadable, match=video.name):
            look_at_video(network(), video, tmp_path / "picture.png")
    assert [p.name for p in tmp_path.iterdir()] == ["broken.mp4"]


@pytest.mark.parametrize(
    ("at", "numbers", "query"),
    [  # frames of 64 x 96 pixels become 32 x 48; a clip has 4 frames, 2 apart, the query in it
        ((10, 50, 20), [6, 8, 10, 12], (2, 10, 25)),
        ((0, 0, 0), [0, 2, 4, 6], (0, 0, 0)),
        ((19, 95, 63), [12, 14, 16, 18], (3, 31, 47)),
        ((11, 1, 1), [7, 9, 11, 13], (2, 0, 0)),
    ],
)
def test_positions_of_a_file_reach_the_network(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: Any, numbers: Any, query: Any
) -> None:
    model, seen = network(), {}

    def spy(looks: Any, frames: Tensor, path: Path, **options: Any) -> None:
        seen.update(looks=looks, frames=frames, path=path, **options)

    monkeypatch.setattr("nlzoo.explain.draw", spy)
    assert look_at_video(model, film, tmp_path / "x.png", at) == (numbers[query[0]], *at[1:])
    frames = read_frames(film, numbers).permute(0, 3, 1, 2)
    small = F.interpolate(frames, (32, 48), mode="bilinear")
    assert seen["numbers"] == numbers
    assert seen["path"] == tmp_path / "x.png"
    assert torch.equal(seen["frames"], small.permute(0, 2, 3, 1))
    assert [one.at for one in seen["looks"]] == [query] * 3
    wanted = look(model, small.transpose(0, 1)[None], query)
    assert all(
        torch.equal(a.weights, b.weights) for a, b in zip(seen["looks"], wanted, strict=True)
    )


def test_a_picture_of_where_the_film_moves_most(film: Path, tmp_path: Path) -> None:
    frame, x, y = look_at_video(network(), film, tmp_path / "picture.png")
    assert frame == 8  # of 6, 8, 10, 12, the last one before the jump
    assert (40 <= x <= 72, 8 <= y <= 32) == (True, True)
    with Image.open(tmp_path / "picture.png") as image:
        assert min(image.size) > 100


@pytest.mark.parametrize("at", [(20, 0, 0), (0, 96, 0), (0, 0, 64), (-1, 0, 0), (0, 0, -1)])
def test_positions_outside_of_the_file(film: Path, tmp_path: Path, at: Any) -> None:
    message = r"film\.mp4: FRAME,X,Y = .* is outside: it has 20 frames, 96 columns, 64 rows"
    with pytest.raises(ValueError, match=message):
        look_at_video(network(), film, tmp_path / "picture.png", at)
    assert not list(tmp_path.iterdir())
