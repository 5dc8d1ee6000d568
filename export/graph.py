"""A copy of a network in the form that exporters and other runtimes take."""

from collections.abc import Callable, Iterable
from copy import deepcopy
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.ops import FrozenBatchNorm2d

from nlzoo.blocks import NonLocalBlock
from nlzoo.convs import SpaceConv3d, TimeConv3d
from nlzoo.export.frames import flatten_
from nlzoo.networks.slowfast import SlowFast
from nlzoo.networks.video import Head, VideoResNet
from nlzoo.preprocessing import Normalize

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
WINDOW = 7  # of the head, positions of the last map: `spec.LEAST` pixels
LAYOUTS = ("frames", "clip")
SOFTMAX = ("embedded_gaussian", "gaussian")


class AnySizeHead(nn.Module):
    """`Head` at test without a branch on the size: log-probabilities, maps of at least 7 x 7."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.proj, self.average = head.proj, head.average

    def forward(self, x: Tensor, multilabel: bool = False) -> Tensor:
        """(B, C, T, H, W) -> (B, K)."""
        if self.average == "map":
            logits: Tensor = self.proj(x.mean((2, 3, 4))).float()
            return logits if multilabel else logits.log_softmax(-1)
        x = F.avg_pool2d(x.mean(2), WINDOW, stride=1).flatten(2).transpose(1, 2)
        logits = self.proj(x).float()
        if multilabel:
            logits = logits.mean(1, keepdim=True) if self.average == "logits" else logits
            there, absent = ((-F.softplus(-z)).logsumexp(1) for z in (logits, -logits))
            return there - absent
        if self.average == "logits":
            return logits.mean(1).log_softmax(-1)
        return logits.log_softmax(-1).logsumexp(1).log_softmax(-1)


def set_routes(model: nn.Module) -> None:
    """Blocks compute as exporters can follow, whatever their sizes; in place."""
    for module in model.modules():
        if isinstance(module, NonLocalBlock):
            module.route = "fast" if module.form == "dot_product" else "definition"


class Graph(nn.Module):
    """A float32 (for networks of nlzoo also uint8) input, a float32 output.

    The blocks are written as matrix products and one softmax (dot product in the order of fewest
    products), whose scores stay float32 whatever the precision. The network that is copied stays
    as it is.

    Args:
        model: any network of one input and one output.
        any_size: to a `VideoResNet`, clips of other heights and widths will come.
        islands: False: scores and softmax in the precision of the rest.
        layout: of a `VideoResNet`: frames, see `nlzoo.export.frames`, or clip, which is Conv3d.
    """

    def __init__(
        self,
        model: nn.Module,
        any_size: bool = False,
        islands: bool = True,
        layout: str = "frames",
    ) -> None:
        super().__init__()
        self.model = deepcopy(model).eval()
        set_routes(self.model)
        for module in self.model.modules():
            if isinstance(module, NonLocalBlock) and module.form in SOFTMAX and not islands:
                module._pairwise = partial(_attention, module.scale)  # type: ignore[method-assign]
            elif isinstance(module, SpaceConv3d | TimeConv3d):  # others have kernels for Conv3d
                module.__class__ = nn.Conv3d  # type: ignore[assignment]
        self.normalize: nn.Module = nn.Identity()
        own = getattr(self.model, "normalize", None)
        if isinstance(own, Normalize):  # in float32
            self.normalize, self.model.normalize = own, self.normalize
        if isinstance(self.model, VideoResNet):
            # SlowFast joins its pathways by functions that see more than single positions
            if layout == "frames" and not isinstance(self.model, SlowFast):
                flatten_(self.model)
            if any_size:
                self.model.head = AnySizeHead(self.model.head)  # type: ignore[assignment]
        self.dtype = torch.float32

    def narrow(self, precision: str, example: Tensor) -> "Graph":
        """Compute in fp16 or bf16, norms merged into their convolutions before weights are rounded.

        Rounding a convolution and its norm one by one would double the error of deep networks.
        """
        self.dtype = DTYPES[precision]
        if self.dtype != torch.float32:
            fold_norms(self.model, self.normalize(example))
            self.model.to(self.dtype)
        return self

    def forward(self, input: Tensor) -> Tensor:
        """What the network computes."""
        output = self.model(self.normalize(input).to(self.dtype))
        if not isinstance(output, Tensor):
            raise ValueError(
                f"the output is a {type(output).__name__}: a network of one tensor is needed"
            )
        return output.float()


@torch.no_grad()
def fold_norms(model: nn.Module, x: Tensor) -> None:
    """Merge each batch norm into the convolution that it follows, as seen in one pass.

    Left as it was where that changes the output: another layer, too, uses the convolution's.
    Frozen norms become batch norms before.
    """
    thaw(model)
    made: dict[int, tuple[nn.Module, Tensor]] = {}  # an output's id, and the output to keep it one
    pairs: dict[Any, Any] = {}  # norm -> convolution

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, NonLocalBlock):
            pairs.update({module.norm: module.out} if isinstance(module.norm, _BatchNorm) else {})
        elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            made[id(output)] = module, output
        elif isinstance(module, _BatchNorm) and id(inputs[0]) in made and _is_fixed(module):
            pairs[module] = made[id(inputs[0])][0]

    handles = [module.register_forward_hook(note) for module in model.modules()]
    wanted = _joined(model(x))
    for handle in handles:
        handle.remove()
    state = deepcopy(model.state_dict())
    names = {module: name for name, module in model.named_modules()}
    for norm, conv in pairs.items():
        statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics)
        model.set_submodule(names[norm], nn.Sequential(*norm.children()))  # timm's has its ReLU
    if (_joined(model(x)) - wanted).norm() > 1e-4 * wanted.norm():
        for norm, conv in pairs.items():
            model.set_submodule(names[norm], norm)
            conv.weight = nn.Parameter(state[f"{names[conv]}.weight"])
            bias = state.get(f"{names[conv]}.bias")
            conv.bias = None if bias is None else nn.Parameter(bias)


def thaw(model: nn.Module) -> None:
    """Torchvision's frozen norms as norms in evaluation mode, which compute the same; in place."""
    for name, frozen in list(model.named_modules()):
        if isinstance(frozen, FrozenBatchNorm2d):
            norm = nn.BatchNorm2d(frozen.weight.numel(), frozen.eps).eval()
            norm.load_state_dict(frozen.state_dict(), strict=False)
            model.set_submodule(name, norm)


