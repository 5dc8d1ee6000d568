"""Where the annotations and the images of a split are: COCO's folders, and others' habits."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nlzoo.data.layouts import ALIASES, Kind
from nlzoo.data.pictures import find_images

COCO_IMAGES = Kind(
    "image",
    "annotations/instances_NAME.json (person_keypoints_NAME.json) and NAME/*.jpg, as COCO has them "
    "(train2017, val2017); annotations/NAME.json, NAME.json or NAME/_annotations.coco.json with "
    "NAME/*.jpg or images/*.jpg; or a JSON file named by data.train and data.val",
    find_images,
)
PREFIXES = ("person_keypoints_", "instances_")


def find_annotations(root: Path, name: str, keypoints: bool) -> Path | None:
    """The JSON of a split, by its name or its own path."""
    if name.endswith(".json"):  # of the folder, or of where we are
        return next((p for p in (root / name, Path(name)) if p.is_file()), root / name)
    return next(filter(Path.is_file, _candidates(root, name, keypoints)), None)


def _candidates(root: Path, name: str, keypoints: bool) -> Iterator[Path]:
    aliases = next((words for words in ALIASES.values() if name in words), (name,))
    for word in (name, f"{name}2017", *aliases, *(["valid"] if name == "val" else [])):
        yield root / "annotations" / f"{PREFIXES[not keypoints]}{word}.json"
        yield root / "annotations" / f"{word}.json"
        yield root / f"{word}.json"
        yield root / word / "_annotations.coco.json"


def find_folder(root: Path, annotations: Path, images: list[dict[str, Any]]) -> Path:
    """The folder of a split's images, entries of its file: that which has the first of them."""
    word = annotations.stem
    for prefix in PREFIXES:
        word = word.removeprefix(prefix)
    folders = (root / word, root / "images" / word, root / "images", annotations.parent, root)
    here = (folder for folder in folders if images and (folder / images[0]["file_name"]).is_file())
    return next(here, next(filter(Path.is_dir, folders), root))
