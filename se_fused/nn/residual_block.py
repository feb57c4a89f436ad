"""The end of a residual block, ``act(drop_path(SE(BN(x))) + residual)``, from the modules that hold its parameters.

A block calls :func:`fused_block_end` with its own ``bn``, ``se`` and ``drop_path`` modules instead of calling them one
after another. Where they are what the kernels know, that is one call of :mod:`se_fused.functional`; where not, they are
called as modules and the result is the same. No state moves: state_dict, hooks and running statistics stay theirs.
"""

from typing import TypeGuard

from torch import Tensor, nn
from torch.nn.modules import module as _module

from .. import functional as F_se
from .._checks import check_rate
from .known import is_plain
from .norms import is_fusable, promoted, take
from .squeeze_excite import SqueezeExcite, close_block

__all__ = ["DropPath", "bn_act", "conv_bn_act", "drop_path_scale", "fused_block_end", "is_own"]


def drop_path_scale(x: Tensor, drop_prob: float, scale_by_keep: bool = True) -> Tensor:
    """A factor per sample that drops the path with probability ``drop_prob``: 0, or 1 / (1 - drop_prob).

    Draws what timm's ``drop_path`` draws, so that the same seed drops the same samples.

    Args:
        x: (N, ...), gives N, dtype and device.
        drop_prob: in [0, 1].
        scale_by_keep: whether what is kept is divided by the probability of keeping it.

    Returns:
        (N,), x's dtype.
    """
    keep = 1 - drop_prob
    scale = x.new_empty((x.shape[0],)).bernoulli_(keep)
    return scale.div_(keep) if keep > 0.0 and scale_by_keep else scale


class DropPath(nn.Module):
    """Stochastic depth per sample, for a kernel to apply.

    Called, it is timm's ``DropPath``; :meth:`scale` gives the factors alone.

    Args:
        drop_prob: the probability with which a sample loses the path, in [0, 1].
        scale_by_keep: whether what is kept is divided by the probability of keeping it.

    Raises:
        TypeError, ValueError: ``drop_prob`` is no number in [0, 1].
    """

    def __init__(self, drop_prob: float = 0.0, scale_by_keep: bool = True) -> None:
        super().__init__()
        self.drop_prob = check_rate(drop_prob, "drop_prob", one=True)
        self.scale_by_keep = scale_by_keep

    def scale(self, x: Tensor) -> Tensor | None:
        """The factors (N,) for x: (N, ...), in x's dtype; None in eval mode or if nothing is ever dropped."""
        if not self.training or self.drop_prob == 0.0:
            return None
        return drop_path_scale(x, self.drop_prob, self.scale_by_keep)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, *) -> (N, *), some samples zeroed in training."""
        return close_block(x, None, None, self.scale(x))

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob:.3f}"


def _is_fusable_se(se: nn.Module) -> TypeGuard[SqueezeExcite]:
    return is_plain(se, SqueezeExcite) and se.is_fusable()


def fused_block_end(
    bn: nn.Module | None,
    se: nn.Module | None,
    x: Tensor,
    residual: Tensor | None = None,
    out_act: str | None = "relu",
    drop_path: nn.Module | None = None,
    inplace: bool = False,
) -> Tensor:
    """``out_act(drop_path(se(bn(x))) + residual)``, fused where the modules allow.

    One functional call if ``bn`` is exactly an ``nn.BatchNorm{1,2,3}d`` (or an ``nn.SyncBatchNorm`` with nothing to
    synchronise, or torchvision's ``FrozenBatchNorm2d``), ``se`` a :class:`SqueezeExcite` or None, and ``drop_path`` a
    :class:`DropPath` or None, all without hooks. Otherwise the modules are called and as much as possible of what
    follows them is fused: for an ``nn.SyncBatchNorm`` in training on several processes, bn is called, then SE, addition
    and activation are one call; without SE they are plain PyTorch. Correct everywhere, fused not everywhere.

    Running statistics and ``num_batches_tracked`` are updated as ``bn`` itself would.

    Args:
        bn: the block's last normalisation; None: it has been applied.
        se: what rescales its channels, if anything.
        x: (N, C, *spatial), what the block's last convolution gave.
        residual: x's shape and dtype, or None.
        out_act: None, "relu", "silu" or "hard_swish".
        drop_path: stochastic depth between ``se`` and the addition, if any.
        inplace: permits the result to be written over x in inference; see :func:`is_own`.

    Returns:
        (N, C, *spatial), x's dtype and memory format.
    """
    if not (
        isinstance(x, Tensor)  # a proxy of torch.fx traces the modules
        and bn is not None
        and is_fusable(bn, x)
        and (se is None or _is_fusable_se(se))
        and (drop_path is None or is_plain(drop_path, DropPath))
    ):
        return _unfused_block_end(bn, se, x, residual, out_act, drop_path)

    x, inplace = promoted(bn, x, inplace)
    (mean, var, weight, bias), settings = take(bn, x)
    scale = None if drop_path is None else drop_path.scale(x)
    if se is None:
        return F_se.batch_norm_act(
            x, mean, var, weight, bias, residual, **settings, out_act=out_act, drop_path_scale=scale, inplace=inplace
        )
    return F_se.batch_norm_squeeze_excite(
        x, mean, var, weight, bias, residual=residual, **settings, **se.arguments(), out_act=out_act,
        drop_path_scale=scale, inplace=inplace,
    )  # fmt: skip


def _unfused_block_end(
    bn: nn.Module | None,
    se: nn.Module | None,
    x: Tensor,
    residual: Tensor | None,
    out_act: str | None,
    drop_path: nn.Module | None,
) -> Tensor:
    """Call the modules, each with what it expects, so that their hooks see it; fuse what follows them."""
    u = x if bn is None else bn(x)
    if drop_path is None or is_plain(drop_path, DropPath):
        scale = None if drop_path is None else drop_path.scale(u)
        if se is not None and is_plain(se, SqueezeExcite):
            y: Tensor = se(u, residual, out_act, scale)
            return y
        return close_block(u if se is None else se(u), residual, out_act, scale)
    return close_block(drop_path(u if se is None else se(u)), residual, out_act, None)


def is_own(conv: nn.Module) -> bool:
    """Whether what ``conv(x)`` returns is the caller's alone: a new tensor, and no hook has seen it.

    Then it may be overwritten in inference. Feature extractors (forward hooks, on this module or on all) keep theirs.
    """
    return is_plain(conv, nn.Conv2d) and not _module._global_forward_hooks


def bn_act(bn: nn.Module, x: Tensor, out_act: str | None = "relu", inplace: bool = False) -> Tensor:
    """``out_act(bn(x))``: the normalisations inside a block, of its stem and of its shortcut. x: (N, C, *spatial).

    All batch norms of the models that no SE follows are called through it, so that what runs there is decided once.
    """
    return fused_block_end(bn, None, x, None, out_act, inplace=inplace)


def conv_bn_act(conv: nn.Module, bn: nn.Module, x: Tensor, out_act: str | None = "relu") -> Tensor:
    """``out_act(bn(conv(x)))``, written over the convolution's output where :func:`is_own` permits it."""
    return bn_act(bn, conv(x), out_act, is_own(conv))
