"""The end of a residual block built from the SE modules of timm, torchvision and MONAI, as in their networks.

All three compute FC, ReLU, FC and sigmoid, with biases, on the mean of each channel. The other operations are the same
for all, as in timm's ``Bottleneck``: ``torch.nn.BatchNorm2d`` before SE, then addition and ReLU, both in place.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

__all__ = ["LIBRARIES", "ModuleBlock", "se_layer"]

LIBRARIES = ("timm", "torchvision", "monai")
"""Libraries whose SE modules and models are baselines."""


def se_layer(library: str, channels: int, hidden: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    """An SE layer of a library, and its two fully connected layers, C to R and R to C.

    Args:
        library: one of :data:`LIBRARIES`.
        channels: number of channels C.
        hidden: squeezed width R.
    """
    layer: Any
    if library == "timm":
        from timm.layers.squeeze_excite import SEModule

        layer = SEModule(channels, rd_channels=hidden)
        return layer, layer.fc1, layer.fc2
    if library == "torchvision":
        from torchvision.ops import SqueezeExcitation

        layer = SqueezeExcitation(channels, hidden)
        return layer, layer.fc1, layer.fc2
    if library == "monai":
        from monai.networks.blocks.squeeze_and_excitation import ChannelSELayer

        # MONAI computes R = in_channels // r, so an r with in_channels / r = R + 0.5 gives R for every C. ReLU, sigmoid
        # and biases are its defaults.
        quotient: Any = channels / (hidden + 0.5)
        layer = ChannelSELayer(2, channels, r=quotient)
        return layer, layer.fc[0], layer.fc[2]
    raise ValueError(f"library must be one of {', '.join(LIBRARIES)}; got {library!r}")


class ModuleBlock(nn.Module):
    """relu(SE(BN(x)) + residual) with the SE module of a library. x and residual (N, C, H, W) -> (N, C, H, W).

    Args:
        library: one of :data:`LIBRARIES`.
        given: tensors of the workload by name: fc1_weight (R, C), fc1_bias, fc2_weight (C, R), fc2_bias; with batch
            norm also running_mean, running_var, bn_weight, bn_bias. Parameters share their memory with these tensors,
            running statistics are copies.
        training: whether batch norm uses the statistics of the batch.

    Attributes:
        tensors: parameters and buffers of the module by the names of the workload.
    """

    bn: nn.BatchNorm2d | None

    def __init__(self, library: str, given: Mapping[str, Tensor], training: bool) -> None:
        super().__init__()
        r, c = given["fc1_weight"].shape
        self.se, fc1, fc2 = se_layer(library, c, r)
        self.act = nn.ReLU(inplace=True)
        self.bn = nn.BatchNorm2d(c) if "running_mean" in given else None
        self.tensors: dict[str, Tensor] = {}
        owners: dict[str, nn.Module] = {"fc1": fc1, "fc2": fc2}
        if self.bn is not None:
            owners["bn"] = self.bn
            for name in ("running_mean", "running_var"):
                self.tensors[name] = given[name].detach().clone()
                self.bn.register_buffer(name, self.tensors[name])
            assert self.bn.num_batches_tracked is not None
            self.bn.num_batches_tracked = self.bn.num_batches_tracked.to(given["running_mean"].device)
        for prefix, owner in owners.items():
            for name, parameter in list(owner.named_parameters()):
                source = given[f"{prefix}_{name}"]
                shared = source.detach().view(parameter.shape)  # a 1x1 convolution's weight has (R, C, 1, 1)
                setattr(owner, name, nn.Parameter(shared, source.requires_grad))
                self.tensors[f"{prefix}_{name}"] = getattr(owner, name)
        self.train(training)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        u: Tensor = self.se(x if self.bn is None else self.bn(x))
        u += residual
        y: Tensor = self.act(u)
        return y
