"""The ResNets for CIFAR of arXiv 1512.03385, section 4.2."""

import torch.nn.functional as F
from torch import Tensor, nn

from nlzoo.network import Network
from nlzoo.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

# of the published weights: the statistics are ImageNet's, the images as they are
PUBLISHED = Preprocessing(
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    frames=0,
    stride=0,
    crop=32,
    test_size=32,
    test_crop=32,
)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions, and a shortcut without weights: option A of section 3.3."""

    def __init__(self, dim_in: int, dim_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim_in, dim_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(dim_out)
        self.conv2 = nn.Conv2d(dim_out, dim_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(dim_out)
        self.stride = stride
        self.added = dim_out - dim_in  # channels of zeros, half on each side

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim_in, H, W) -> (B, dim_out, H / stride, W / stride)."""
        branch = F.relu(self.bn1(self.conv1(x)))
        branch = self.bn2(self.conv2(branch))
        shortcut = x[..., :: self.stride, :: self.stride]
        before = self.added // 2
        shortcut = F.pad(shortcut, (0, 0, 0, 0, before, self.added - before))
        return F.relu(branch + shortcut)


class CifarResNet(Network):
    """A residual network for images of 32 x 32: conv1, layer1, layer2, layer3, linear.

    Names and order are those of its published weights (github.com/akamaster/
    pytorch_resnet_cifar10). Residual block 1 of the second stage is the submodule `layer2.1`.
    """

    projection = "linear"

    def __init__(
        self,
        depth: int,
        width: int = 16,
        num_classes: int = 10,
    ) -> None:
        """Build and initialise it (MSRA).

        Args:
            depth: 6 n + 2, for n residual blocks a stage.
            width: channels of conv1; 16 as published.
            num_classes: outputs.
        """
        super().__init__(PUBLISHED)
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        blocks = (depth - 2) // 6
        self.layer1 = _stage(width, width, blocks)
        self.layer2 = _stage(width, 2 * width, blocks)
        self.layer3 = _stage(2 * width, 4 * width, blocks)
        self.num_features = 4 * width
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        self.reset_classifier(num_classes)

    def forward_features(self, image: Tensor) -> Tensor:
        """Image (B, 3, H, W) -> the last map (B, C, H / 4, W / 4)."""
        if image.ndim != 4:
            raise ValueError(f"an image must be (B, C, H, W); got shape {tuple(image.shape)}")
        x = F.relu(self.bn1(self.conv1(self.normalize(image))))
        return self.layer3(self.layer2(self.layer1(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map (B, C, H, W) -> (B, K) logits, or (B, C) with `pre_logits` or without classes."""
        x = x.mean((2, 3))
        return x if pre_logits else self.get_classifier()(x)


def _stage(dim_in: int, dim_out: int, blocks: int) -> nn.Sequential:
    """Residual blocks; the first one halves the map where it widens it."""
    first = ResidualBlock(dim_in, dim_out, dim_out // dim_in)
    return nn.Sequential(first, *(ResidualBlock(dim_out, dim_out, 1) for _ in range(1, blocks)))
