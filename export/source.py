"""Networks to export, run and compare: by name, by checkpoint, or where a user's own one is."""

import sys
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name

import torch
from torch import nn

from nlzoo.export.spec import AXES, Spec, sizes_of
from nlzoo.files import sha256_of
from nlzoo.models import create_model, load_model
from nlzoo.names import nearest
from nlzoo.preprocessing import Preprocessing
from nlzoo.registry import DETECTORS, MODELS, is_timm
from nlzoo.version import __version__

Source = str | Path | nn.Module


def load_network(source: Source, shape: Sequence[int] = ()) -> tuple[nn.Module, Spec]:
    """A network in evaluation mode, and what it says of itself: float32, every axis free.

    Args:
        source: a checkpoint of `nlzoo.fit`; a name that `nlzoo.create_model` takes (random weights,
            always the same); a network, or where one is: MODULE:OBJECT (one, or a function that
            returns one, of random weights always the same).
        shape: of its input; by default two clips or images of those that a network of nlzoo sees
            at test, (2, 3, frames, test crop, test crop) or (2, 3, test crop, test crop); of a
            detector one square canvas that takes any image, (1, 3, side, side).

    Raises:
        FileNotFoundError: no such checkpoint or name; gives the nearest.
        ValueError: MODULE:OBJECT is no network; no shape; see `nlzoo.load_model`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, name, sha256 = _load(source)
    own = getattr(model, "preprocessing", None)
    pre = own if isinstance(own, Preprocessing) else None
    detector = pre is not None and pre.task == "detection"
    if pre and not shape:
        shape = 1 if detector else 2, 3, *sizes_of(pre)
    if len(shape) not in ((2 + len(sizes_of(pre)),) if pre else AXES):
        axes = f"(batch, 3, {'frames, ' if pre and pre.frames else ''}height, width)"
        wanted = axes if pre else "3 to 5 numbers, batch first"
        raise ValueError(f"{name}: shape {tuple(shape)} of the input: give {wanted} (--shape)")
    if pre and not detector and tuple(shape[2:]) != sizes_of(pre):
        pre = _resized(pre, shape[2:])
    return model.eval(), Spec(
        model=name,
        source=str(source) if sha256 else "",
        sha256=sha256,
        licence="",
        version=__version__,
        precision="fp32",
        raw=False,
        shape=tuple(shape),
        dynamic=() if detector else tuple(AXES[len(shape)]),
        preprocessing=pre,
        output="detections" if detector else "logits",
        input="images" if detector else "input",
    )


def _resized(pre: Preprocessing, sizes: Sequence[int]) -> Preprocessing:
    """For clips or images of other sizes than it was trained for; the view stays as wide."""
    *frames, height, width = sizes
    if height != width:
        raise ValueError(f"an input of {height} x {width} pixels: give a square, as crops are")
    size = round(pre.test_size * height / pre.test_crop)
    return replace(pre, frames=sum(frames), test_crop=height, test_size=size)


def _load(source: Source) -> tuple[nn.Module, str, str]:
    """The network, its name, and the hash of its weights file."""
    if isinstance(source, nn.Module):
        return deepcopy(source), type(source).__name__, ""
    source = str(source)
    if source in MODELS | DETECTORS or is_timm(source):
        return create_model(source), source, ""
    if Path(source).is_file():
        model = load_model(source)
        return model, model.spec["name"], sha256_of(source)
    if ":" not in source:
        raise FileNotFoundError(
            f"no checkpoint or model {source!r}{nearest(source, MODELS | DETECTORS)}"
        )
    if str(Path.cwd()) not in sys.path:  # where `python -m` looks, and a console script does not
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = resolve_name(source)
        made = found() if callable(found) and not isinstance(found, nn.Module) else found
    except (ImportError, AttributeError, TypeError) as error:
        raise ValueError(f"{source}: {error}") from error
    if not isinstance(made, nn.Module):
        raise ValueError(f"{source} gives a {type(made).__name__}, not a network")
    return made, source, ""
