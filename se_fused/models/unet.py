"""U-Net as a classifier, a baseline of the paper."""

from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._checks import check_int
from ..nn import conv_bn_act
from ._classifier import ImageClassifier, Options
from ._registry import register

__all__ = ["UNet"]

_DEPTH = 4


class DoubleConv(nn.Module):
    """3x3 convolution, batch norm and ReLU, twice. (N, C, H, W) -> (N, D, H, W)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False, device=device, dtype=dtype)
        self.bn1 = nn.BatchNorm2d(out_channels, device=device, dtype=dtype)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False, device=device, dtype=dtype)
        self.bn2 = nn.BatchNorm2d(out_channels, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return conv_bn_act(self.conv2, self.bn2, conv_bn_act(self.conv1, self.bn1, x))


class UNetClassifier(ImageClassifier):
    """U-Net (Ronneberger et al. 2015, arXiv:1505.04597) with a pooled head. (N, in_chans, H, W) -> (N, num_classes).

    A U-Net returns a map of the size of the image. The paper compares a U-Net with classifiers, but does not describe
    how it classifies, its width and depth, its initial weights, or whether it uses features of the encoder or of the
    decoder. Here, the last map of the decoder is pooled and classified, so that encoder, decoder and skip connections
    all contribute.

    As in the original: four times 2x2 max-pooling; 64 channels at the size of the image, doubled at each level to 1024;
    two 3x3 convolutions at each level; 2x2 transposed convolutions for upsampling; concatenation of the cropped encoder
    map (first) and the upsampled map. Different from the original: the convolutions are padded, have no bias and are
    followed by batch norm; there is no dropout at the lowest level.

    Args:
        num_classes, in_chans, global_pool, drop_rate: as in :class:`ImageClassifier`.
        width: channels at the size of the image, 64 in the original.
        device, dtype: device and dtype of the parameters.

    Raises:
        TypeError, ValueError: as from :class:`ImageClassifier`, or ``width`` is not a positive int.
    """

    stem_weight = "encoder.0.conv1.weight"

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        *,
        width: int = 64,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_chans, drop_rate)
        self.num_features = check_int(width, "width", 1)
        widths = [width * 2**i for i in range(_DEPTH + 1)]
        self.encoder = nn.ModuleList(
            DoubleConv(c, d, device, dtype) for c, d in zip([in_chans, *widths], widths, strict=False)
        )
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(2 * c, c, 2, 2, device=device, dtype=dtype) for c in reversed(widths[:-1])
        )
        self.decoder = nn.ModuleList(DoubleConv(2 * c, c, device, dtype) for c in reversed(widths[:-1]))
        self._make_head(num_classes, global_pool, device, dtype)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward_features(self, x: Tensor) -> Tensor:
        """The last feature map: (N, in_chans, H, W) -> (N, num_features, H', W').

        H' and W' are H and W rounded down to multiples of 16.

        Raises:
            ValueError: H or W is less than 16.
        """
        if isinstance(x, Tensor) and min(x.shape[2:]) < 2**_DEPTH:  # a torch.fx proxy has no sizes
            raise ValueError(
                f"x must be at least {2**_DEPTH} x {2**_DEPTH} for {_DEPTH} halvings, got shape {tuple(x.shape)}"
            )
        skips: list[Tensor] = []
        for encode in self.encoder:
            x = encode(F.max_pool2d(x, 2) if skips else x)
            skips.append(x)
        skips.pop()
        for up, decode in zip(self.up, self.decoder, strict=True):
            x, skip = up(x), skips.pop()
            x = decode(torch.cat((skip[..., : x.shape[-2], : x.shape[-1]], x), 1))
        return x


@register
def UNet(num_classes: int = 1000, in_chans: int = 3, *, width: int = 64, **options: Unpack[Options]) -> UNetClassifier:
    """U-Net as a classifier. Arguments as for :class:`UNetClassifier`."""
    return UNetClassifier(num_classes, in_chans, width=width, **options)
