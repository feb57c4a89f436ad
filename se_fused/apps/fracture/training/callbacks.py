"""Lightning callbacks: moving average of the weights, early stopping, history and progress output."""

import csv
import io
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping

from ...._atomic_write import write_text
from ...._errors import InputError
from ..data import RadiographData
from .module import FractureModule

__all__ = ["History", "Patience", "averaging"]


def averaging(decay: float) -> pl.Callback:
    """Lightning's exponential moving average of the weights; the averaged weights are validated and saved.

    The decay at step n is min(decay, (1 + n) / (10 + n)), as in TensorFlow's ``ExponentialMovingAverage``. It starts
    low, so that the random initial weights do not dominate the average of a short run.

    Raises:
        InputError: the installed Lightning has no weight averaging.
    """
    try:
        from lightning.pytorch.callbacks import WeightAveraging
    except ImportError:
        raise InputError(
            "training.ema: the moving average of the weights requires lightning 2.6 or newer; pip install --upgrade "
            "lightning, or set training.ema=0"
        ) from None

    class Average(WeightAveraging):
        def __init__(self) -> None:
            super().__init__(multi_avg_fn=self._average)
            self._step = 0

        def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
            super().setup(trainer, pl_module, stage)
            if self._average_model is not None:
                # It is only compared with 0 at each step; on a GPU, this comparison would wait for the end of the step.
                self._average_model.n_averaged = self._average_model.n_averaged.cpu()

        def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
            self._step = self._step if step_idx is None else step_idx
            return step_idx is not None

        def _average(self, averages: list[torch.Tensor], values: list[torch.Tensor], count: Any) -> None:
            weight = 1 - min(decay, (1 + self._step) / (10 + self._step))
            if averages[0].is_floating_point():  # AveragedModel calls this once for each dtype
                torch._foreach_lerp_(averages, values, weight)
            else:
                torch._foreach_copy_(averages, values)

    return Average()


class Patience(EarlyStopping):
    """Lightning's early stopping that also stops a run resumed after it was stopped early."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.wait_count >= self.patience:
            trainer.should_stop = True


class History(pl.Callback):
    """History of a run: one row for each epoch, written atomically to a CSV file and stored in the checkpoint.

    A resumed run continues the history.

    Attributes:
        rows: epoch, step, learning_rate, train/loss, train/accuracy, valid/loss, valid/accuracy, valid/macro_f1,
            images_per_second, data_wait (share of the training time spent waiting for batches), gpu_memory_bytes (peak;
            0 on a CPU), seconds (training, without validation).
    """

    def __init__(self, path: Path, progress: Callable[[str, float], None], say: Callable[[str], None]) -> None:
        self.path, self.progress, self.say = path, progress, say
        self.rows: list[dict[str, float]] = []
        self._begin = self._seconds = self._rate = 0.0
        self._images = 0

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])

    def _data(self, trainer: pl.Trainer) -> RadiographData:
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, RadiographData)
        return data

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._images = 0
        loader = self._data(trainer).training
        assert loader is not None
        loader.waited = 0.0
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._begin = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._images += len(batch[1]) * trainer.world_size
        if batch_idx == 0:
            self._rate = trainer.optimizers[0].param_groups[0]["lr"]
        total = int(trainer.num_training_batches)
        if batch_idx + 1 == total:
            if pl_module.device.type == "cuda":
                torch.cuda.synchronize(pl_module.device)
            self._seconds = time.perf_counter() - self._begin
        epochs = trainer.max_epochs or 1
        share = (trainer.current_epoch + (batch_idx + 1) / total) / epochs
        speed = self._images / max(time.perf_counter() - self._begin, 1e-9)
        last = f", valid macro F1 {self.rows[-1]['valid/macro_f1']:.3f}" if self.rows else ""
        self.progress(
            f"epoch {trainer.current_epoch + 1} of {epochs}, step {batch_idx + 1} of {total}, {speed:.0f} img/s{last}",
            share,
        )

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Runs before the module's hook, so it reads the training metrics from the metric objects, not from the log."""
        loader = self._data(trainer).training
        assert loader is not None
        logged = {k: float(v) for k, v in trainer.callback_metrics.items()}
        cuda = pl_module.device.type == "cuda"
        assert isinstance(pl_module, FractureModule)
        row = {
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "learning_rate": self._rate,
            "train/loss": float(pl_module.train_loss.compute()),
            "train/accuracy": float(pl_module.train_accuracy.compute()),
            "valid/loss": logged["valid/loss"],
            "valid/accuracy": logged["valid/accuracy"],
            "valid/macro_f1": logged["valid/macro_f1"],
            "images_per_second": self._images / max(self._seconds, 1e-9),
            "data_wait": min(loader.waited / max(self._seconds, 1e-9), 1.0),
            "gpu_memory_bytes": torch.cuda.max_memory_allocated(pl_module.device) if cuda else 0,
            "seconds": self._seconds,
        }
        for name in ("learning_rate", "images_per_second", "data_wait"):
            pl_module.log(name, row[name])
        if not math.isfinite(row["train/loss"]):
            raise InputError(
                f"the training loss of epoch {trainer.current_epoch + 1} is {row['train/loss']}; set a smaller "
                "training.learning_rate, a training.clip, or another training.precision"
            )
        self.rows.append(row)
        if not trainer.is_global_zero:
            return
        out = io.StringIO()
        table = csv.DictWriter(out, list(row), lineterminator="\n")
        table.writeheader()
        table.writerows(self.rows)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, out.getvalue())
        self.say(
            f"epoch {row['epoch'] + 1:3d}/{trainer.max_epochs}  train loss {row['train/loss']:.4f} "
            f"acc {row['train/accuracy']:.3f}  valid loss {row['valid/loss']:.4f} acc {row['valid/accuracy']:.3f} "
            f"macro F1 {row['valid/macro_f1']:.3f}  {row['images_per_second']:.0f} img/s, waiting for data "
            f"{100 * row['data_wait']:.0f} % of the time"
        )
