"""Whole models of other libraries as workloads: as they are, and as :func:`se_fused.convert` makes them."""

import copy
from collections.abc import Sequence
from importlib import metadata

import torch
from torch import Tensor, nn

from ..._formats import LAYOUTS
from ...nn import convert
from ..providers.modules import LIBRARIES
from ..providers.registry import missing
from .base import Candidate
from .network import NetworkWorkload, settle

__all__ = ["CONVERTED", "ConvertWorkload", "library_model"]

CONVERTED = (
    ("seresnet50", "timm"), ("legacy_seresnet50", "timm"), ("efficientnet_b0", "timm"),
    ("mobilenetv3_large_100", "timm"), ("efficientnet_b0", "torchvision"), ("mobilenet_v3_large", "torchvision"),
    ("regnet_y_400mf", "torchvision"), ("seresnet50", "monai"),
)  # fmt: skip
"""(name, library) of the models that the tests and the benchmarks convert."""


def library_model(name: str, library: str, num_classes: int, in_chans: int = 3) -> nn.Module:
    """A model of that library, whose training is deterministic: dropout and stochastic depth have the rate 0.

    Args:
        name: timm's or torchvision's name of the model, or the name of MONAI's class in any case.
        library: one of :data:`se_fused.bench.providers.modules.LIBRARIES`.
        num_classes: outputs.
        in_chans: channels of the image; torchvision's have 3.

    Raises:
        ImportError: the library is not installed.
        ValueError: no such library or model, or torchvision with other channels.
    """
    if library not in LIBRARIES:
        raise ValueError(f"library must be one of {', '.join(LIBRARIES)}; got {library!r}")
    reason = missing(library)
    if reason is not None:
        raise ImportError(reason)
    model: nn.Module
    if library == "timm":
        import timm

        if not timm.is_model(name):
            raise ValueError(f"name must be a model of timm, see timm.list_models(); got {name!r}")
        model = timm.create_model(name, num_classes=num_classes, in_chans=in_chans)
    elif library == "torchvision":
        import torchvision

        if in_chans != 3:
            raise ValueError(f"in_chans must be 3 with torchvision, whose models take nothing else; got {in_chans}")
        model = torchvision.models.get_model(name, num_classes=num_classes)
    else:
        from monai.networks import nets

        builds = {known.lower(): known for known in dir(nets) if isinstance(getattr(nets, known), type)}
        if name.lower() not in builds:
            raise ValueError(f"name must be a class of monai.networks.nets; got {name!r}")
        model = getattr(nets, builds[name.lower()])(spatial_dims=2, in_channels=in_chans, num_classes=num_classes)
    rates = {"StochasticDepth": "p", "DropPath": "drop_prob"}
    for module in model.modules():
        dropout = isinstance(module, nn.modules.dropout._DropoutNd)
        rate = "p" if dropout else rates.get(type(module).__name__)
        if rate is not None:
            setattr(module, rate, 0.0)
        elif isinstance(module, nn.BatchNorm2d) and not module.weight.any():
            nn.init.constant_(module.weight, 0.5)  # a block that starts as identity would hide its SE
    return model


class ConvertWorkload(NetworkWorkload):
    """A model of another library, "original" and "converted", with the same weights: logits, or loss and all gradients.

    In bfloat16 and float16, inference runs with weights of that dtype and training under autocast.

    Args:
        name, library: see :func:`library_model`.
        mode: "infer" or "train".
        dtype, device: see above.
        layouts: those that both are measured in.
        batch, size, in_chans, num_classes: of the images (batch, in_chans, size, size), and of the classes.
        images: (N, C, H, W) float32 in place of normal numbers.
        targets: (N,) int64 classes; None counts through them.
        seed: of the weights.

    Raises:
        ImportError, ValueError: from :func:`library_model`; ValueError: another mode.
    """

    names = ("original", "converted")
    truth_of = "original"

    def __init__(
        self,
        name: str,
        library: str,
        mode: str,
        dtype: torch.dtype,
        device: str | torch.device,
        *,
        layouts: Sequence[str] = tuple(LAYOUTS),
        batch: int = 8,
        size: int = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        images: Tensor | None = None,
        targets: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        shape = (batch, in_chans, size, size) if images is None else tuple(images.shape)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            original = library_model(name, library, num_classes, shape[1])
        what = "inference" if mode == "infer" else "forward+backward"
        super().__init__(f"{library} {name} {what}", mode, dtype, device, layouts, shape, images, targets, num_classes)
        original = original.to(self.device)
        settle(original, self.inputs["contiguous"].float())
        self.baseline = f"{library} {metadata.version(library)}"
        if mode == "infer":
            original = original.to(dtype)
        self._models = {"original": original, "converted": convert(copy.deepcopy(original))}

    def candidate(self, name: str, layout: str) -> Candidate:
        """Either of the two, "original" or "converted", in either layout.

        Raises:
            ValueError: another name.
        """
        if name not in self.names:
            raise ValueError(f"name must be one of {', '.join(self.names)}; got {name!r}")
        return self._candidate(name, layout, copy.deepcopy(self._models[name]))
