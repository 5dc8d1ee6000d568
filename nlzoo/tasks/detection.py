"""Training and testing a detector: boxes, masks or keypoints (section "Extension: COCO")."""

from typing import Any, Literal

from torch import Tensor, nn
from torchmetrics import MeanMetric

from nlzoo.models import create_model
from nlzoo.names import check_choice
from nlzoo.preprocessing import Preprocessing
from nlzoo.registry import DETECTORS, places_of
from nlzoo.tasks.coco_metric import CocoMetric
from nlzoo.tasks.training import Training

Batch = tuple[list[Tensor], list[dict[str, Any]]]
BETA = 1 / 9  # of torchvision's loss of boxes
HEADS = {"mask": "mask_predictor", "keypoint": "keypoint_predictor"}


class Detection(Training):
    """A detector, its losses, COCO's metric and its schedule.

    Batches are (images, targets): a list of uint8 (3, H, W), in training already resized, and one
    of torchvision's dicts, with image_id and index (of the file).

    Attributes:
        metric: by which the best checkpoint is chosen: AP of masks or keypoints, or else of boxes.
    """

    def __init__(
        self,
        model: str,
        pretrained: bool | str = False,
        non_local: dict[str, Any] | None = None,
        arch: dict[str, Any] | None = None,
        optimizer: str = "momentum",
        lr: float = 0.02,
        head_lr: float = 1.0,
        weight_decay: float = 1e-4,
        schedule: Literal["steps", "cosine"] = "steps",
        milestones: list[int] | None = None,
        warmup: int = 0,
        warmup_from: float = 1 / 3,
        box_loss: Literal["torchvision", "detectron"] = "torchvision",
        reference_batch: int = 0,
        preprocessing: dict[str, Any] | None = None,
    ) -> None:
        """Build the network.

        Args:
            model: a name of `nlzoo.list_models("*rcnn*")`.
            pretrained: true or a tag for torchvision's weights of COCO; `timm/NAME` for a backbone
                from ImageNet; a file of either; false: none.
            non_local: arguments of the blocks (form, places, subsample, key_mask, norm, ...).
            arch: arguments of the network (norm, trainable, min_size, rcnn, ...), see
                `nlzoo.networks.detection.detector`.
            optimizer: a name of `timm.optim.list_optimizers()`: momentum (SGD, 0.9), adamw, ...
            lr: the highest learning rate, for the whole batch of all devices.
            head_lr: factor on it for the predictors of classes and keypoints, and the blocks.
            weight_decay: not applied to norms.
            schedule: a tenth at each milestone, or half a cosine.
            milestones: iterations.
            warmup: iterations of linear warm-up.
            warmup_from: the share of `lr` it starts from.
            box_loss: smooth L1 turns linear at 1/9 (torchvision), or at 1 (detectron).
            reference_batch: images an iteration, over all devices, that `lr` is for; 0: any.
            preprocessing: filled from the data: class names, keypoints, and what else they fix.

        Raises:
            ValueError: an unknown name or argument (gives the nearest).
        """
        super().__init__()
        check_choice("detector", model.partition(".")[0], DETECTORS)
        self.save_hyperparameters(logger=False)
        wishes = Preprocessing(frames=0, stride=0, task="detection")
        wishes = Preprocessing.from_dict(wishes.to_dict() | (preprocessing or {}))
        self.model = create_model(
            model,
            pretrained=pretrained,
            non_local=non_local if places_of(model, non_local) else None,
            preprocessing=wishes,
            **(arch or {}),
        )
        self.preprocessing = self.model.preprocessing
        heads = self.model.roi_heads
        self.kinds = ("box", *(k for k, head in HEADS.items() if getattr(heads, head) is not None))
        self.metric = f"{self.kinds[-1]}/AP"
        self.model.transform._skip_resize = True  # in training: the data are of their size
        if box_loss == "detectron":
            loosen_box_loss(heads)
        self.running: Any = nn.ModuleDict({"loss": MeanMetric()})  # of this epoch

    # -- training ---------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Raise ValueError where the data have no masks, or keypoints, for the network."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        needs = {"mask": "masks", "keypoint": "keypoints"}.get(self.kinds[-1], data.wants)
        if data.wants != needs:
            model = self.hparams["model"]
            raise ValueError(
                f"{model} needs {needs}, the data give {data.wants}: data.wants {needs}"
            )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The sum of the losses of proposals, classes, boxes, and masks or keypoints."""
        images, targets = batch
        losses = self.model(images, targets)
        if self.hparams["box_loss"] == "detectron":
            losses["loss_box_reg"] = losses["loss_box_reg"] / BETA
        loss: Tensor = sum(losses.values())
        self.running["loss"].update(loss.detach(), len(images))
        self.log("train/loss_step", loss)
        self.log_dict({f"train/{name}": part.detach() for name, part in losses.items()})
        self.log_running()
        return loss

    def indices(self, batch: Batch) -> list[int]:
        """Which of the data's training files a batch is of."""
        return [int(target["index"]) for target in batch[1]]

    # -- evaluation -------------------------------------------------------------------------

    def make_metric(self, split: str) -> CocoMetric:
        """COCO's, of a split of the data."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        pre = self.preprocessing
        return CocoMetric(data.annotations(split), self.kinds, pre.category_ids, pre.sigmas)

    def on_validation_epoch_start(self) -> None:
        """Forget the last detections."""
        self.found = self.make_metric("val")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Images as they are: the network resizes them."""
        images, targets = batch
        self.found.update([int(target["image_id"]) for target in targets], self.model(images))

    def on_validation_epoch_end(self) -> None:
        """COCO's numbers, the same in all processes."""
        if not self.trainer.sanity_checking:
            self._log_numbers("val/")

    def on_test_epoch_start(self) -> None:
        """The same of a test."""
        self.found = self.make_metric("test")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """The same of a test."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """The same of a test; `found` keeps the detections."""
        self._log_numbers("test/")

    def _log_numbers(self, prefix: str) -> None:
        numbers = self.found.compute()
        self.log_dict({prefix + name: x for name, x in numbers.items() if x == x})


def loosen_box_loss(heads: Any) -> None:
    """Give torchvision's box loss the form of Detectron's, but for a factor of BETA; in place.

    smooth_l1(BETA d, beta=BETA) is BETA smooth_l1(d, beta=1): targets and outputs are scaled.
    """
    encode = heads.box_coder.encode
    heads.box_coder.encode = lambda boxes, proposals: tuple(
        target * BETA for target in encode(boxes, proposals)
    )

    def scale(predictor: nn.Module, inputs: Any, output: tuple[Tensor, Tensor]) -> Any:
        return (output[0], output[1] * BETA) if predictor.training else None

    heads.box_predictor.register_forward_hook(scale)
