"""Where a network's weights are: published, of timm, or in a file."""

from dataclasses import dataclass
from pathlib import Path

from nlzoo.names import nearest
from nlzoo.registry import DETECTORS, FOLDED, IMAGE, VIDEO, base_of, builder_of, is_timm
from nlzoo.weights.load import WeightFile, read_weights
from nlzoo.weights.torchvision import as_detector
from nlzoo.weights.zoo import Entry, fetch_entry, find, read_zoo


@dataclass(frozen=True)
class Source:
    """What is to be built, and of what.

    Attributes:
        name: of the network, without a tag.
        file: its weights.
        entry: the row of `zoo.csv` that the name or the file is of.
        timm: the name of ImageNet weights of timm's: its own, of its backbone, or to inflate.
    """

    name: str
    file: WeightFile | None = None
    entry: Entry | None = None
    timm: str = ""


def find_source(name: str, pretrained: bool | str | Path) -> Source:
    """What `nlzoo.models.create_model` means by its first two arguments; downloads what it must.

    Raises:
        ValueError: an unknown name or tag, weights of another network, or nothing is published.
        FileNotFoundError: no such file.
        OSError: a download failed.
    """
    named = find(name) if "." in name and not is_timm(name) else None
    if named and not named.model:
        raise ValueError(f"{named.name} cannot be built: {named.reason}")
    model = named.model if named else name
    builder_of(model)  # there is such a network
    if str(pretrained).startswith("timm/") or (pretrained is True and is_timm(model)):
        return Source(model, None, named, _of_timm(model, pretrained))
    if not pretrained:
        return Source(model, None, named)
    published = _published(model, pretrained, named)
    path = fetch_entry(published) if published else Path(str(pretrained))
    return source_of(model, read_weights(path, clips=base_of(model) in VIDEO), named or published)


def source_of(name: str, file: WeightFile, entry: Entry | None = None) -> Source:
    """A file's weights, under the names that the network has."""
    if name in DETECTORS:
        file = as_detector(file)
    elif name.startswith(FOLDED):
        file = file.below("backbone").over_time()
    return Source(name, file, entry)


def _of_timm(name: str, pretrained: bool | str | Path) -> str:
    """What timm calls the weights; those of another network are an error, but to inflate."""
    if base_of(name) in IMAGE:
        raise ValueError(f"timm has no weights for {name}; give a path")
    own = builder_of(name).keywords.get("name", "")
    other = own if pretrained is True else str(pretrained).removeprefix("timm/")
    if own and other.partition(".")[0] != own.partition(".")[0]:
        raise ValueError(f"{pretrained} has weights of another network than {name}")
    return other


def _published(name: str, pretrained: bool | str | Path, named: Entry | None) -> Entry | None:
    """The row of `zoo.csv` that is meant; None: a file."""
    zoo = read_zoo()
    model = base_of(name) if name in DETECTORS else name  # published without blocks
    if pretrained is not True:
        tagged = f"{model}.{pretrained}"
        found = zoo.get(str(pretrained)) or zoo.get(tagged)
        if found is None and not Path(str(pretrained)).exists():
            raise FileNotFoundError(
                f"no weights file {pretrained}, and no published weights of that name or tag"
                f"{nearest(tagged, zoo)}"
            )
        return found
    found = named or next((e for e in zoo.values() if e.model == model and e.url), None)
    if found is None:
        raise ValueError(f"no published weights for {name}; give a path or timm/NAME")
    return found
