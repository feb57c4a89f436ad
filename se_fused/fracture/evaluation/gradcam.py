"""Grad-CAM: where on an image a class was seen (Selvaraju et al., ICCV 2017, arXiv:1610.02391, equations 1 and 2).

The class's logit depends on the last map through the head alone, so its slope there needs no backward pass through the
network's body: any model with ``forward_features`` and ``forward_head`` will do, whichever kernels it runs on.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...models._classifier import ImageClassifier

__all__ = ["grad_cam"]


def grad_cam(model: nn.Module, images: Tensor, classes: Sequence[int] | Tensor | None = None) -> Tensor:
    """Heat maps of one class for each image, on the network's last map of features.

    ``relu(sum_k a_k A_k)`` with ``a_k`` the mean over positions of the slope of the class's logit in map ``A_k``,
    enlarged to the image's size and divided by its largest value.

    Args:
        model: one of ours; it is evaluated, and left in the mode it was in.
        images: (N, C, S, S), normalised, on the model's device.
        classes: N class numbers; None: the predicted ones.

    Returns:
        (N, S, S) float32 in [0, 1] on the CPU; the largest value of a map is 1, or all are 0 where nothing speaks for
        the class.

    Raises:
        TypeError: the model is none of ours.
        ValueError: classes are not N numbers of classes.
    """
    if not isinstance(model, ImageClassifier):
        raise TypeError(f"model must be one of se_fused.list_models(), got {type(model).__name__}")
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            features = model.forward_features(images)
        features.requires_grad_()
        with torch.enable_grad():
            logits = model.forward_head(features)
            chosen = logits.argmax(1) if classes is None else torch.as_tensor(classes, device=logits.device)
            if chosen.shape != (len(images),) or not bool(((chosen >= 0) & (chosen < logits.shape[1])).all()):
                raise ValueError(
                    f"classes must be {len(images)} numbers from 0 to {logits.shape[1] - 1}, got {chosen.tolist()}"
                )
            (slope,) = torch.autograd.grad(logits.gather(1, chosen[:, None]).sum(), features)
    finally:
        model.train(training)
    maps = (features.detach() * slope.mean((2, 3), keepdim=True)).sum(1, keepdim=True).relu().float()
    maps = F.interpolate(maps, images.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    largest = maps.amax((1, 2), keepdim=True)
    return (maps / torch.where(largest > 0, largest, 1.0)).cpu()
