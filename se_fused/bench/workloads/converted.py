"""Models of other libraries as workloads: the original, and the result of :func:`se_fused.convert`."""

import copy
from collections.abc import Sequence
from importlib import metadata

import torch
from torch import nn

from ..._formats import LAYOUTS
from ...nn import convert
from ..providers.modules import LIBRARIES
from ..providers.registry import missing
from .base import Candidate
from .network import ImageBatch, NetworkWorkload, settle

__all__ = ["CONVERTED", "ConvertWorkload", "library_model"]

CONVERTED = (
    ("seresnet50", "timm"), ("legacy_seresnet50", "timm"), ("efficientnet_b0", "timm"),
    ("mobilenetv3_large_100", "timm"), ("efficientnet_b0", "torchvision"), ("mobilenet_v3_large", "torchvision"),
    ("regnet_y_400mf", "torchvision"), ("seresnet50", "monai"),
)  # fmt: skip
"""(name, library) of the models in the tests and benchmarks of conversion."""


def library_model(name: str, library: str, num_classes: int, in_chans: int = 3) -> nn.Module:
    """A model of another library with deterministic training: dropout and stochastic depth are set to rate 0.

    Args:
        name: timm's or torchvision's name of the model, or the name of MONAI's class, ignoring case.
        library: one of :data:`se_fused.bench.providers.modules.LIBRARIES`.
        num_classes: number of outputs.
        in_chans: channels of the images; must be 3 for torchvision.

    Raises:
        ImportError: the library is not installed.
        ValueError: the library or model is unknown, or ``in_chans`` is not 3 for torchvision.
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
            raise ValueError(f"in_chans must be 3 for torchvision's models; got {in_chans}")
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
            nn.init.constant_(module.weight, 0.5)  # with weight 0, the SE layer would not affect the result
    return model


class ConvertWorkload(NetworkWorkload):
    """A model of another library, "original" and "converted", with the same weights.

    The results are the logits in inference, and the loss and all gradients in training. In bfloat16 and float16,
    inference uses weights of that dtype, and training uses autocast.

    Args:
        name, library: see :func:`library_model`.
        mode: "infer" or "train".
        dtype, device: dtype, as described above, and device.
        layouts: layouts in which both are measured.
        data: the images and their classes.
        seed: seed of the weights.

    Raises:
        ImportError, ValueError: as from :func:`library_model`; ValueError also for an unknown mode.
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
        data: ImageBatch,
        seed: int = 0,
    ) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            original = library_model(name, library, data.num_classes, data.shape[1])
        what = "inference" if mode == "infer" else "forward+backward"
        super().__init__(f"{library} {name} {what}", mode, dtype, device, layouts, data)
        original = original.to(self.device)
        settle(original, self.inputs["contiguous"].float())
        self.baseline = f"{library} {metadata.version(library)}"
        if mode == "infer":
            original = original.to(dtype)
        self._models = {"original": original, "converted": convert(copy.deepcopy(original))}

    def candidate(self, name: str, layout: str) -> Candidate:
        """Build the candidate "original" or "converted" in a layout.

        Raises:
            ValueError: the name is unknown.
        """
        if name not in self.names:
            raise ValueError(f"name must be one of {', '.join(self.names)}; got {name!r}")
        return self._candidate(name, layout, copy.deepcopy(self._models[name]))
