"""The run folder: checkpoints, metrics, curves and the summary, each whole or not there."""

import csv
import io
import json
import shlex
import sys
import time
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from rich.console import Console

from nlzoo.callbacks.pace import Pace
from nlzoo.files import write_whole
from nlzoo.names import counted

METRICS = {  # by which the best checkpoint is chosen
    "top1": "top-1",
    "map": "mAP",
    "box/AP": "box AP",
    "mask/AP": "mask AP",
    "keypoint/AP": "keypoint AP",
}
LAST, BEST = "checkpoints/last.ckpt", "checkpoints/best.ckpt"  # in a run folder


class WholeFiles(TorchCheckpointIO):
    """Checkpoints that a kill or a full disk can't leave half-written.

    (Lightning's own writer moves a file over from the system's temporary folder.)
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Serialise in memory, write beside `path`, rename."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_whole(Path(path), buffer.getbuffer())


def progress_bar(options: dict[str, Any]) -> list[Callback]:
    """A bar where somebody is watching; elsewhere the lines of `RunFolder` are enough."""
    wanted = options["enable_progress_bar"] is not False and sys.stderr.isatty()
    options["enable_progress_bar"] = wanted
    return [Bar(leave=False)] if wanted else []


class Bar(RichProgressBar):
    """Lightning's, with samples/s and without the logger's version."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """What stands beside the bar."""
        metrics: dict[str, Any] = super().get_metrics(trainer, pl_module)
        return {name: value for name, value in metrics.items() if name != "v_num"}


class RunFolder(Checkpoint):
    """Keeps `checkpoints/last.ckpt`, `metrics.csv`, `curves.png` and `summary.json` up to date.

    One row an epoch. Rows travel in the checkpoint, so that a resumed run continues its table.
    (Lightning calls a `Checkpoint` after all other callbacks: what it saves holds their state.)
    """

    def __init__(self, folder: Path, recipe: str, every: int, metric: str = "top1") -> None:
        self.folder, self.recipe, self.every = folder, recipe, every
        self.metric = metric  # a key of METRICS
        self.events = False  # whether TensorBoard's are written, too
        self.rows: list[dict[str, float]] = []
        self.seconds = 0.0  # of earlier parts of this run
        self.val: dict[str, float] = {}  # of the validation of this epoch
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._count_from_here()

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return self.folder / LAST

    @property
    def best(self) -> Path:
        """The checkpoint with the best validation metric."""
        return self.folder / BEST

    def callbacks(self) -> list[Callback]:
        """Lightning's that keeps the best checkpoint, then this one."""
        best = ModelCheckpoint(
            self.best.parent,
            "best",
            f"val/{self.metric}",
            mode="max",
            enable_version_counter=False,
        )
        return [best, self]

    # -- hooks ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Rows and time so far."""
        return {"rows": self.rows, "seconds": self.seconds + time.monotonic() - self.started}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue an earlier part of this run."""
        self.rows, self.seconds = state["rows"], state["seconds"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start the clock."""
        self.started = time.monotonic()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the effective recipe; this also finds a folder that can't be written.

        A run that is refused, as all that could was asked before, leaves no folder.
        """
        if trainer.is_global_zero:
            write_whole(self.folder / "recipe.yaml", self.recipe)
        if self.events:
            trainer.loggers = [TensorBoardLogger(self.folder, name="", version="tensorboard")]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what is about to happen; start counting, inside an epoch too."""
        self.total = int(trainer.estimated_stepping_batches)
        self.first = trainer.global_step
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self.noun = data.kind.noun
        self._count_from_here()
        accumulated: int = trainer.accumulate_grad_batches
        self.global_batch = int(data.batch_size) * trainer.world_size * accumulated
        count = sum(p.numel() for p in pl_module.parameters())
        self._say(
            trainer,
            f"{pl_module.hparams['model']}: {count / 1e6:.2f}M parameters, {self.total} iterations "
            f"({trainer.global_step} done) of {self.global_batch} {self.noun}s, "
            f"run folder {self.folder}",
        )
        self._advise(trainer, pl_module.hparams)

    def _advise(self, trainer: Trainer, hparams: Any) -> None:
        """The learning rate of another batch, by the linear rule (Goyal et al., 1706.02677)."""
        batch, reference = self.global_batch, hparams["reference_batch"]
        if reference and batch != reference:
            self._say(
                trainer,
                f"lr {hparams['lr']:g} is for {reference} {self.noun}s an iteration: "
                f"--task.lr {hparams['lr'] * batch / reference:.3g} suits {batch}",
            )

    def _count_from_here(self) -> None:
        self.samples, self.batches, self.pace = 0, 0, Pace()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count anew. (Not called where an epoch is resumed.)"""
        self._count_from_here()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Its time is neither waiting nor work; its metrics belong to this epoch only."""
        self.pace.skip()
        if not trainer.sanity_checking:
            metrics = trainer.callback_metrics
            self.val = {k: float(v) for k, v in metrics.items() if k.startswith("val/")}

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """What has passed since the last step was spent waiting for data."""
        self.pace.wait()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count; save every few iterations."""
        self.samples += len(batch[0]) * trainer.world_size
        self.batches += 1
        self.pace.work()
        pl_module.log("samples/s", self._rate(), prog_bar=True, logger=False)
        accumulated = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch  # saved with its validation
        if accumulated and not last and trainer.global_step % self.every == 0:
            trainer.save_checkpoint(self.last)
            self._say(trainer, f"iteration {trainer.global_step}  {self._progress(trainer)}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """One row more."""
        metrics = trainer.callback_metrics
        row: dict[str, Any] = {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            **{k: float(metrics[k]) for k in ("train/loss", "train/top1") if k in metrics},
            **self.val,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "samples_per_second": self._rate(),
            "data_wait": self.pace.waiting,
            "step_seconds": self.pace.worked / max(self.batches, 1),
            **gpu_memory(),
        }
        earlier = [r for r in self.rows if r["epoch"] < row["epoch"]]  # not a part of this epoch
        self.rows = [*earlier, row]
        shown = {"train/top1": "top-1"}
        shown |= {f"val/{key}": f"validation {name}" for key, name in METRICS.items()}
        said = "".join(f", {name} {row[key]:.3f}" for key, name in shown.items() if key in row)
        loss = f"epoch {row['epoch']:>3}  loss {row['train/loss']:.3f}"
        self._say(trainer, f"{loss}{said}  {self._progress(trainer)}")
        self.val = {}
        if trainer.is_global_zero:
            self._write_rows()
        trainer.save_checkpoint(self.last)
        if trainer.is_global_zero:
            for older in self.last.parent.glob("hpc_ckpt_*.ckpt"):  # of a requeue
                older.unlink()

    def _rate(self) -> float:
        return self.samples / max(self.pace.passed, 1e-9)

    def _progress(self, trainer: Trainer) -> str:
        """Speed, share of waiting, and time left at the mean pace since the start."""
        done = trainer.global_step - self.first
        left = (time.monotonic() - self.started) / max(done, 1) * (self.total - trainer.global_step)
        return (
            f"{self._rate():.1f} {self.noun}s/s, {self.pace.waiting:.0%} waiting for data, "
            f"{timedelta(seconds=round(left))} left"
        )

    def _say(self, trainer: Trainer, text: str) -> None:
        if trainer.is_global_zero:
            self.console.print(text)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The summary, and what to do next."""
        if not (trainer.is_global_zero and self.rows):
            return
        summary = self.summary()
        write_whole(self.folder / "summary.json", json.dumps(summary, indent=2) + "\n")
        known = summary["best"] is not None
        best = f"{summary['metric']} {summary['best']:.3f}" if known else "not validated"
        checkpoint = shlex.quote(summary["checkpoint"])
        self.console.print(
            f"{best} after {counted(summary['epochs'], 'epoch')}, "
            f"{summary['seconds']:.0f} s; curves: {self.folder / 'curves.png'}\n"
            f"Next: python -m nlzoo.evaluate --checkpoint {checkpoint}\n"
            f"      python -m nlzoo.predict --checkpoint {checkpoint} {self.noun.upper()}"
        )

    # -- files ------------------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        """The run in a few figures; rates are means over the epochs."""
        metric = f"val/{self.metric}"
        best = [row[metric] for row in self.rows if metric in row]
        mean = {
            k: sum(r[k] for r in self.rows) / len(self.rows)
            for k in ("samples_per_second", "data_wait")
        }
        return {
            "metric": metric,
            "best": max(best) if best else None,
            "epochs": len(self.rows),
            "global_batch": self.global_batch,
            **mean,
            "seconds": self.seconds + time.monotonic() - self.started,
            "checkpoint": str(self.best if self.best.exists() else self.last),
            "versions": {name: version(name) for name in ("nlzoo", "torch", "lightning")},
        }

    def _write_rows(self) -> None:
        text = io.StringIO()
        keys = {key: None for row in self.rows for key in row}
        table = csv.DictWriter(text, list(keys))
        table.writeheader()
        table.writerows(self.rows)
        write_whole(self.folder / "metrics.csv", text.getvalue())
        write_whole(self.folder / "curves.png", draw_curves(self.rows, self.metric))


def gpu_memory() -> dict[str, float]:
    """Most memory of tensors since the last call, 10^6 bytes; nothing without a GPU."""
    if not torch.cuda.is_available():
        return {}
    peak = torch.cuda.max_memory_allocated() / 1e6
    torch.cuda.reset_peak_memory_stats()
    return {"gpu_memory": peak}


def draw_curves(rows: list[dict[str, float]], metric: str) -> bytes:
    """Loss and metric over iterations, a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("loss", metric), strict=True):
        for split, style in (("train", "--"), ("val", "-")):
            key = f"{split}/{name}"
            points = [(row["step"], row[key]) for row in rows if key in row]
            axes.plot(
                *zip(*points, strict=True) if points else ([], []), style, marker=".", label=split
            )
        axes.set(xlabel="iteration", title=METRICS.get(name, name))
        axes.legend()
        axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110)
    return buffer.getvalue()
