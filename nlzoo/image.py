"""Image networks, from timm."""

import timm
from torch import nn


def image_model(name: str, *, pretrained: bool = False) -> nn.Module:
    """A timm network by name, such as `resnet50.tv_in1k`; `pretrained` downloads its weights.

    Raises:
        ValueError: timm does not know the name; gives its nearest ones.
    """
    architecture = name.split(".")[0]
    if not timm.is_model(architecture):
        near = timm.list_models(f"*{architecture[:8]}*")[:5] or timm.list_models("resnet*")[:5]
        raise ValueError(f"timm has no model {name!r}; near are {', '.join(near)}")
    model: nn.Module = timm.create_model(name, pretrained=pretrained)
    return model
