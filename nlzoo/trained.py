"""What weights were trained as, and what is given over it."""

import warnings
from typing import Any, NamedTuple

from nlzoo.preprocessing import Preprocessing
from nlzoo.registry import DETECTORS, IMAGE, VIDEO, base_of, is_timm, places_of
from nlzoo.weights.blocks import facts_of
from nlzoo.weights.hosts import HOSTS
from nlzoo.weights.load import WeightFile
from nlzoo.weights.torchvision import seen_arch
from nlzoo.weights.zoo import Entry, like

Blocks = str | dict[str, Any] | None
KINDS = {"clips": VIDEO, "images": IMAGE, "detector": DETECTORS}


class Trained(NamedTuple):
    """What weights were trained as, as far as it is known."""

    arch: dict[str, Any]
    non_local: Blocks = None
    preprocessing: Preprocessing | None = None
    num_classes: int | None = None  # of the row


def trained_as(name: str, file: WeightFile | None, entry: Entry | None) -> Trained:
    """What is known of a network's weights.

    Args:
        name: of the network.
        file: its weights.
        entry: the row of the name, or else of the file.

    Raises:
        ValueError: they are of another network.
    """
    if file and file.spec:
        return _saved(name, file, entry)
    if file and file.dialect and entry and not _speaks(file.dialect, entry.dialect):
        raise ValueError(
            f"{file.path} has tensors as {file.dialect} names them, and {entry.name} is of "
            f"{entry.dialect}, with other strides or scales: give create_model({name!r}, ...)"
        )
    if file and file.seen and not entry:
        entry = like(name, file.dialect, file.seen)
        as_ = f"read as {entry.name}, which it is like" if entry else "of strides that none has yet"
        warnings.warn(f"{file.path} is {as_}", stacklevel=4)
    seen = file.seen.arch if file and file.seen else {}
    if entry is None:
        return Trained(seen_arch(file.state) if file and name in DETECTORS else seen)
    blocks = {k: v for k, v in entry.non_local.items() if k != "places" or entry.model == name}
    if host := HOSTS.get(entry.dialect):
        blocks = facts_of(host.spoken, blocks.get("form", "embedded_gaussian"), blocks)
    return Trained(entry.arch | seen, blocks, entry.preprocessing(), entry.num_classes)


def _saved(name: str, file: WeightFile, entry: Entry | None) -> Trained:
    """What a checkpoint says of itself."""
    model = file.spec["model"]
    if _kind(model["name"]) != _kind(name):
        raise ValueError(f"{file.path} is of {model['name']}, whose weights {name} cannot take")
    arch, blocks = model["arch"] or {}, model["non_local"]
    if entry and entry.name.startswith(f"{name}.") and arch != entry.arch:
        raise ValueError(
            f"{file.path} says of itself that it is {model['name']} with {model['arch']}, and "
            f"{entry.name} is {entry.arch}: give the model's name alone"
        )
    own = places_of(model["name"], None) if is_timm(model["name"]) else ""
    if own and not places_of(name, blocks):
        blocks = {**(blocks or {}), "places": own}
    return Trained(arch, blocks, Preprocessing.from_dict(file.spec["preprocessing"]))


def _kind(name: str) -> str:
    """Whose network it is."""
    if is_timm(name):
        return "timm"
    return next((k for k, names in KINDS.items() if {name, base_of(name)} & names.keys()), "")


def over(
    trained: dict[str, Any], given: dict[str, Any], were: str, stacklevel: int = 4
) -> dict[str, Any]:
    """What is given, over what was trained; says where they differ."""
    for key in given.keys() & trained.keys() - {"places"}:
        if given[key] != trained[key]:
            warnings.warn(f"{key} {given[key]}: {were} {key} {trained[key]}", stacklevel=stacklevel)
    return trained | given


def blocks_over(name: str, given: Blocks, trained: Blocks) -> Blocks:
    """The same of blocks, where there are any."""
    if not trained or not places_of(name, trained if given is None else given):
        return given
    if given is None:
        return trained
    return over(facts_in(trained), facts_in(given), "the blocks were trained with", 5)


def facts_in(blocks: Blocks) -> dict[str, Any]:
    """Arguments of the blocks, `places` among them."""
    return {"places": blocks} if isinstance(blocks, str) else blocks or {}


def _speaks(dialect: str, other: str) -> bool:
    """Whether networks of both are the same: PySlowFast has names of its own for Caffe2's."""
    twins = ({"caffe2", "slowfast"}, {"tushar", "patykov"})
    return dialect == other or {dialect, other} in twins
