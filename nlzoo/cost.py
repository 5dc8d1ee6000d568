"""What a recipe costs, without training, data or downloads: `fit --estimate`."""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from lightning import Trainer
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from nlzoo.blocks import NonLocalBlock
from nlzoo.network import Network
from nlzoo.tasks.classification import Classification
from nlzoo.tasks.detection import Detection
from nlzoo.tasks.optim import blocks_of


@dataclass(frozen=True)
class Estimate:
    """Cost of one network and of one training step of one device."""

    parameters: int
    multiply_adds: int  # of the forward pass of one sample
    attention_bytes: int  # of the float32 N x M maps of one sample, if they were kept
    peak_bytes: int  # of tensors in a training step
    batch: tuple[int, ...]

    def __str__(self) -> str:
        return "\n".join(
            (
                f"batch           {' x '.join(map(str, self.batch))} uint8, a device",
                f"parameters      {self.parameters / 1e6:.2f} M",
                f"multiply-adds   {self.multiply_adds / 1e9:.2f} G a sample, forward",
                f"attention maps  {self.attention_bytes / 1e6:.1f} MB a sample, if all were kept",
                f"peak memory     {self.peak_bytes / 1e6:.0f} MB of tensors in a training step",
            )
        )


def estimate(
    task: Classification | Detection, trainer: Trainer, shape: Sequence[int]
) -> "Estimate | DetectorCost":
    """What the recipe's network costs.

    Args:
        task: the network and how it is trained.
        trainer: says precision and accumulation.
        shape: of a batch (B, C, *S) of one device.
    """
    if isinstance(task, Detection):
        return detector_cost(task.model, *shape[2:])
    return training_cost(task, trainer, shape)


def training_cost(task: Classification, trainer: Trainer, shape: Sequence[int]) -> Estimate:
    """Run training steps on tensors that have a shape and no content.

    The peak is that of parameters, gradients, the optimizer's state, activations and what single
    operations allocate; the allocator's own losses, copies of distributed strategies, and what
    libraries take for themselves come on top.

    Args:
        task: the network and how it is trained.
        trainer: says precision and accumulation.
        shape: of a batch (B, C, *S) of one device.
    """
    trainer.precision_plugin.convert_module(task)
    with FakeTensorMode(allow_non_fake_inputs=True):
        multiply_adds, maps = _forward(task.eval().model, trainer, shape)
        peak = _train(task.train(), trainer, shape)
    parameters = sum(p.numel() for p in task.parameters())
    return Estimate(parameters, multiply_adds // shape[0], 4 * maps, peak, tuple(shape))


def _forward(model: Network, trainer: Trainer, shape: Sequence[int]) -> tuple[int, int]:
    """Multiply-adds of a batch, and weights N x M of all attention maps of one sample."""
    weights = []

    def record(block: NonLocalBlock, args: tuple[Tensor, ...]) -> None:
        weights.append(prod(block.positions(args[0].shape)))

    hooks = [block.register_forward_pre_hook(record) for block in blocks_of(model)]
    with torch.no_grad(), trainer.precision_plugin.train_step_context():
        multiply_adds, _ = count_multiply_adds(lambda: model(torch.zeros(shape, dtype=torch.uint8)))
    for hook in hooks:
        hook.remove()
    return multiply_adds, sum(weights)


def count_multiply_adds(run: Callable[[], Any]) -> tuple[int, Any]:
    """Those of a call, fused attention's too; and what it returned."""
    fused: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # torch counts GPUs'
    counted = {fused: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)}
    flops = FlopCounterMode(display=False, custom_mapping=counted)
    with flops:
        out = run()
    return flops.get_total_flops() // 2, out


def _train(task: Classification, trainer: Trainer, shape: Sequence[int]) -> int:
    """Most bytes alive in two steps: the optimizer's state is there from the second one on."""
    optimizer = task.make_optimizer()
    live = _Live([*task.parameters(), *task.buffers()])
    with live:
        for _ in range(2):
            for _ in range(min(trainer.accumulate_grad_batches, 2)):
                with trainer.precision_plugin.train_step_context():
                    logits = task.model(torch.zeros(shape, dtype=torch.uint8))
                    loss = task.loss(logits, torch.zeros_like(logits))
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return live.peak


class _Live(TorchDispatchMode):
    """Bytes of all storages that are alive, and the most there were."""

    def __init__(self, there: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self.known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
        for tensor in there:
            self._meet(tensor)

    def _meet(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self.known:
            return
        self.known.add(storage)
        size = storage.nbytes()
        weakref.finalize(storage, self._free, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _free(self, size: int) -> None:
        self.now -= size

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._meet, out)
        return out


@dataclass(frozen=True)
class DetectorCost:
    """Of the forward pass of one image; blocks are part of backbone and head."""

    image: tuple[int, int]  # height and width, padded
    proposals: int
    detections: int
    parameters: int
    parts: dict[str, int]  # multiply-adds
    blocks: int  # multiply-adds

    @property
    def share(self) -> float:
        """Of the blocks, of the network without them."""
        return self.blocks / (sum(self.parts.values()) - self.blocks)

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {x / 1e9:.2f}" for name, x in self.parts.items())
        size = " x ".join(map(str, self.image))
        counts = f"{self.proposals} proposals, {self.detections} detections"
        return "\n".join(
            (
                f"image           {size}, {counts}",
                f"parameters      {self.parameters / 1e6:.2f} M",
                f"multiply-adds   {sum(self.parts.values()) / 1e9:.2f} G forward: {parts}",
                f"blocks          {self.blocks / 1e9:.2f} G, {self.share:.1%} of the rest",
            )
        )


def detector_cost(model: Any, height: int, width: int) -> DetectorCost:
    """Count, on tensors that have a shape and no content, with as many boxes as there may be.

    Args:
        model: of `nlzoo.networks.detection.detector`.
        height: of the padded image, pixels.
        width: the same.
    """
    heads, model = model.roi_heads, model.eval()
    proposals, detections = model.rpn.post_nms_top_n(), heads.detections_per_img
    blocks = []

    def record(block: NonLocalBlock, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]
        blocks.append(len(x) * block.multiply_adds(x.shape))

    hooks = [block.register_forward_pre_hook(record) for block in blocks_of(model)]
    parts = {}

    def count(name: str, run: Callable[[], Any]) -> Any:
        parts[name], out = count_multiply_adds(run)
        return out

    channels = model.backbone.out_channels
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        image = torch.zeros(1, 3, height, width)
        maps = count("backbone", lambda: model.backbone(image))
        count("proposals", lambda: model.rpn.head(list(maps.values())))
        rois = torch.zeros(proposals, channels, 7, 7)
        count("boxes", lambda: heads.box_predictor(heads.box_head(rois)))
        rois = torch.zeros(detections, channels, 14, 14)
        if heads.mask_head is not None:
            count("masks", lambda: heads.mask_predictor(heads.mask_head(rois)))
        if heads.keypoint_head is not None:
            count("keypoints", lambda: heads.keypoint_predictor(heads.keypoint_head(rois)))
    for hook in hooks:
        hook.remove()
    parameters = sum(p.numel() for p in model.parameters())
    return DetectorCost((height, width), proposals, detections, parameters, parts, sum(blocks))
