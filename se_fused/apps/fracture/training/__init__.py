"""Training a classifier of radiographs with Lightning. Needs ``se_fused[train]``."""

from .config import Config, DataConfig, ModelConfig, TrainingConfig
from .losses import class_weights, focal_loss

__all__ = ["Config", "DataConfig", "ModelConfig", "TrainingConfig", "class_weights", "focal_loss"]
