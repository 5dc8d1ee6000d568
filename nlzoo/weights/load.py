"""Weights from files: read without running any code, and loaded without leaving anything out."""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from nlzoo.network import Network
from nlzoo.weights.blocks import check_floats
from nlzoo.weights.hosts import BLOCK, own_names, recognise_host, rename_host
from nlzoo.weights.lite import rename_lite
from nlzoo.weights.read import read_checkpoint, read_metadata, warn_not_finite
from nlzoo.weights.recognise import SHIFTED, Architecture, flatten, read_architecture

IMAGE_TWINS = ("tushar", "patykov")  # have the names of every ResNet for images, too


class FreshHead(UserWarning):
    """A classifier is not of the file: a test has to refuse it."""


@dataclass(frozen=True)
class WeightFile:
    """Weights under this zoo's names, and what their file says about the model."""

    path: Path
    state: dict[str, Tensor]
    spec: dict[str, Any] = field(default_factory=dict)  # a checkpoint's "nlzoo" entry
    dialect: str = ""  # of another implementation, a key of `HOSTS`
    seen: Architecture | None = None  # of which the tensors speak
    names: dict[str, str] = field(default_factory=dict)  # ours, and what the file calls them
    part: str = ""  # what all names begin with, where it has that part of a network only

    def num_classes(self, model: Network) -> int | None:
        """Rows of a model's classifier, if the file has it."""
        weight = self.state.get(heads_of(model)[0] + "weight")
        return None if weight is None else weight.shape[0]

    @property
    def has_places(self) -> bool:
        """Whether it says of itself that it has non-local blocks."""
        model = self.spec.get("model", {})
        return bool(model.get("non_local")) or "_nl" in model.get("name", "")

    def below(self, module: str) -> "WeightFile":
        """As the weights of a module of that name, if they are not yet."""
        if any(name.startswith(f"{module}.") for name in self.state):
            return self
        state = {f"{module}.{name}": tensor for name, tensor in self.state.items()}
        names = {f"{module}.{name}": self.names.get(name, name) for name in self.state}
        return replace(self, state=state, names=names)

    def over_time(self) -> "WeightFile":
        """Blocks of a network of images, whose kernels are of 1, as those of one for clips."""
        flat = [name for name, t in self.state.items() if BLOCK in name and t.ndim == 4]
        return replace(self, state=self.state | {n: self.state[n].unsqueeze(2) for n in flat})

    def headless(self, model: Network) -> "WeightFile":
        """Without the model's classifier."""
        return replace(self, state=_without(self.state, heads_of(model)))


def heads_of(model: Network) -> tuple[str, ...]:
    """What the names of the classifier's tensors begin with: `head.proj.`; detectors have more."""
    if not hasattr(model, "get_classifier"):
        raise ValueError(
            f"{type(model).__name__}, of features_only, takes no file: load the whole network, and "
            "call its forward_features"
        )
    found = model.get_classifier()
    heads = found if isinstance(found, tuple) else (found,)
    names = {module: f"{name}." for name, module in model.named_modules()}
    return tuple(names[head] for head in heads)


def read_weights(path: str | Path, clips: bool = True) -> WeightFile:
    """Read a checkpoint of `nlzoo.fit`, weights under this zoo's names, or another's network.

    Args:
        path: .safetensors, what `torch.save` wrote, or a Caffe2 pickle.
        clips: of a video network. Image networks have their own names, or EfficientNet-Lite's.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, see `read_checkpoint`, or holds no weights.
    """
    path = Path(path)
    raw = read_checkpoint(path)
    state = flatten(raw)
    if not state:
        keys = ", ".join(repr(key)[:30] for key in list(raw)[:8])
        found = f", found {keys}" if keys else ""
        raise ValueError(f"{path} holds no weights; expected a state dict or a checkpoint{found}")
    warn_not_finite(state, path)
    if spec := spec_of(raw, path):
        return WeightFile(path, state, spec)
    dialect = recognise_host(state) if clips else None
    if dialect is None:
        own = state if clips else rename_lite(state)
        return WeightFile(path, own, names=dict(zip(own, state, strict=True)))
    if dialect in IMAGE_TWINS and getattr(state.get("conv1.weight"), "ndim", 0) == 4:
        raise ValueError(
            f"{path} is of a network of images: give pretrained='timm/NAME', which is inflated"
        )
    try:
        own = rename_host(state, dialect)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    names = {ours: theirs for theirs, ours in own_names(state, dialect).items() if ours}
    shifted = any(SHIFTED.fullmatch(name) for name in state)
    return WeightFile(path, own, dialect=dialect, seen=read_architecture(own, shifted), names=names)


