"""Base class of the models, with timm's interface: feature extractor, global pooling, dropout, linear classifier."""

from typing import Any, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._checks import check_int, check_rate
from ..nn.known import refuse_torchscript
from ._blocks import GlobalPool

__all__ = ["ImageClassifier", "Options"]

_WRAPPERS = ("module.", "_orig_mod.")


class Options(TypedDict, total=False):
    """Keyword arguments of every model, described in :class:`ImageClassifier`."""

    global_pool: str
    drop_rate: float
    device: torch.device | str | None
    dtype: torch.dtype | None


class ImageClassifier(nn.Module):
    """Base class of image classifiers, (N, in_chans, H, W) -> (N, num_classes).

    Subclasses define ``forward_features`` and call :meth:`_make_head`.

    Args:
        in_chans: channels of the images.
        drop_rate: dropout probability before the classifier.

    Attributes:
        num_classes: number of outputs; with 0, the model has no classifier and returns pooled features.
        in_chans: channels of the images.
        num_features: channels of the last feature map.
        head_hidden_size: input features of the classifier: num_features, or twice as many for "catavgmax".
        global_pool: "avg", "max", "avgmax" (the mean of both), "catavgmax" (both), or "": no pooling, the model
            returns the feature map, which needs ``num_classes=0``.
        drop_rate: dropout probability before the classifier.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range. The message names the argument.
    """

    classifier_name = "fc"
    stem_weight = "conv1.weight"
    """Name of the last layer and key of the first weight: their shapes depend on num_classes and in_chans."""
    num_features: int
    __prepare_scriptable__ = refuse_torchscript

    def __init__(self, in_chans: int, drop_rate: float) -> None:
        super().__init__()
        self.in_chans = check_int(in_chans, "in_chans", 1)
        self.drop_rate = check_rate(drop_rate, "drop_rate")

    def _make_head(
        self, num_classes: int, global_pool: str, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> None:
        num_classes = check_int(num_classes, "num_classes", 0)
        pool = GlobalPool(global_pool)
        if num_classes and not global_pool:
            raise ValueError(
                f"global_pool must pool for a classifier of num_classes={num_classes}, got ''; give global_pool='avg', "
                "or num_classes=0 for the map itself"
            )
        self.num_classes = num_classes
        self.head_hidden_size = self.num_features * pool.feat_mult()
        self.global_pool = pool
        classifier: nn.Module = nn.Identity()
        if num_classes:
            classifier = nn.Linear(self.head_hidden_size, num_classes, device=device, dtype=dtype)
        setattr(self, self.classifier_name, classifier)

    def get_classifier(self) -> nn.Module:
        """The last layer: an ``nn.Linear``, or an ``nn.Identity`` with ``num_classes=0``."""
        classifier: nn.Module = getattr(self, self.classifier_name)
        return classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one with new initial weights.

        Args:
            num_classes: number of outputs; 0 removes the classifier.
            global_pool: the new pooling, as in the constructor; None leaves it unchanged.

        Raises:
            TypeError, ValueError: as from the constructor.
        """
        pool = self.global_pool.pool_type if global_pool is None else global_pool
        parameter = next(self.parameters())
        self._make_head(num_classes, pool, parameter.device, parameter.dtype)
        self.global_pool.train(self.training)
        self.get_classifier().train(self.training)

    def forward_features(self, x: Tensor) -> Tensor:
        """The last feature map: (N, in_chans, H, W) -> (N, num_features, h, w)."""
        raise NotImplementedError

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify: (N, num_features, h, w) -> (N, num_classes).

        With ``pre_logits``, return the classifier's input (N, head_hidden_size) instead.
        """
        x = self.global_pool(x)
        if self.drop_rate:
            x = F.dropout(x, self.drop_rate, self.training)
        if not pre_logits:
            x = self.get_classifier()(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> (N, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Check here rather than in load_state_dict, to protect a model inside another module too, and before the first
        # parameter is overwritten.
        keys = [key.removeprefix(prefix) for key in state_dict if key.startswith(prefix)]
        wrapper = next((w for w in _WRAPPERS if keys and all(key.startswith(w) for key in keys)), None)
        if wrapper is not None:
            raise RuntimeError(
                f"every key of the state_dict starts with {prefix + wrapper!r}: it was saved from a wrapped model; "
                "load it with se_fused.load_pretrained(model, path), or remove the prefix: "
                f"{{k.removeprefix({wrapper!r}): v for k, v in state_dict.items()}}"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)
