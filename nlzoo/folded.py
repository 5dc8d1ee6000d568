"""A network for images as one for clips: their frames are its batch, its blocks see whole clips."""

from typing import Any

import torch
from torch import Tensor, nn

from nlzoo.convs import shift
from nlzoo.network import Network
from nlzoo.preprocessing import Preprocessing


class Fold:
    """Clips as a batch of frames, and back.

    Attributes:
        frames: of a clip of the pass that runs.
    """

    frames = 1

    def fold(self, clips: Tensor) -> Tensor:
        """(B, C, T, *S) -> (B T, C, *S), a view where channels are last."""
        self.frames = clips.shape[2]
        return clips.transpose(1, 2).flatten(0, 1)

    def unfold(self, frames: Tensor) -> Tensor:
        """(B T, C, *S) -> (B, C, T, *S)."""
        return frames.unflatten(0, (-1, self.frames)).transpose(1, 2)

    def around(self, module: nn.Module) -> None:
        """Let a module among others of frames see clips (B, C, T, H, W)."""
        module.register_forward_pre_hook(self._before)
        module.register_forward_hook(self._after)

    def shift_before(self, module: nn.Module) -> None:
        """Let a module see its frames shifted, see `nlzoo.convs.shift`."""
        module.register_forward_pre_hook(self._shift)

    def _before(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return self.unfold(inputs[0]), *inputs[1:]

    def _after(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        return self.fold(output)

    def _shift(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return self.fold(shift(self.unfold(inputs[0]))), *inputs[1:]


class FoldedNetwork(Network):
    """A timm network run on each frame, its scores averaged over a clip's frames.

    What joins the frames before that are non-local blocks (`insert_non_local`, places by the
    backbone's own names) and shifts of channels (`fold.shift_before`).
    """

    def __init__(self, backbone: Any, preprocessing: Preprocessing) -> None:
        """Take a network over.

        Args:
            backbone: of timm: with forward_features, forward_head and its classifier's methods.
            preprocessing: of clips.

        Raises:
            ValueError: it has no head: of timm's `features_only`.
        """
        super().__init__(preprocessing)
        if not hasattr(backbone, "forward_head"):
            raise ValueError(f"{type(backbone).__name__} has no head for the frames' scores")
        self.backbone: Any = backbone.to(memory_format=torch.channels_last)
        self.fold = Fold()
        self.num_classes, self.num_features = backbone.num_classes, backbone.num_features

    def forward_features(self, clip: Tensor) -> Tensor:
        """Clip (B, 3, T, H, W) -> the backbone's map of each frame (B, C, T, h, w)."""
        if clip.ndim != 5:
            raise ValueError(f"a clip must be (B, C, T, H, W); got shape {tuple(clip.shape)}")
        x = self.normalize(clip).contiguous(memory_format=torch.channels_last_3d)
        return self.fold.unfold(self.backbone.forward_features(self.fold.fold(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map (B, C, T, h, w) -> (B, K), the mean of the frames' logits; or of their features."""
        scores = self.backbone.forward_head(self.fold.fold(x), pre_logits=pre_logits)
        return self.fold.unfold(scores).mean(2)

    def get_classifier(self) -> nn.Module:
        """The backbone's."""
        classifier: nn.Module = self.backbone.get_classifier()
        return classifier

    def reset_classifier(self, num_classes: int) -> None:
        """Start the backbone's afresh; 0 removes it."""
        self.num_classes = num_classes
        self.backbone.reset_classifier(num_classes)


def host_of(model: nn.Module) -> Any:
    """The network whose names are those of places: of a `FoldedNetwork` its backbone."""
    return model.backbone if isinstance(model, FoldedNetwork) else model
