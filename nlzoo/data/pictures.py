"""Images in, upright RGB out: from files, from tar files, or from arrays; their centre at test."""

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import functional as F

from nlzoo.data.transforms import check_crop
from nlzoo.files import Packed
from nlzoo.preprocessing import Preprocessing, Unreadable

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif", ".jp2")
)

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM", "GIF", "JPEG2000")  # no others
NARROW = 200  # times as long as wide; its short side resized to 256, the long one is not an image's


@dataclass(frozen=True, slots=True)
class Member:
    """A file inside a tar file, also inside one that is inside: where its bytes are."""

    path: str  # as if the tar file were a folder
    tar: str
    start: int
    size: int

    def __str__(self) -> str:
        return self.path

    def read_bytes(self) -> bytes:
        """All of it."""
        with Path(self.tar).open("rb") as file:
            file.seek(self.start)
            return file.read(self.size)


@dataclass(frozen=True)
class Pixels:
    """An image of a data set that comes as arrays."""

    name: str
    array: np.ndarray  # (H, W, 3) uint8

    def __str__(self) -> str:
        return self.name


Source = str | Path | Packed | Pixels


def read_image(source: Source, upright: bool = True) -> Image.Image:
    """An image as it is seen: upright (EXIF), 8 bit RGB, on white where it is transparent.

    Not `upright`: as it is stored, which is what COCO's annotations are of.

    Raises:
        Unreadable: it is none, it is damaged, or too large (`PIL.Image.MAX_IMAGE_PIXELS`).
        OSError: what it lies in cannot be read.
    """
    if isinstance(source, Pixels):
        return Image.fromarray(source.array)
    file = source if isinstance(source, str | Path) else BytesIO(source.read_bytes())
    try:
        with Image.open(file, formats=FORMATS) as image:
            if max(image.size) > NARROW * min(image.size):
                raise ValueError(f"{image.width} x {image.height} pixels are a line, no image")
            return _rgb(ImageOps.exif_transpose(image) if upright else image)
    except (OSError, ValueError, SyntaxError, TypeError, Image.DecompressionBombError) as error:
        text = getattr(error, "strerror", None) or str(error)
        reason = text.partition("<_io")[0].strip() or type(error).__name__
        reason = "not an image" if "cannot identify" in reason else reason
        raise Unreadable(f"{source}: {reason}") from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating point pixels, of unknown range: save 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bit grey, which Pillow would clip at 255
        grey = np.asarray(image).astype(np.int64).clip(0, 0xFFFF)
        bits = 8 if image.mode != "I" or grey.max() > 0xFF else 0
        return Image.fromarray((grey >> bits).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


@dataclass(frozen=True)
class CentreView:
    """The short side resized, the centre cropped: (C, H, W), or with `crops` (1, C, H, W)."""

    preprocessing: Preprocessing
    crops: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError where the crop is larger than the picture."""
        check_crop(self.preprocessing.test_crop, self.preprocessing.test_size, "test_crop")

    def __call__(self, source: Source, view: int = 0) -> tuple[Tensor, str]:
        """There is one view; a damaged image is no image."""
        pre = self.preprocessing
        image = F.center_crop(resize_short(read_image(source), pre), [pre.test_crop])
        tensor = F.pil_to_tensor(image)
        return tensor[None] if self.crops else tensor, ""


def resize_short(image: Image.Image, pre: Preprocessing) -> Image.Image:
    """The short side as in a test."""
    return F.resize(image, [pre.test_size], F.InterpolationMode(pre.interpolation))


def find_images(folder: Path) -> Iterator[str | Member]:
    """Images under a folder; a tar file is a folder of its name, and so are tar files inside it.

    Raises:
        ValueError: a damaged tar file, or a compressed one.
    """
    if folder.is_file():
        yield from _packed(str(folder))
        return
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 - a million strings
            if entry.name.startswith("."):  # what a killed writer left, a Mac's resource forks
                continue
            if entry.is_dir():
                yield from find_images(Path(entry.path))
            elif suffix in SUFFIXES:
                yield entry.path
            elif suffix == ".tar":
                yield from _packed(entry.path)


def _packed(file: str) -> Iterator[Member]:
    try:
        with tarfile.open(file, "r:") as tar:
            yield from _members(tar, file, file[: -len(".tar")], 0)
    except tarfile.TarError as error:
        raise ValueError(
            f"{file} is no tar file, or a damaged or compressed one: {error}"
        ) from error


def _members(tar: tarfile.TarFile, file: str, folder: str, start: int) -> Iterator[Member]:
    """Images of a tar file that begins at byte `start` of a file."""
    for member in tar:
        tar.members = []  # type: ignore[attr-defined]  # else it keeps all of a million
        stem, suffix = os.path.splitext(member.name)  # noqa: PTH122
        at = start + member.offset_data
        if not member.isfile() or Path(member.name).name.startswith("."):
            continue
        if suffix.lower() in SUFFIXES:
            path = os.path.normpath(os.path.join(folder, member.name))  # noqa: PTH118
            yield Member(path, file, at, member.size)
        elif suffix.lower() == ".tar":
            with tarfile.open(fileobj=tar.extractfile(member), mode="r:") as inner:
                yield from _members(inner, file, os.path.join(folder, stem), at)  # noqa: PTH118
