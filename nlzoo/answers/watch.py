"""A network watches one video or image: its scores over views, and where a position looks."""

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from nlzoo.answers.position import check_position
from nlzoo.data.clips import clip_at, last_start, step_of
from nlzoo.data.decode import Source, open_video
from nlzoo.data.pictures import CentreView, read_image
from nlzoo.data.pictures import Source as Picture
from nlzoo.data.pictures import resize_short as resize_image
from nlzoo.data.sampling import Sampling, SpreadClips
from nlzoo.data.transforms import EvalTransform, resize_short
from nlzoo.network import Network, device_of
from nlzoo.preprocessing import Preprocessing

At = tuple[int, ...]  # (frame, x, y) of a video, (x, y) of an image


class Watcher(Protocol):
    """A network, or an exported one."""

    @property
    def preprocessing(self) -> Preprocessing:
        """What a clip is, or an image."""

    def __call__(self, clip: Tensor, /) -> Tensor:
        """uint8 clips (B, 3, T, H, W) or images (B, 3, H, W) -> (B, K): `Preprocessing.scores`."""


def watch(
    model: Watcher, file: Any, clips: int, crops: int, picture: str = "", at: At | None = None
) -> dict[str, Any]:
    """The five classes of the highest score, what is damaged, and `picture` if one is named.

    Of many labels all whose score is above 0.5, at least five.

    Plain values, as `nlzoo.predict --json` prints them. `clips` and `crops` are of videos. Raises
    as `score_video`, `score_image`, `check_scores`, `look_at_video` and `look_at_image`.
    """
    videos = bool(model.preprocessing.frames)
    scores, damage = (
        score_video(model, file, clips, crops) if videos else (score_image(model, file), "")
    )
    check_scores(file, scores)
    names = model.preprocessing.classes or [str(k) for k in range(len(scores))]
    many = int((scores > 0.5).sum()) if model.preprocessing.multilabel else 0
    best, index = scores.topk(min(max(5, many), len(scores)))
    top = [{"class": names[k], "score": s} for k, s in zip(index, best.tolist(), strict=True)]
    result: dict[str, Any] = {"file": str(file), "top": top} | (
        {"damage": damage} if damage else {}
    )
    if picture:
        look_at = look_at_video if videos else look_at_image
        found = look_at(model, file, Path(picture), at)  # type: ignore[arg-type]
        names = ("frame", "x", "y") if videos else ("x", "y")
        result["look"] = {"picture": picture, **dict(zip(names, found, strict=True))}
    return result


def check_scores(file: Any, scores: Tensor) -> None:
    """Raise ValueError where scores (K,) are NaN, which no class is the highest of."""
    if not scores.isfinite().all():
        raise ValueError(
            f"{file}: the network's scores are not numbers: its weights have NaN or infinite "
            "values, or ones too large; give an earlier checkpoint"
        )


@torch.inference_mode()
def score_image(model: Watcher, image: Picture) -> Tensor:
    """Scores of the centre of an image: (K,) float64 on the CPU.

    Args:
        model: in evaluation mode; its `preprocessing` says what an image is.
        image: path of a file, or a member of a tar file.

    Raises:
        Unreadable: it is no image, or damaged.
    """
    view, _ = CentreView(model.preprocessing, crops=True)(image)
    return model.preprocessing.scores(model(view.to(device_of(model))).double())[0].cpu()


@torch.inference_mode()
def score_video(
    model: Watcher, video: Source, clips: int = 10, crops: int = 3
) -> tuple[Tensor, str]:
    """Softmax, mean over the views of a video, and what is damaged in it ("": nothing).

    Or sigmoid, or maximum, as `preprocessing` says.

    Args:
        model: in evaluation mode; its `preprocessing` says what a clip is.
        video: path of a file or of a folder of frames, or the bytes of a file.
        clips: evenly spread over the video.
        crops: of each clip: 3 along its longer side, or 1 (the centre).

    Returns:
        (K,) float64 on the CPU.

    Raises:
        Unreadable: no frame can be read.
        ValueError: a number below 1, or of crops that is not 1 or 3.
    """
    if clips < 1:
        raise ValueError(f"clips = {clips}: expected 1 or more")
    pre = model.preprocessing
    transform = EvalTransform(pre.test_size, pre.test_crop, crops)
    sampling = Sampling(pre.frames, pre.stride, pre.fps)
    read = SpreadClips(sampling, transform, clips, pre.segments)
    views, damage = [], ""
    for k in range(clips):
        view, new, *_ = read(video, k)
        damage = new or damage
        views.append(pre.scores(model(view.to(device_of(model))).double()).cpu())
    scores = torch.cat(views)
    return scores.amax(0) if pre.pool == "max" else scores.mean(0), damage


def look_at_video(model: Network, video: Source, picture: Path, at: At | None = None) -> At:
    """Draw where a position of a video looks, on a clip of whole frames around it.

    Args:
        model: a network with non-local blocks.
        video: path of a file or of a folder of frames, or the bytes of a file.
        picture: file to write.
        at: (frame, x, y) in the video's own frames and upright pixels; by default where the clip
            in its middle moves most.

    Returns:
        The position, its frame the one of the clip that is nearest.

    Raises:
        Unreadable: no frame can be read.
        ValueError: a position outside the video, or a network without blocks.
    """
    from nlzoo.explain import draw, look  # with Matplotlib

    pre = model.preprocessing
    with open_video(video) as file:
        step = step_of(pre.stride, file.fps, pre.fps)
        last = last_start(file.frames, pre.frames, step)
        wanted = int(at[0] - pre.frames * step / 2) if at else last // 2
        numbers = clip_at(min(max(wanted, 0), last), file.frames, pre.frames, step)
        frames = file.read(numbers).permute(0, 3, 1, 2)
        size = (file.frames, frames.shape[3], frames.shape[2])
    if at:
        check_position(_name(video), at, size)
    small = resize_short(frames, pre.test_size)
    query = None
    if at:
        frame = min(range(len(numbers)), key=lambda i: abs(numbers[i] - at[0]))
        query = frame, at[2] * small.shape[2] // size[2], at[1] * small.shape[3] // size[1]
    clip = small.transpose(0, 1)[None].to(device_of(model))
    looks = look(model, clip, query)
    draw(looks, small.permute(0, 2, 3, 1), picture, numbers=numbers)
    frame, y, x = looks[0].at
    where = at[1:] if at else (x * size[1] // small.shape[3], y * size[2] // small.shape[2])
    return numbers[frame], *where


def look_at_image(model: Network, image: Picture, picture: Path, at: At | None = None) -> At:
    """Draw where a position of an image looks.

    Args:
        model: a network with non-local blocks.
        image: path of a file.
        picture: file to write.
        at: (x, y) in its upright pixels; by default the middle.

    Returns:
        The position.

    Raises:
        Unreadable: it is no image, or damaged.
        ValueError: a position outside the image, or a network without blocks.
    """
    from nlzoo.explain import draw, look  # with Matplotlib

    whole = read_image(image)
    at = at or (whole.width // 2, whole.height // 2)
    check_position(str(image), at, whole.size)
    small = pil_to_tensor(resize_image(whole, model.preprocessing))
    y, x = (a * s // w for a, s, w in zip(at[::-1], small.shape[1:], whole.size[::-1], strict=True))
    looks = look(model, small[None].to(device_of(model)), (0, y, x))
    draw(looks, small.permute(1, 2, 0)[None], picture)
    return at


def _name(video: Source) -> str:
    return "video" if isinstance(video, bytes) else str(video)