def _joined(output: Any) -> Tensor:
    """All of it, of a network of several outputs."""
    if isinstance(output, dict):
        return torch.cat([part.flatten() for part in output.values()])
    found: Tensor = output
    return found


def _is_fixed(norm: _BatchNorm) -> bool:
    return bool(norm.affine) and norm.running_mean is not None


def _attention(scale: float, theta: Tensor, phi: Tensor, g: Tensor, keys: None) -> Tensor:
    """`ops.embedded_gaussian` in the precision of its inputs."""
    return torch.softmax(theta @ phi.mT * scale, -1) @ g


def largest_logit(model: nn.Module, inputs: Iterable[Tensor]) -> float:
    """The largest magnitude of a score that any block's softmax sees; 0 without softmax."""
    graph, largest = Graph(model), [0.0]

    def watch(
        pairwise: Callable[..., Tensor],
        scale: float,
        theta: Tensor,
        phi: Tensor,
        g: Tensor,
        keys: None,
    ) -> Tensor:
        largest.append(float((theta @ phi.mT * scale).abs().max()))
        return pairwise(theta, phi, g, keys)

    for block in graph.modules():
        if isinstance(block, NonLocalBlock) and block.form in SOFTMAX:
            block._pairwise = partial(watch, block._pairwise, block.scale)  # type: ignore[method-assign]
    with torch.no_grad():
        for x in inputs:
            graph(x)
    return max(largest)
