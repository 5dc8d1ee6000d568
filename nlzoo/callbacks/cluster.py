"""What a run on several machines needs beside Lightning: one recipe, requeues between steps."""

import signal
from collections.abc import Callable
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.environments import SLURMEnvironment


class OneRecipe(Callback):
    """All processes train the same recipe, or none does."""

    def __init__(self, recipe: str) -> None:
        self.recipe = recipe

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare with that of the first process.

        Raises:
            ValueError: in every process, where one has another recipe; it names the first line.
        """
        first = trainer.strategy.broadcast(self.recipe)
        if trainer.strategy.reduce_boolean_decision(self.recipe == first, all=True):
            return
        pairs = zip(self.recipe.splitlines(), first.splitlines(), strict=False)
        here, there = next(((a, b) for a, b in pairs if a != b), ("", ""))
        line = f": {here.strip()!r} here, {there.strip()!r} in process 0" if here != there else ""
        raise ValueError(
            f"process {trainer.global_rank} of {trainer.world_size}: the recipes of the processes "
            f"differ{line}; start all of them with the same options"
        )


class Requeue(Callback):
    """SLURM's warning that the time is up is acted upon when an iteration is complete.

    Lightning's handler saves `hpc_ckpt_N.ckpt` and asks for a requeue wherever the signal comes, in
    the middle of an optimizer's step too; and every process would be somewhere else.
    """

    handler: Callable[[int, Any], None] | None = None
    warned = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the place of Lightning's handler."""
        environment: Any = getattr(trainer._accelerator_connector, "cluster_environment", None)
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
            self.signal: int = environment.requeue_signal or signal.SIGUSR1
            handler: Any = signal.signal(self.signal, self._remember)
            self.handler = handler

    def _remember(self, number: int, frame: Any) -> None:
        self.warned = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save between iterations; the last one of an epoch is complete after its validation."""
        complete = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if complete and not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._act(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The same."""
        self._act(trainer)

    def _act(self, trainer: Trainer) -> None:
        if self.handler and trainer.strategy.reduce_boolean_decision(self.warned, all=False):
            self.warned = False
            self.handler(self.signal, None)
