"""What all tasks share: seeds, the optimizer and its schedule, and what checkpoints hold."""

from typing import Any

import torch
from lightning import LightningModule
from torch.optim import Optimizer

from nlzoo.preprocessing import Preprocessing
from nlzoo.tasks.optim import build_optimizer, build_schedule, parameter_groups
from nlzoo.version import __version__


class Training(LightningModule):
    """A network that trains; its hyper-parameters are those of a recipe.

    Attributes:
        model: the network.
        preprocessing: that of the network, agreed with the data.
        metric: by which the best checkpoint is chosen, a key of `nlzoo.callbacks.run.METRICS`.
        running: metrics of this epoch, "loss" among them.
        recipe: text of the effective recipe, for checkpoints.
    """

    model: Any
    preprocessing: Preprocessing
    metric: str
    running: Any  # nn.ModuleDict
    recipe = ""
    seed = 0

    def indices(self, batch: Any) -> list[int]:
        """Which of the data's training files a batch is of."""
        raise NotImplementedError

    def on_fit_start(self) -> None:
        """Remember the seed that the program set."""
        self.seed = torch.initial_seed()
        self.train()  # Lightning leaves modes as they are; what is frozen has to be in its own

    def make_optimizer(self) -> Optimizer:
        """Of all that trains."""
        hp = self.hparams
        layer_decay = hp.get("layer_decay", 1.0)
        groups = parameter_groups(
            self.model, hp["lr"], hp["weight_decay"], hp["head_lr"], layer_decay
        )
        return build_optimizer(groups, hp["optimizer"], hp["lr"])

    def configure_optimizers(self) -> Any:
        """One optimizer, one schedule stepped each iteration."""
        hp, optimizer = self.hparams, self.make_optimizer()
        total = int(self.trainer.estimated_stepping_batches)
        milestones, start = tuple(hp["milestones"] or ()), hp.get("warmup_from", 0.0)
        scheduler = build_schedule(
            optimizer, total, hp["schedule"], hp["warmup"], milestones, start
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def on_train_epoch_start(self) -> None:
        """Start counting. (Not called where an epoch is resumed.)"""
        for metric in self.running.values():
            metric.reset()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """What is random is a function of (seed, step, rank), so that a resumed run repeats it."""
        batches = self.trainer.fit_loop.total_batch_idx
        torch.manual_seed(self.seed + batches * self.trainer.world_size + self.global_rank)

    def log_running(self) -> None:
        """Means of the epoch so far."""
        for name, metric in self.running.items():
            self.log(f"train/{name}", metric, on_step=False, on_epoch=True, prog_bar=True)

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
            metric: Any = self.running[name]
            for key, value in state.items():
                setattr(metric, key, value.to(metric.device))
            metric._update_count = 1  # else it takes itself for fresh
