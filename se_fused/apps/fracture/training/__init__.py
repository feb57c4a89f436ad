"""Training of radiograph classifiers with Lightning. Requires ``se_fused[train]``."""

from .config import Config, DataConfig, ModelConfig, TrainingConfig
from .losses import class_weights, focal_loss

__all__ = ["Config", "DataConfig", "ModelConfig", "TrainingConfig", "class_weights", "focal_loss"]
