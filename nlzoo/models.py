"""Networks by name: `create_model`, `list_models`, `load_model`."""

import json
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import safetensors.torch

from nlzoo.assemble import build
from nlzoo.files import whole_file
from nlzoo.network import Network
from nlzoo.preprocessing import Preprocessing
from nlzoo.registry import DETECTORS, MODELS
from nlzoo.sources import find_source, source_of
from nlzoo.version import __version__
from nlzoo.weights.load import read_weights
from nlzoo.weights.zoo import read_zoo


def create_model(
    name: str,
    *,
    pretrained: bool | str | Path = False,
    num_classes: int | None = None,
    non_local: str | dict[str, Any] | None = None,
    preprocessing: Preprocessing | None = None,
    **arch: Any,
) -> Network:
    """Build a network by name, with its non-local blocks.

    Args:
        name: one of `list_models()`, or of `list_models(pretrained=True)`: a network as its
            published weights want it (without them where `pretrained` is False). Or any name of
            timm's behind "timm/", as it is; "c2d/", for clips, frame by frame; "tsm/", the same
            with temporal shifts.
        pretrained: True downloads the name's published weights, a tag ("k400_32x2_official") those
            of another row; "timm/NAME" ImageNet weights, which a ResNet for videos inflates; a
            path loads a checkpoint of `nlzoo.fit` (of images, too: inflated, with its blocks), or a
            file of another implementation. What is not given below is as it was trained.
        num_classes: by default those of the weights, or 400 (CIFAR: 10, timm: 1000, detectors:
            90). Where the weights have another number, the classifier starts fresh.
        non_local: places of the blocks in place of the name's own ("res3:1,3 res4:1,3,5"), or a
            dict with `places` (by default the name's) and arguments of `NonLocalBlock`; a stage's
            own are a dict under its name, {"res3": {"groups": 4}}. In networks of timm's also
            nl1, nl5, nl10 and before_last:3, see `nlzoo.networks.image.places_for`.
        preprocessing: what the network will see; by default that of its weights or geometry.
            Mean and standard deviation are always those of weights that say any, as timm's do.
        **arch: geometry, width, dropout, zero_init_residual, head of `VideoResNet`; width of
            `CifarResNet`; of timm's networks, options of `timm.create_model`; of detectors those
            of `nlzoo.networks.detection.detector`.

    Returns:
        The network in training mode, float32, those for videos with weights in channels-last;
        its `spec` (name, arch, non_local) is all that is needed to build it again.

    Raises:
        ValueError: unknown name, argument or place (names the nearest); weights that do not fit,
            have the wrong hash, or that nothing can be built of.
        FileNotFoundError: no such weights file.
        OSError: a download failed.
    """
    source = find_source(name, pretrained)
    return build(source, num_classes, non_local, preprocessing, arch)


def list_models(filter: str = "*", pretrained: bool = False) -> list[str]:
    """Names that match a wildcard ("*_nl5"); with `pretrained`, `NAME.tag` of published weights."""
    tagged = [e.name for e in read_zoo().values() if e.model and e.url]
    return sorted(n for n in (tagged if pretrained else MODELS | DETECTORS) if fnmatch(n, filter))


def load_model(path: str | Path) -> Network:
    """The network of a checkpoint of `nlzoo.fit`, or of a file of `save_model`.

    Args:
        path: the checkpoint.

    Returns:
        The network on the CPU, in evaluation mode; `model.preprocessing` says what it expects.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated, unsafe, not a checkpoint of `nlzoo.fit`, or weights that do not fit.
    """
    weights = read_weights(path, clips=False)  # in no other names than ours
    if not weights.spec:
        raise ValueError(
            f"{path} says nothing about its model; use create_model(NAME, pretrained=PATH), "
            f"for a NAME that `python -m nlzoo.weights inspect {path}` tells"
        )
    source = source_of(weights.spec["model"]["name"], weights)
    return build(source, None, None, None, {}).eval()


def save_model(model: Network, path: str | Path) -> None:
    """Write the weights, with all that `load_model` needs to build the network again.

    Args:
        model: of `create_model`.
        path: NAME.safetensors; it appears whole.

    Raises:
        ValueError: another suffix.
        OSError: it cannot be written.
    """
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"{path}: give NAME.safetensors")
    spec = {"version": __version__, "model": model.spec}
    spec["preprocessing"] = model.preprocessing.to_dict()
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    with whole_file(path) as part:
        safetensors.torch.save_file(state, part, {"nlzoo": json.dumps(spec)})
