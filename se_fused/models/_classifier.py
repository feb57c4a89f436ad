"""What every model here has: a feature extractor, global pooling, dropout, a linear classifier. timm's interface."""

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
    """What every model takes by keyword, with the meaning it has in :class:`ImageClassifier`."""

    global_pool: str
    drop_rate: float
    device: torch.device | str | None
    dtype: torch.dtype | None


class ImageClassifier(nn.Module):
    """(N, in_chans, H, W) -> (N, num_classes). Subclasses define ``forward_features`` and call :meth:`_make_head`.

    Args:
        in_chans: channels of the image.
        drop_rate: dropout before the classifier.

    Attributes:
        num_classes: outputs; 0: no classifier, the model returns pooled features.
        in_chans: channels of the image.
        num_features: channels of the last map.
        head_hidden_size: features that the classifier sees: num_features, or twice that for "catavgmax".
        global_pool: "avg", "max", "avgmax" (their mean), "catavgmax" (both), or "": none, the model returns the map;
            needs ``num_classes=0``.
        drop_rate: dropout before the classifier.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of its range; the message names it.
    """

    classifier_name = "fc"
    stem_weight = "conv1.weight"
    """Keys of the last and the first layer, which differ where classes or image channels do."""
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
        """A new classifier with fresh weights; ``global_pool=None`` keeps the pooling.

        Raises:
            TypeError, ValueError: as from the constructor.
        """
        pool = self.global_pool.pool_type if global_pool is None else global_pool
        parameter = next(self.parameters())
        self._make_head(num_classes, pool, parameter.device, parameter.dtype)
        self.global_pool.train(self.training)
        self.get_classifier().train(self.training)

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> (N, num_features, h, w)."""
        raise NotImplementedError

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(N, num_features, h, w) -> (N, num_classes), or with ``pre_logits`` what the classifier sees."""
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
        # Here, and not in load_state_dict, because a model inside another module is to be guarded too; and before the
        # first parameter is overwritten.
        keys = [key.removeprefix(prefix) for key in state_dict if key.startswith(prefix)]
        wrapper = next((w for w in _WRAPPERS if keys and all(key.startswith(w) for key in keys)), None)
        if wrapper is not None:
            raise RuntimeError(
                f"every key of the state_dict starts with {prefix + wrapper!r}: it was saved from a wrapped model; "
                "se_fused.load_pretrained(model, path) strips that, and so does "
                f"{{k.removeprefix({wrapper!r}): v for k, v in state_dict.items()}}"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)
