"""Training and testing a video classifier (paper sections 4 and 5.1)."""

from collections.abc import Iterator
from itertools import islice
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from nlzoo.blocks import NonLocalBlock
from nlzoo.models import create_model
from nlzoo.preprocessing import UNREADABLE, Preprocessing
from nlzoo.registry import places_of
from nlzoo.tasks.optim import build_optimizer, build_schedule
from nlzoo.tasks.scores import ViewScores, accuracies
from nlzoo.version import __version__

Batch = tuple[Tensor, Tensor, Tensor]


class VideoClassification(LightningModule):
    """A network, its loss, its metrics and its schedule.

    Batches are (clip uint8 (B, C, T, H, W), label int64 (B,), index int64 (B,)); a label of -1 is
    a video that could not be read. Test batches hold several crops: (B, crops, C, T, H, W).
    """

    def __init__(
        self,
        model: str,
        pretrained: str = "",
        non_local: dict[str, Any] | None = None,
        arch: dict[str, Any] | None = None,
        bn: Literal["train", "frozen", "precise"] = "train",
        optimizer: Literal["sgd", "adamw"] = "sgd",
        lr: float = 0.01,
        weight_decay: float = 1e-4,
        schedule: Literal["steps", "cosine"] = "steps",
        milestones: list[int] | None = None,
        warmup: int = 0,
        label_smoothing: float = 0.0,
        compile: bool = False,
        preprocessing: dict[str, Any] | None = None,
    ) -> None:
        """Build the network.

        Args:
            model: a name of `nlzoo.list_models()`.
            pretrained: a checkpoint, or `timm/NAME` to inflate ImageNet weights; empty: none.
            non_local: arguments of the blocks (form, places, subsample, zero_init, ...); of no
                meaning where the name has no blocks and no places are given.
            arch: arguments of the network (geometry, width, dropout, ...).
            bn: batch statistics are trained, frozen (in the host; blocks keep theirs), or trained
                and re-estimated on 200 batches before each evaluation (precise).
            optimizer: SGD with Nesterov momentum 0.9, or AdamW.
            lr: the highest learning rate, for the whole batch of all devices.
            weight_decay: not applied to norms.
            schedule: a tenth at each milestone, or half a cosine.
            milestones: iterations.
            warmup: iterations of linear warm-up.
            label_smoothing: share of the label given to all classes.
            compile: run the network through torch.compile.
            preprocessing: filled from the data: what the network sees, and the class names.

        Raises:
            ValueError: unknown model, argument or shape; names the nearest.
        """
        super().__init__()
        if not places_of(model, non_local):
            non_local = None  # the same recipe without blocks: another name is enough
        self.save_hyperparameters(logger=False)
        self.preprocessing = Preprocessing.from_dict(preprocessing or {})
        classes = len(self.preprocessing.classes) or None
        if classes == 1:
            raise ValueError(
                f"the data have one class, {self.preprocessing.classes[0]!r}: give two"
            )
        self.model = create_model(
            model,
            pretrained=pretrained or False,
            num_classes=classes,
            non_local=non_local,
            preprocessing=self.preprocessing,
            **(arch or {}),
        )
        self.preprocessing = self.model.preprocessing  # with the mean of its weights
        if bn == "frozen":
            for norm in self._host_norms():
                norm.requires_grad_(False)
        if compile:
            self.model.compile()
        self.recipe = ""  # text of the effective recipe, kept in checkpoints
        self.loss = nn.CrossEntropyLoss(ignore_index=UNREADABLE, label_smoothing=label_smoothing)
        k = self.model.num_classes
        self.running: Any = nn.ModuleDict(  # of this epoch; kept in checkpoints
            {
                "loss": MeanMetric(),
                "top1": MulticlassAccuracy(k, average="micro", ignore_index=UNREADABLE),
            }
        )
        self.val_metrics = accuracies(k).clone(prefix="val/")
        self.val_loss = MeanMetric()
        self.seed = 0

    # -- training ---------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Remember the seed that the program set."""
        self.seed = torch.initial_seed()

    def configure_optimizers(self) -> Any:
        """One optimizer, one schedule stepped each iteration."""
        hp = self.hparams
        optimizer = build_optimizer(self.model, hp["optimizer"], hp["lr"], hp["weight_decay"])
        total = int(self.trainer.estimated_stepping_batches)
        milestones = tuple(hp["milestones"] or ())
        scheduler = build_schedule(optimizer, total, hp["schedule"], hp["warmup"], milestones)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def train(self, mode: bool = True) -> "VideoClassification":
        """Frozen statistics stay in evaluation mode."""
        super().train(mode)
        if mode and self.hparams.get("bn") == "frozen":
            for norm in self._host_norms():
                norm.eval()
        return self

    def on_train_epoch_start(self) -> None:
        """Start counting. (Not called where an epoch is resumed.)"""
        for metric in self.running.values():
            metric.reset()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Dropout is a function of (seed, step, rank), so that a resumed run repeats it."""
        batches = self.trainer.fit_loop.total_batch_idx
        torch.manual_seed(self.seed + batches * self.trainer.world_size + self.global_rank)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross-entropy of one clip a video."""
        clip, label, _ = batch
        logits = self.model(clip)
        loss = self.loss(logits, label)
        self.running["loss"].update(loss.detach(), len(clip))
        self.running["top1"].update(logits, label)
        self.log("train/loss_step", loss)
        for name, metric in self.running.items():
            self.log(f"train/{name}", metric, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def _host_norms(self) -> Iterator[nn.Module]:
        """Batch norms outside the blocks: a frozen gamma of 0 would end a block for ever."""
        blocks = (b for b in self.model.modules() if isinstance(b, NonLocalBlock))
        own = {m for block in blocks for m in block.modules()}
        for module in self.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module not in own:
                yield module

    # -- evaluation -------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Count from 0; re-estimate the batch statistics if asked to."""
        self.seen = 0
        fitting = self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking
        if self.hparams["bn"] == "precise" and fitting:
            self._precise_bn()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """One centre clip a video."""
        clip, label, _ = batch
        fresh = self._fresh(len(label), self.trainer.val_dataloaders)
        logits, label = self.model(clip)[fresh], label[fresh]
        if (read := label != UNREADABLE).any():
            self.val_loss(F.cross_entropy(logits[read], label[read]), int(read.sum()))
            self.val_metrics(logits, label)
        self.log("val/loss", self.val_loss, on_epoch=True)
        self.log_dict(self.val_metrics, on_epoch=True, prog_bar=False)

    def on_test_epoch_start(self) -> None:
        """Make room for every video of the test set."""
        self.seen = 0
        loader: Any = self.trainer.test_dataloaders
        self.clips: int = self.trainer.datamodule.clips  # type: ignore[attr-defined]
        videos = len(loader.dataset) // self.clips
        self.test_scores = ViewScores(videos, self.model.num_classes).to(self.device)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """One clip a row, several crops a clip; clips (B, crops, C, T, H, W)."""
        clips, label, index = batch
        fresh = self._fresh(len(label), self.trainer.test_dataloaders)
        clips, label, index = clips[fresh], label[fresh], index[fresh]
        if len(label):
            logits = self.model(clips.flatten(0, 1)).float()
            probabilities = logits.softmax(1).unflatten(0, clips.shape[:2])
            self.test_scores.update(probabilities, label, index // self.clips)

    def on_test_epoch_end(self) -> None:
        """Average over views, then the accuracies; `test_results` keeps `ViewScores.compute`."""
        self.test_results = self.test_scores.compute()
        labels, scores = self.test_results[:, 0].long(), self.test_results[:, 2:]
        metrics = accuracies(self.model.num_classes).clone(prefix="test/").to(self.device)
        self.log_dict(metrics(scores, labels))

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
        clips = (batch[0].to(self.device) for batch in islice(loader, batches))
        update_bn(clips, self.model)
        if self.trainer.world_size > 1:
            for name, buffer in self.model.named_buffers():
                if name.endswith(("running_mean", "running_var")):
                    gathered: Any = self.all_gather(buffer)
                    buffer.copy_(gathered.mean(0))

    # -- checkpoints ------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what `nlzoo.load_model` needs: plain values only."""
        checkpoint["nlzoo"] = {
            "version": __version__,
            "model": self.model.spec,
            "preprocessing": self.preprocessing.to_dict(),
            "recipe": self.recipe,
            "running": {name: metric.metric_state for name, metric in self.running.items()},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on counting where the checkpoint was written."""
        for name, state in checkpoint["nlzoo"]["running"].items():
            metric = self.running[name]
            for key, value in state.items():
                setattr(metric, key, value.to(metric.device))
            metric._update_count = 1  # else it takes itself for fresh
