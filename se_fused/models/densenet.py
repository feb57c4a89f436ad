"""DenseNet-121, a baseline of the paper: torchvision's layers with the interface of the other models."""

import contextlib
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._classifier import ImageClassifier, Options
from ._registry import register

__all__ = ["DenseNet", "DenseNet121"]


class DenseNet(ImageClassifier):
    """Densely connected network (Huang et al. 2017, arXiv:1608.06993). (N, in_chans, H, W) -> (N, num_classes).

    The layers are torchvision's, with its state_dict keys, shapes and outputs.

    Args:
        growth_rate: channels that each layer adds.
        block_config: number of layers in each of the four dense blocks.
        num_init_features: channels of the stem.
        num_classes, in_chans, global_pool, drop_rate: as in :class:`ImageClassifier`.
        device, dtype: device and dtype of the parameters.

    Raises:
        ImportError: torchvision is not installed.
        TypeError, ValueError: as from :class:`ImageClassifier`.
    """

    classifier_name = "classifier"
    stem_weight = "features.conv0.weight"

    def __init__(
        self,
        growth_rate: int,
        block_config: tuple[int, int, int, int],
        num_init_features: int,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_chans, drop_rate)
        try:
            from torchvision.models import densenet
        except ImportError as error:
            raise ImportError(
                "DenseNet uses the layers of torchvision, which is not installed: pip install torchvision, or "
                "'se_fused[train]'"
            ) from error
        with contextlib.nullcontext() if device is None else torch.device(device):
            theirs = densenet.DenseNet(growth_rate, block_config, num_init_features, num_classes=1)
            self.features: nn.Sequential = theirs.features
            if in_chans != 3:
                stem = nn.Conv2d(in_chans, num_init_features, 7, 2, 3, bias=False)
                nn.init.kaiming_normal_(stem.weight)
                self.features[0] = stem
        self.num_features: int = theirs.classifier.in_features
        self._make_head(num_classes, global_pool, device, None)
        self.to(dtype=dtype)

    def forward_features(self, x: Tensor) -> Tensor:
        """The last feature map: (N, in_chans, H, W) -> (N, num_features, H/32, W/32)."""
        return F.relu(self.features(x), inplace=True)


@register
def DenseNet121(
    num_classes: int = 1000,
    in_chans: int = 3,
    *,
    growth_rate: int = 32,
    num_init_features: int = 64,
    **options: Unpack[Options],
) -> DenseNet:
    """torchvision's ``densenet121``. Arguments as for :class:`DenseNet`."""
    return DenseNet(growth_rate, (6, 12, 24, 16), num_init_features, num_classes, in_chans, **options)
