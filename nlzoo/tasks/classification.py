"""Training and testing a classifier of videos or images (paper sections 4 and 5.1)."""

from collections.abc import Callable
from itertools import islice
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from torchvision.transforms import v2

from nlzoo.models import create_model
from nlzoo.network import Network, set_preprocessing
from nlzoo.preprocessing import Preprocessing
from nlzoo.registry import places_of
from nlzoo.tasks.optim import blocks_of, freeze, host_norms
from nlzoo.tasks.recompute import recompute_
from nlzoo.tasks.scores import MeanAveragePrecision, ViewScores, accuracies, readable
from nlzoo.tasks.training import Training

Batch = tuple[Tensor, Tensor, Tensor]


class Classification(Training):
    """A network, its loss, its metrics and its schedule.

    Batches are (sample uint8 (B, C, *S), label int64 (B,), index int64 (B,)), *S being (T, H, W)
    or (H, W); a label of -1 is a file that could not be read. Test batches hold several crops:
    (B, crops, C, *S). Of multi-label data (`preprocessing` says so) labels are int8 (B, K), ones
    and zeros; scores are sigmoids, the loss is binary cross-entropy, the metric is mAP.

    Attributes:
        metric: by which the best checkpoint is chosen: top1, or map.
    """

    def __init__(
        self,
        model: str,
        pretrained: bool | str = False,
        non_local: dict[str, Any] | None = None,
        arch: dict[str, Any] | None = None,
        bn: Literal["train", "frozen", "precise"] = "train",
        train: Literal["all", "head", "blocks"] = "all",
        optimizer: str = "sgd",
        lr: float = 0.01,
        head_lr: float = 1.0,
        layer_decay: float = 1.0,
        weight_decay: float = 1e-4,
        schedule: Literal["steps", "cosine"] = "steps",
        milestones: list[int] | None = None,
        warmup: int = 0,
        loss: Literal["cross_entropy", "bce"] = "cross_entropy",
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        compile: bool = False,
        activation_checkpointing: list[str] | None = None,
        reference_batch: int = 0,
        preprocessing: dict[str, Any] | None = None,
    ) -> None:
        """Build the network.

        Args:
            model: a name of `nlzoo.list_models()`, `timm/NAME`, `c2d/NAME` or `tsm/NAME`.
            pretrained: true for the name's own published weights, a file, or `timm/NAME` for
                ImageNet weights (inflated, where the network has 3D convolutions); false: none.
            non_local: arguments of the blocks (form, places, subsample, zero_init, ...); of no
                meaning where the name has no blocks and no places are given.
            arch: arguments of the network (geometry, width, dropout, ...).
            bn: batch statistics are trained, frozen (in the host; blocks keep theirs), or trained
                and re-estimated on 200 batches before each evaluation (precise).
            train: all, head, or head and blocks; the rest keeps its batch statistics too.
            optimizer: a name of `timm.optim.list_optimizers()`: sgd (Nesterov momentum 0.9),
                adamw, lamb, ...
            lr: the highest learning rate, for the whole batch of all devices.
            head_lr: factor on it for the classifier and the blocks.
            layer_decay: factor on it from each layer to the one before it (networks of timm).
            weight_decay: not applied to norms.
            schedule: a tenth at each milestone, or half a cosine.
            milestones: iterations.
            warmup: iterations of linear warm-up.
            loss: cross-entropy, or binary cross-entropy of each class (always, of many labels).
            label_smoothing: share of the label given to all classes.
            mixup: alpha of Mixup (arXiv 1710.09412); 0: none.
            cutmix: alpha of CutMix (arXiv 1905.04899); 0: none. With both, a coin chooses.
            compile: run the network through torch.compile.
            activation_checkpointing: stages ("res2") whose blocks are run again in the backward
                pass instead of kept: less memory, more time, the same gradients.
            reference_batch: samples an iteration, over all devices, that `lr` is for; 0: any.
            preprocessing: filled from the data: class names, and what else they fix.

        Raises:
            ValueError: an unknown name or argument (gives the nearest); one class; videos for a
                network of images, or the reverse.
        """
        super().__init__()
        if not places_of(model, non_local):
            non_local = None  # the same recipe without blocks: another name is enough
        self.save_hyperparameters(logger=False)
        self.model = _network(model, pretrained, non_local, arch or {}, preprocessing or {})
        self.preprocessing = self.model.preprocessing
        freeze(self.model, train)
        if bn == "frozen":
            for norm in host_norms(self.model):
                norm.requires_grad_(False)
        recompute_(self.model, activation_checkpointing or ())
        if compile:
            self.model.compile()
        if bn == "precise" and train != "all":
            raise ValueError(f"bn: precise re-estimates what train: {train} keeps: give bn: frozen")
        self.smoothing, self.mix = label_smoothing, _mix(mixup, cutmix, self.model)
        self._make_metrics(loss)

    def _make_metrics(self, loss: str) -> None:
        """The loss, and the metrics of training and of validation."""
        self.multilabel = self.preprocessing.multilabel
        bce = F.binary_cross_entropy_with_logits
        self.loss = bce if loss == "bce" or self.multilabel else F.cross_entropy
        self.metric = "map" if self.multilabel else "top1"
        self.running: Any = nn.ModuleDict({"loss": MeanMetric()})  # of this epoch
        if not self.multilabel:
            self.running["top1"] = MulticlassAccuracy(self.model.num_classes, average="micro")
        self.val_metrics, self.val_loss = self._metrics("val/"), MeanMetric()

    # -- training ---------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Nothing can be mixed in a batch of one."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if stage == "fit" and self.mix and data.batch_size < 2:
            raise ValueError("mixup and cutmix mix the files of a batch: data.batch_size 1 has one")

    def train(self, mode: bool = True) -> "Classification":
        """Frozen statistics stay in evaluation mode."""
        super().train(mode)
        hp = self.hparams
        if mode and (hp.get("bn") == "frozen" or hp.get("train", "all") != "all"):
            for norm in host_norms(self.model):
                norm.eval()
        if hp.get("train") == "head":
            for block in blocks_of(self.model):
                block.eval()
        return self

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one sample a file; accuracy is that of the label that it has most of."""
        x, label, _ = batch
        hot = label if self.multilabel else F.one_hot(label, self.model.num_classes)
        target = hot.float()
        if self.mix:
            x, target = self.mix(self.model.normalize(x), label)
        logits = self.model(x)
        smooth = target * (1 - self.smoothing) + self.smoothing / target.shape[1]
        loss: Tensor = self.loss(logits, smooth)
        self.running["loss"].update(loss.detach(), len(x))
        if "top1" in self.running:
            self.running["top1"].update(logits, target.argmax(1))
        self.log("train/loss_step", loss)
        self.log_running()
        return loss

    def indices(self, batch: Batch) -> list[int]:
        """Which of the data's training files a batch is of."""
        return batch[2].tolist()

    # -- evaluation -------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Count from 0; re-estimate the batch statistics if asked to."""
        self.seen = 0
        fitting = self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking
        if self.hparams["bn"] == "precise" and fitting:
            self._precise_bn()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """One sample a file."""
        x, label, _ = batch
        fresh = self._fresh(len(label), self.trainer.val_dataloaders)
        logits, label = self.model(x)[fresh], label[fresh]
        if (read := readable(label)).any():
            logits, label = logits[read].double(), label[read]
            loss = (
                F.cross_entropy(logits, label)
                if not self.multilabel
                else self.loss(logits, label.double())
            )
            self.val_loss(loss, len(label))
            self.val_metrics.update(self.preprocessing.scores(logits), label)
        self.log("val/loss", self.val_loss, on_epoch=True)
        self.log_dict(self.val_metrics, on_epoch=True, prog_bar=False)

    def on_test_epoch_start(self) -> None:
        """Make room for every file of the test set."""
        self.seen = 0
        loader: Any = self.trainer.test_dataloaders
        self.clips: int = self.trainer.datamodule.clips  # type: ignore[attr-defined]
        files = len(loader.dataset) // self.clips
        pool, k = self.preprocessing.pool, self.model.num_classes
        self.test_scores = ViewScores(files, k, pool, self.multilabel).to(self.device)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """One view a row, several crops a view: (B, crops, C, *S)."""
        views, label, index = batch
        fresh = self._fresh(len(label), self.trainer.test_dataloaders)
        views, label, index = views[fresh], label[fresh], index[fresh]
        if len(label):
            logits = self.model(views.flatten(0, 1)).float()
            scores = self.preprocessing.scores(logits.double()).unflatten(0, views.shape[:2])
            self.test_scores.update(scores, label, index // self.clips)

    def on_test_epoch_end(self) -> None:
        """Join the views, then the metrics; `test_results` keeps what was joined."""
        self.test_results = found = self.test_scores.results()
        self.log_dict(self._metrics("test/").to(self.device)(found.scores, found.labels))

    def _metrics(self, prefix: str) -> MetricCollection:
        k = self.model.num_classes
        many = MetricCollection({"map": MeanAveragePrecision(k)})
        return (many if self.multilabel else accuracies(k)).clone(prefix=prefix)

    def _fresh(self, n: int, loader: Any) -> Tensor:
        """Which of the next n samples are not padding that a distributed sampler repeated.

        The sampler deals samples round-robin and fills the last round from the start.
        """
        world, rank = self.trainer.world_size, self.trainer.global_rank
        position = (torch.arange(self.seen, self.seen + n) * world + rank).to(self.device)
        self.seen += n
        return position < len(loader.dataset)

    def _precise_bn(self, batches: int = 200) -> None:
        """Mean and variance of every norm, averaged over training batches (released code)."""
        loader = self.trainer.datamodule.train_dataloader()  # type: ignore[attr-defined]
        samples = (batch[0].to(self.device) for batch in islice(loader, batches))
        update_bn(samples, self.model)
        if self.trainer.world_size > 1:
            for name, buffer in self.model.named_buffers():
                if name.endswith(("running_mean", "running_var")):
                    gathered: Any = self.all_gather(buffer)
                    buffer.copy_(gathered.mean(0))


def _network(
    model: str,
    pretrained: bool | str,
    non_local: dict[str, Any] | None,
    arch: dict[str, Any],
    wishes: dict[str, Any],
) -> Network:
    """The network for the data's classes; it sees what its weights say, and the data wish."""
    names = tuple(wishes.get("classes", ()))
    if len(names) == 1:
        raise ValueError(f"the data have one class, {names[0]!r}: give two")
    if names and "num_classes" in arch:
        raise ValueError(f"arch.num_classes: the data have {len(names)} classes; leave it out")
    made = create_model(
        model,
        pretrained=pretrained or False,
        num_classes=len(names) or None,
        non_local=non_local,
        **arch,
    )
    own = made.preprocessing
    if own.frames and not wishes.get("frames", own.frames):
        raise ValueError(f"{model} watches videos, the data are images: give timm/NAME")
    if not own.frames and wishes.get("frames"):
        raise ValueError(f"{model} sees images, the data are videos: give c2d/NAME or tsm/NAME")
    set_preprocessing(made, Preprocessing.from_dict(own.to_dict() | wishes))
    return made


def _mix(mixup: float, cutmix: float, model: Network) -> Callable[[Tensor, Tensor], Any] | None:
    """(x, label (B,)) -> (x, shares of the labels (B, K)), by torch's random numbers."""
    mixes: list[Any] = []
    if min(mixup, cutmix) < 0:
        raise ValueError(f"mixup = {mixup}, cutmix = {cutmix}: expected 0 or more")
    if (mixup or cutmix) and model.preprocessing.frames:
        raise ValueError("mixup and cutmix mix images, the data are videos: leave them out")
    if mixup:
        mixes.append(v2.MixUp(alpha=mixup, num_classes=model.num_classes))
    if cutmix:
        mixes.append(v2.CutMix(alpha=cutmix, num_classes=model.num_classes))
    return v2.RandomChoice(mixes) if mixes else None
