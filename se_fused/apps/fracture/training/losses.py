"""Class weights and losses for imbalanced classes."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...._errors import InputError

__all__ = ["class_weights", "focal_loss", "make_loss"]


def class_weights(counts: Sequence[int], kind: str, beta: float = 0.999) -> Tensor | None:
    """Class weights with a mean of 1 over the training images, so that the scale of the loss does not change.

    Args:
        counts: number of training images of each class.
        kind: "none"; "inverse": 1 / n; "sqrt": 1 / √n; "effective": (1 - β) / (1 - βⁿ), the inverse of the effective
            number of samples (Cui et al. 2019, arXiv:1901.05555, equation 2).
        beta: β of "effective", 0 to below 1.

    Returns:
        (K,) float32; None for "none".

    Raises:
        InputError: a class has no images.
    """
    if kind == "none":
        return None
    if min(counts) < 1:
        raise InputError("training.class_weights: a class without training images has no weight; set this to none")
    n = torch.tensor(counts, dtype=torch.float64)
    if kind == "inverse":
        weights = 1 / n
    elif kind == "sqrt":
        weights = n.rsqrt()
    elif kind == "effective":
        weights = (1 - beta) / (1 - beta**n)
    else:
        raise ValueError(f"kind must be none, inverse, sqrt or effective, got {kind!r}")
    return (weights * n.sum() / (weights * n).sum()).float()


def focal_loss(
    logits: Tensor, labels: Tensor, gamma: float, weight: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """Mean over images of -Σ_k q_k α_k (1 - p_k)^γ log p_k, with p = softmax(logits).

    Lin et al. 2017, arXiv:1708.02002, equation 5, for K classes. q is the one-hot label, or the label smoothed as in
    ``F.cross_entropy``: (1 - ε) times the one-hot label plus ε / K for every class. With γ = 0 and no weights it is the
    cross entropy. The sum is divided by the number of images, not by the sum of the weights.

    Args:
        logits: (N, K).
        labels: (N,) int64.
        gamma: γ, >= 0.
        weight: (K,) α; None: all 1.
        smoothing: ε, 0 to 1.
    """
    logs = F.log_softmax(logits, 1)
    classes = logits.shape[1]
    targets = torch.full_like(logs, smoothing / classes)
    targets.scatter_add_(1, labels[:, None], torch.full_like(logs[:, :1], 1 - smoothing))
    # expm1 for 1 - p: near p = 1, the difference would consist of rounding errors only.
    terms = targets * (-torch.expm1(logs)).clamp_min(torch.finfo(logs.dtype).tiny) ** gamma * logs
    if weight is not None:
        terms = terms * weight.to(terms.dtype)
    return -terms.sum(1).mean()


def make_loss(
    kind: str, gamma: float, smoothing: float, weight: Tensor | None, logits: Tensor, labels: Tensor
) -> Tensor:
    """Mean loss over the images of a batch, computed in float32 or float64.

    Weighted cross entropy is divided by the number of images. ``F.cross_entropy`` divides by the sum of the weights in
    the batch, so a batch of only rare classes would count no more than any other batch.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if kind == "focal":
        return focal_loss(logits, labels, gamma, weight, smoothing)
    return F.cross_entropy(logits, labels, weight, reduction="none", label_smoothing=smoothing).mean()