def spec_of(raw: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What a checkpoint of ours says of its model; empty: it is none of ours.

    Raises:
        ValueError: it says it in another form.
    """
    text = read_metadata(path).get("nlzoo", "{}")
    try:
        spec: Any = raw.get("nlzoo") or json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: its metadata are damaged; convert it again") from error
    if not (isinstance(spec, dict) and {"model", "preprocessing"} & spec.keys()):
        return {}
    model: Any = spec.get("model")
    named = isinstance(model, dict) and isinstance(model.get("name"), str)
    if not (named and isinstance(spec.get("preprocessing"), dict)):
        raise ValueError(f"{path} does not say which model it is; give its state dict alone")
    return {**spec, "model": {"arch": {}, "non_local": None, **model}}


def fit_to(
    model: Network, weights: WeightFile, fresh_head: bool = False, fresh_blocks: bool = False
) -> dict[str, Tensor]:
    """The file's tensors that a model takes: all of them, for all that it has.

    Args:
        model: on any device; nothing is loaded.
        weights: of the same architecture.
        fresh_head: classifiers that the file has not, or of another class count, may stay as the
            model made them; that they do is a warning.
        fresh_blocks: the same for blocks, where the file has none.

    Raises:
        ValueError: names or shapes differ, see `check_fits`.
    """
    state = weights.state
    wanted = {k: t for k, t in model.state_dict().items() if k.startswith(weights.part)}
    if not model.num_classes:
        state = _without(state, heads_of(model))
    elif fresh_head and (fresh := [h for h in heads_of(model) if _is_other(state, wanted, h)]):
        told = f"{weights.path}: the classifier starts fresh, for {model.num_classes} classes"
        warnings.warn(told, FreshHead, stacklevel=4)
        state, wanted = _without(state, fresh), _without(wanted, fresh)
    if fresh_blocks:
        wanted = _without_blocks(state, wanted, weights.path)
    check_fits(state, wanted, weights.path, weights.names)
    return state


def _without_blocks(
    state: Mapping[str, Tensor], wanted: dict[str, Tensor], path: Path
) -> dict[str, Tensor]:
    """What a model wants of a file that has no blocks: none; that they start fresh is a warning."""
    if any(BLOCK in k for k in state) or not any(BLOCK in k for k in wanted):
        return wanted
    warnings.warn(f"{path} has no non-local blocks: they start fresh", stacklevel=5)
    return {k: v for k, v in wanted.items() if BLOCK not in k}


def check_fits(
    state: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    path: str | Path,
    names: Mapping[str, str] | None = None,
) -> None:
    """Compare the names and shapes of a file's weights with those of a model.

    Args:
        state: of the file.
        own: of the model. Counters of batches may be missing in the file, and in a model whose
            norms are frozen.
        path: named in the error.
        names: what the file calls them, where it is not the same.

    Raises:
        ValueError: they differ; lists the first three with both shapes. Or they are integers, as
            quantized ones, or complex.
    """
    wrong = []
    for k in sorted(state.keys() | own.keys()):
        file = tuple(state[k].shape) if k in state else "missing"
        model = tuple(own[k].shape) if k in own else "unknown"
        counter = k.endswith("num_batches_tracked")
        frozen = k.replace("num_batches_tracked", "running_mean") in own  # it has a norm there
        if file != model and not (counter and (file == "missing" or frozen)):
            called = f" ({names[k]})" if names and names.get(k, k) != k else ""
            wrong.append(f"{k}{called}: file {file}, model {model}")
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(
            f"{path} is of another architecture: {'; '.join(wrong[:3])}{more}. "
            "`python -m nlzoo.weights inspect` says of which"
        )
    check_floats(state, own, path, names)


def _is_other(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], head: str) -> bool:
    """Whether a model's classifier is none of the file's, or of other classes."""
    own = [k for k in wanted if k.startswith(head)]
    there = [k for k in own if k in state]
    return bool(own) and (
        not there or any(state[k].shape[:1] != wanted[k].shape[:1] for k in there)
    )


def _without(state: Mapping[str, Tensor], heads: Sequence[str]) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if not k.startswith(tuple(heads))}
