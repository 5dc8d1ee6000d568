"""What every network of `create_model` has, whatever it sees."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nlzoo.preprocessing import Normalize, Preprocessing


class Network(nn.Module):
    """A trunk, which makes a map of features, and a head with one projection: timm's protocol.

    Attributes:
        preprocessing: what input it expects.
        normalize: its first step, of uint8 input.
        num_classes: width of its output; 0: it has no projection, and returns features.
        num_features: channels of the map.
        spec: how `create_model` built it: name, arch, non_local.
        projection: where the projection is.
        forward_features: input -> map.
        forward_head: map -> (B, K), or (B, C) with `pre_logits`.
    """

    preprocessing: Preprocessing
    normalize: Normalize
    spec: dict[str, Any]
    num_classes: int
    num_features: int
    projection = "head.proj"
    forward_features: Callable[[Tensor], Tensor]
    forward_head: Callable[..., Tensor]

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        set_preprocessing(self, preprocessing)

    @property
    def device(self) -> torch.device:
        """Of its parameters."""
        return next(self.parameters()).device

    def forward(self, x: Tensor) -> Tensor:
        """Input (B, 3, *S), uint8 0..255 or normalised float -> (B, K), see `forward_head`."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """The projection."""
        return self.get_submodule(self.projection)

    def reset_classifier(self, num_classes: int) -> None:
        """Start a fresh projection to `num_classes`; 0 removes it."""
        self.num_classes = num_classes
        projection: nn.Module = nn.Identity()
        if num_classes:
            like = next(self.parameters())
            projection = nn.Linear(
                self.num_features, num_classes, device=like.device, dtype=like.dtype
            )
            nn.init.normal_(projection.weight, std=0.01)
            nn.init.zeros_(projection.bias)
        self.set_submodule(self.projection, projection)


def set_preprocessing(model: Any, seen: Preprocessing) -> None:
    """Say what input a network expects; its first step, `normalize`, follows from it."""
    model.preprocessing = seen
    model.normalize = Normalize(seen.mean, seen.std)


def device_of(model: Any) -> torch.device:
    """Where its input goes: a runner says it, a network's parameters are there."""
    said: torch.device | None = getattr(model, "device", None)
    return said or next(model.parameters()).device
