"""Weights of image networks for video networks: kernels repeated over time."""

from collections.abc import Iterator

from torch import Tensor, nn

from nlzoo.blocks import CHILD
from nlzoo.network import Network


def inflate(model: Network, image_model: nn.Module) -> Network:
    """Copy the weights of a 2D ResNet, kernels repeated t times over time and divided by t.

    A video of one still image then gives the 2D network's features, away from the zero padding at
    the clip's ends (section 3.3). The classifier is copied if the class counts agree, and so are
    non-local blocks where it has any.

    Args:
        model: a `VideoResNet` of the same depth and width.
        image_model: a ResNet with timm's names (conv1, bn1, layer1..4, downsample, fc).

    Returns:
        The same `model`.

    Raises:
        ValueError: not a ResNet of the same shape; says which weights do not fit.
    """
    source = {_video_name(k): v for k, v in image_model.state_dict().items()}
    target = model.state_dict()
    if not any(CHILD in name for name in source):
        source |= {name: tensor for name, tensor in target.items() if CHILD in name}
    heads = [{k: v for k, v in s.items() if k.startswith("head.")} for s in (source, target)]
    if [v.shape for v in heads[0].values()] != [v.shape for v in heads[1].values()]:
        source = {k: v for k, v in source.items() if k not in heads[0]} | heads[1]
    inflated = dict(_inflate(source, target))
    if wrong := sorted(source.keys() ^ target.keys()) or [
        k for k in target if inflated[k].shape != target[k].shape
    ]:
        raise ValueError(
            f"{type(image_model).__name__} is not the 2D twin of this network: {wrong[0]} "
            f"(and {len(wrong) - 1} more) does not fit; use a plain ResNet of the same depth"
        )
    model.load_state_dict(inflated)
    return model


def _inflate(source: dict[str, Tensor], target: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name in source.keys() & target.keys():
        weight, like = source[name], target[name]
        if weight.ndim == 4 and like.ndim == 5:
            t = like.shape[2]
            weight = weight.unsqueeze(2).repeat(1, 1, t, 1, 1) / t
        yield name, weight


_IMAGE_NAMES = {
    "downsample.0": "branch1_conv",
    "downsample.1": "branch1_norm",
    **{f"conv{i}": f"branch2.conv_{x}" for i, x in enumerate("abc", 1)},
    **{f"bn{i}": f"branch2.norm_{x}" for i, x in enumerate("abc", 1)},
}


def _video_name(name: str) -> str:
    """timm's `layer2.0.conv1.weight` -> `res3.0.branch2.conv_a.weight`."""
    head, _, rest = name.partition(".")
    if head.startswith("layer"):
        block, _, rest = rest.partition(".")
        module, _, leaf = rest.rpartition(".")
        return f"res{int(head[5:]) + 1}.{block}.{_IMAGE_NAMES.get(module, module)}.{leaf}"
    return {"conv1": "stem.conv.", "bn1": "stem.norm.", "fc": "head.proj."}.get(head, head) + rest
