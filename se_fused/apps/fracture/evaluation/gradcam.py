"""Grad-CAM: heat maps of the image regions that support a class.

Selvaraju et al., ICCV 2017, arXiv:1610.02391, equations 1 and 2.

The last feature map of a small image is too coarse to localise anything: 3x3 at 96 pixels. In this case, the feature
map of an earlier stage is used, the deepest one with at least six positions per side. The paper's maps have 14
positions per side (VGG-16) and 7 (ResNet).

A map is aligned with the image by the centres of its receptive fields, not by equal cells. With odd kernels and
symmetric padding, position i of a ResNet's last map is centred on pixel 32 i, half a cell above and left of the middle
of its cell. On an image of 96 pixels that is a sixth of the width, which would place the heat beside the fracture.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....models._classifier import ImageClassifier

__all__ = ["grad_cam"]

_LEAST = 6
_EARLIER = ("layer3", "layer2", "features.denseblock3", "features.denseblock2")  # deepest first
_PROBE = 8  # map size for measuring receptive fields: those in the middle of the map end inside the image

# Measured once per model: the centre depends on kernels and strides; the weights change it by a pixel or two only.
_CENTRES: WeakKeyDictionary[nn.Module, dict[tuple[str, int], float]] = WeakKeyDictionary()


@contextmanager
def _seen(model: nn.Module, layer: str) -> Iterator[list[Tensor]]:
    """Collect the outputs of a layer during forward passes, as autograd leaves that feed the rest of the network."""
    found: list[Tensor] = []

    def keep(module: nn.Module, arguments: object, output: Tensor) -> Tensor:
        found.append(output.detach().requires_grad_())
        return found[-1]

    handle = model.get_submodule(layer).register_forward_hook(keep)
    try:
        yield found
    finally:
        handle.remove()


def _forward(model: ImageClassifier, x: Tensor, layer: str) -> tuple[Tensor, Tensor]:
    """Feature map of a layer ("" for the last one) as an autograd leaf, and the logits as a function of it."""
    if not layer:
        with torch.no_grad():
            features = model.forward_features(x)
        features.requires_grad_()
        return features, model.forward_head(features)
    with _seen(model, layer) as found:
        logits = model(x)
    return found[0], logits


@torch.no_grad()
def _side(model: nn.Module, x: Tensor, layer: str) -> int:
    """Number of positions per side of a layer's feature map."""
    with _seen(model, layer) as found:
        model.forward_features(x[:1])  # type: ignore[operator]
    return found[0].shape[3]


def _chosen_layer(model: ImageClassifier, x: Tensor) -> str:
    """The deepest layer with at least _LEAST positions per side, or the finest available; "" is the last layer."""
    with torch.no_grad():
        if model.forward_features(x[:1]).shape[3] >= _LEAST:
            return ""
    there = [name for name in _EARLIER if name in dict(model.named_modules())]
    return next((name for name in there if _side(model, x, name) >= _LEAST), there[-1] if there else "")


def _first_centre(model: ImageClassifier, layer: str, stride: int) -> float:
    """Measure the pixel at the centre of the receptive field of position 0 of the feature map.

    The centroid of the squared gradient of the features at the middle position, with respect to four noise images that
    are larger than the network's input, minus the middle position times the stride.
    """
    place = next(model.parameters())
    generator = torch.Generator().manual_seed(0)
    size = stride * max(_PROBE, -(-2 * _PROBE * _PROBE // stride))
    noise = torch.randn(4, model.in_chans, size, size, generator=generator).to(place.device, place.dtype)
    noise.requires_grad_()
    maps: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda *call: maps.append(call[2])) if layer else None
    try:
        last = model.forward_features(noise)
    finally:
        if handle is not None:
            handle.remove()
    features = maps[0] if layer else last
    middle = features.shape[2] // 2
    (slope,) = torch.autograd.grad(features[:, :, middle, middle].square().sum(), noise)
    weight = slope.double().square().sum((0, 1))
    pixels = torch.arange(size, device=place.device, dtype=torch.float64)
    centre = ((weight.sum(0) + weight.sum(1)) * pixels).sum() / (2 * weight.sum())
    return float(centre) - middle * stride


def _laid_over(maps: Tensor, size: int, first: float, stride: int) -> Tensor:
    """Resample maps (N, 1, h, w) to (N, S, S), bilinear between the centres and constant beyond the outermost ones."""
    places = (torch.arange(size, dtype=torch.float32, device=maps.device) - first) / stride
    places = 2 * places / max(maps.shape[2] - 1, 1) - 1
    grid = torch.stack(torch.meshgrid(places, places, indexing="xy"), -1).expand(len(maps), -1, -1, -1)
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=True)[:, 0]


def grad_cam(model: nn.Module, images: Tensor, classes: Sequence[int] | Tensor | None = None) -> Tensor:
    """Grad-CAM heat map of one class for each image, from the last feature map that is fine enough.

    A heat map is ``relu(sum_k a_k A_k)``, where ``a_k`` is the mean over positions of the gradient of the class's logit
    with respect to feature map ``A_k``. It is resampled to the image size by the centres of the receptive fields and
    divided by its maximum.

    Args:
        model: a model of se_fused. It runs in evaluation mode; its mode is restored afterwards.
        images: (N, C, S, S), normalised, on the model's device.
        classes: N class numbers; None: the predicted classes.

    Returns:
        (N, S, S) float32 in [0, 1] on the CPU. The maximum of a map is 1, or 0 if no region supports the class.

    Raises:
        TypeError: the model is not a model of se_fused.
        ValueError: `classes` are not N valid class numbers.
    """
    if not isinstance(model, ImageClassifier):
        raise TypeError(f"model must be one of se_fused.list_models(), got {type(model).__name__}")
    training = model.training
    model.eval()
    try:
        with torch.enable_grad():
            layer = _chosen_layer(model, images)
            features, logits = _forward(model, images, layer)
            chosen = logits.argmax(1) if classes is None else torch.as_tensor(classes, device=logits.device)
            if chosen.shape != (len(images),) or not bool(((chosen >= 0) & (chosen < logits.shape[1])).all()):
                raise ValueError(
                    f"classes must be {len(images)} numbers from 0 to {logits.shape[1] - 1}, got {chosen.tolist()}"
                )
            (slope,) = torch.autograd.grad(logits.gather(1, chosen[:, None]).sum(), features)
            stride = round(images.shape[3] / features.shape[3])
            known = _CENTRES.setdefault(model, {})
            if stride > 1 and (layer, stride) not in known:
                known[layer, stride] = _first_centre(model, layer, stride)
            first = known.get((layer, stride), 0.0)
    finally:
        model.train(training)
    maps = (features.detach() * slope.mean((2, 3), keepdim=True)).sum(1, keepdim=True).relu().float()
    maps = _laid_over(maps, images.shape[3], first, stride)
    largest = maps.amax((1, 2), keepdim=True)
    return (maps / torch.where(largest > 0, largest, 1.0)).cpu()
