"""The norm of the gradient, and a stop where a loss or a gradient is no number."""

from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

SHOWN = 8  # names of files in a message


class Gradients(Callback):
    """Logs train/grad_norm, before clipping.

    A loss that is no number stops the training before a weight has changed: the message names the
    iteration and the files of the batch, and the state from before it is saved. (Losses are looked
    at where gradients are no numbers: those are the same in all processes, so all stop.)
    """

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint  # where that state goes
        self.statistics: list[Tensor] = []  # of norms, which a forward pass changes
        self.before: list[Tensor] = []
        self.losses: list[Tensor] = []  # since the last step of the optimizer
        self.files: list[int] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the statistics."""
        norms = [m for m in pl_module.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
        self.statistics = [b for norm in norms for b in norm.buffers()]
        self.before = [b.clone() for b in self.statistics]

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember files and statistics."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self.losses, self.files = [], []
            if self.before:
                torch._foreach_copy_(self.before, self.statistics)
        self.files += pl_module.indices(batch)  # type: ignore[operator]

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Remember the loss."""
        self.losses.append(loss.detach())

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Log the norm.

        Raises:
            FloatingPointError: loss or gradient is no number.
        """
        norm = get_total_norm([p.grad for p in pl_module.parameters() if p.grad is not None])
        pl_module.log("train/grad_norm", norm)
        if norm.isfinite():
            return
        mine = not torch.stack(self.losses).isfinite().all()
        anywhere = trainer.strategy.reduce_boolean_decision(bool(mine), all=False)
        if getattr(trainer.precision_plugin, "scaler", None) and not anywhere:
            return  # float16 overflowed: the scaler leaves this step out
        if self.before:
            torch._foreach_copy_(self.statistics, self.before)
        trainer.save_checkpoint(self.checkpoint)
        raise FloatingPointError(self._say(trainer, bool(mine), anywhere))

    def _say(self, trainer: Trainer, mine: bool, anywhere: bool) -> str:
        what = "the loss" if mine else "another process's loss" if anywhere else "the gradient"
        files = trainer.datamodule.files("train")  # type: ignore[attr-defined]
        names = [str(files[i]) for i in self.files[:SHOWN]]
        more = f" and {len(self.files) - SHOWN} more" if len(self.files) > SHOWN else ""
        return (
            f"{what} is no number at iteration {trainer.global_step + 1}, on {', '.join(names)}"
            f"{more}; the state before it: {self.checkpoint}; a lower task.lr may help"
        )
