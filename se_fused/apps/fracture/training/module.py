"""Lightning module: the network with its loss, optimizer, learning rate schedule and validation."""

import math
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from ...._errors import InputError
from ....models import create_model, load_pretrained
from ..preprocessing import Preprocessing
from .config import ANSWERS, ModelConfig, TrainingConfig
from .losses import class_weights, make_loss

__all__ = ["FractureModule", "build_model", "rate"]


def build_model(config: ModelConfig, num_classes: int) -> tuple[nn.Module, str]:
    """Create the network for one image channel; returns it with a description of its initial weights.

    Raises:
        InputError: the model does not have one of the options, or the checkpoint does not fit.
    """
    try:
        model = create_model(config.name, num_classes=num_classes, in_chans=1, **config.options)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"model.options: {' '.join(str(error).split())}; see se_fused.models for {config.name}"
        ) from None
    if not config.checkpoint:
        return model, "random weights"
    answers = config.checkpoint_options
    try:
        report = load_pretrained(model, config.checkpoint, skip_classifier=True, adapt_in_chans=True, **answers)
    except (OSError, TypeError, ValueError, ImportError) as error:
        said = " ".join(str(error).split())
        asked = [name for name in ANSWERS if name not in answers and f"{name}=" in said]
        how = f"; set it with model.checkpoint_options: {{{asked[0]}: ...}}" if asked else ""
        raise InputError(f"model.checkpoint: {said}{how}") from None
    return model, str(report)


def rate(step: int, steps: int, warmup: float, final: float) -> float:
    """Learning rate of a step as a share of the peak: linear warm-up, then a cosine decay to `final`.

    The cosine is equation 5 of arXiv:1608.03983. The first step has 1 / (warm-up steps + 1), not 0.
    """
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / (rising + 1)
    done = (step - rising) / max(steps - rising, 1)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


class FractureModule(pl.LightningModule):
    """Lightning module that trains `model`, (N, 1, S, S) -> (N, K).

    Args:
        model: the network.
        config: the training recipe.
        preprocessing: normalisation of the images in [0, 1].
        counts: number of training images of each of the K classes.
        seed: random seed of dropout and similar layers; combined with epoch, step and process.
        about: plain values stored in checkpoints under "run".
    """

    def __init__(
        self,
        model: nn.Module,
        config: TrainingConfig,
        preprocessing: Preprocessing,
        counts: Sequence[int],
        seed: int,
        about: dict[str, Any],
    ) -> None:
        super().__init__()
        self.about = about
        self.model, self.config, self.preprocessing, self.seed = model, config, preprocessing, seed
        weight = class_weights(counts, config.class_weights, config.effective_beta)
        self.weight: Tensor | None
        self.register_buffer("weight", weight, persistent=False)
        self.train_loss, self.valid_loss = MeanMetric(), MeanMetric()
        self.train_accuracy = MulticlassAccuracy(len(counts), average="micro")
        self.valid_accuracy = MulticlassAccuracy(len(counts), average="micro")
        self.valid_f1 = MulticlassF1Score(len(counts), average="macro")

    def forward(self, images: Tensor) -> Tensor:
        """(N, 1, S, S) in [0, 1] -> (N, K) logits."""
        images = self.preprocessing.normalize(images)
        return self.model(images.contiguous(memory_format=torch.channels_last))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Seeded at each batch, because loaders draw random numbers too: a resumed run equals an uninterrupted one.
        words = np.random.SeedSequence([self.seed, self.current_epoch, batch_idx, self.global_rank]).generate_state(2)
        torch.manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], index: int) -> Tensor:
        images, labels, _ = batch
        logits = self(images)
        c = self.config
        loss = make_loss(c.loss, c.focal_gamma, c.label_smoothing, self.weight, logits, labels)
        self.train_loss.update(loss.detach(), len(labels))
        self.train_accuracy.update(logits.detach(), labels)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor, Tensor], index: int) -> None:
        images, labels, _ = batch
        logits = self(images).float()
        self.valid_loss.update(F.cross_entropy(logits, labels), len(labels))
        self.valid_accuracy.update(logits, labels)
        self.valid_f1.update(logits, labels)

    def on_validation_epoch_end(self) -> None:
        self._log_all("valid", loss=self.valid_loss, accuracy=self.valid_accuracy, macro_f1=self.valid_f1)

    def on_train_epoch_end(self) -> None:
        self._log_all("train", loss=self.train_loss, accuracy=self.train_accuracy)

    def _log_all(self, split: str, **metrics: Any) -> None:
        # Log plain numbers: the metric objects already sum over the processes.
        for name, metric in metrics.items():
            self.log(f"{split}/{name}", metric.compute())
            metric.reset()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["run"] = self.about

    def configure_optimizers(self) -> Any:
        c = self.config
        decayed = [p for p in self.model.parameters() if p.requires_grad and p.ndim > 1]
        others = [p for p in self.model.parameters() if p.requires_grad and p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": c.weight_decay}, {"params": others, "weight_decay": 0.0}]
        if c.optimizer == "adamw":
            optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, lr=c.learning_rate)
        else:
            optimizer = torch.optim.SGD(groups, lr=c.learning_rate, momentum=c.momentum, nesterov=c.momentum > 0)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: rate(i, steps, c.warmup, c.final_rate))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
