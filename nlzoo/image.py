"""Image networks, from timm."""

import timm
from torch import nn

from nlzoo.names import nearest


def image_model(name: str, *, pretrained: bool = False) -> nn.Module:
    """A timm network by name, such as `resnet50.tv_in1k`; `pretrained` downloads its weights.

    Raises:
        ValueError: timm does not know the name; gives its nearest ones.
    """
    architecture = name.split(".")[0]
    if not timm.is_model(architecture):
        raise ValueError(f"timm has no model {name!r}{nearest(architecture, timm.list_models())}")
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained)
    except (OSError, RuntimeError) as error:  # of the Hub's client; some are neither's subclass
        raise OSError(
            f"cannot download the weights of timm/{name} ({type(error).__name__}); without them: "
            'pretrained: "" in the recipe, or --task.pretrained ""'
        ) from error
    return model
