"""The end of a residual block, ``act(drop_path(SE(BN(x))) + residual)``, from the modules that hold its parameters.

A block calls :func:`fused_block_end` with its ``bn``, ``se`` and ``drop_path`` modules instead of calling the modules
one by one. If the kernels support the modules, this is one call of :mod:`se_fused.functional`. Otherwise the modules
are called, with the same result. Parameters, running statistics and hooks stay in their modules, and the state_dict is
unchanged.
"""

from torch import Tensor, nn
from torch.nn.modules import module as _module

from .. import functional as F_se
from .._checks import check_rate
from .known import is_nothing, is_of, is_plain, untouched
from .norms import is_fusable, promoted, take
from .squeeze_excite import SqueezeExcite, close_block, fusable_arguments

__all__ = ["DropPath", "bn_act", "conv_bn_act", "drop_path_scale", "fused_block_end", "is_own", "path_scale"]


def drop_path_scale(x: Tensor, drop_prob: float, scale_by_keep: bool = True) -> Tensor:
    """Random factor per sample for stochastic depth: 0 with probability ``drop_prob``, else 1 / (1 - drop_prob).

    The random numbers are those of timm's ``drop_path``: the same seed drops the same samples.

    Args:
        x: (N, ...); only N, the dtype and the device are used.
        drop_prob: probability of the factor 0, in [0, 1].
        scale_by_keep: if False, the factor of the other samples is 1.

    Returns:
        (N,), x's dtype.
    """
    keep = 1 - drop_prob
    scale = x.new_empty((x.shape[0],)).bernoulli_(keep)
    return scale.div_(keep) if keep > 0.0 and scale_by_keep else scale


class DropPath(nn.Module):
    """Stochastic depth per sample, which a kernel can apply.

    Calling the module does the same as timm's ``DropPath``. :meth:`scale` returns only the factors, for a kernel.

    Args:
        drop_prob: probability that the path of a sample is dropped, in [0, 1].
        scale_by_keep: whether the samples that are not dropped are divided by 1 - drop_prob.

    Raises:
        TypeError, ValueError: ``drop_prob`` is not a number in [0, 1].
    """

    def __init__(self, drop_prob: float = 0.0, scale_by_keep: bool = True) -> None:
        super().__init__()
        self.drop_prob = check_rate(drop_prob, "drop_prob", one=True)
        self.scale_by_keep = scale_by_keep

    def scale(self, x: Tensor) -> Tensor | None:
        """Random factors (N,) for x (N, ...), in x's dtype; None in eval mode or for ``drop_prob`` 0."""
        if not self.training or self.drop_prob == 0.0:
            return None
        return drop_path_scale(x, self.drop_prob, self.scale_by_keep)

    def forward(self, x: Tensor) -> Tensor:
        """Apply stochastic depth: (N, ...) -> (N, ...); in training, the dropped samples are zero."""
        return close_block(x, None, None, self.scale(x))

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob:.3f}"


def path_scale(drop: nn.Module | None, x: Tensor) -> tuple[Tensor | None, nn.Module | None]:
    """Factors of stochastic depth, (N,) or None, and the module if it must be called instead, else None.

    The random numbers are those of timm's ``DropPath`` for a map of x's dtype and device.
    """
    if is_nothing(drop):
        return None, None
    assert drop is not None
    if is_plain(drop, DropPath):
        return drop.scale(x), None
    if not (is_of(drop, "timm.layers.drop", "DropPath") and untouched(drop)):
        return None, drop
    if not drop.training or drop.drop_prob == 0.0:
        return None, None
    return drop_path_scale(x, drop.drop_prob, drop.scale_by_keep), None  # type: ignore[arg-type]


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

    This is one functional call if ``bn`` is exactly an ``nn.BatchNorm{1,2,3}d``, an ``nn.SyncBatchNorm`` that has
    nothing to synchronise, or torchvision's ``FrozenBatchNorm2d``; ``se`` is a :class:`SqueezeExcite` or None;
    ``drop_path`` is a :class:`DropPath` or None; and none of them has hooks. Otherwise the result is the same: the
    modules are called, and the operations after them are fused as far as possible. For example, an
    ``nn.SyncBatchNorm`` in training on several processes is called, and SE, addition and activation are one call after
    it; without SE, addition and activation are plain PyTorch.

    Running statistics and ``num_batches_tracked`` are updated exactly as ``bn`` updates them.

    Args:
        bn: the block's last batch norm; None if x is normalised already.
        se: the layer that rescales the channels, or None.
        x: (N, C, *spatial), one to three spatial dimensions; the output of the block's last convolution.
        residual: the added map, with x's shape and dtype, or None.
        out_act: activation after the addition: None, "relu", "silu" or "hard_swish".
        drop_path: stochastic depth between ``se`` and the addition, or None.
        inplace: allow the result to overwrite x in inference; see :func:`is_own`.

    Returns:
        (N, C, *spatial), x's dtype and memory format.
    """
    arguments = None if se is None else fusable_arguments(se)
    if not (
        isinstance(x, Tensor)  # a torch.fx proxy traces the modules
        and bn is not None
        and is_fusable(bn, x)
        and (se is None or arguments is not None)
        and (drop_path is None or is_plain(drop_path, DropPath))
    ):
        return _unfused_block_end(bn, se, x, residual, out_act, drop_path)

    x, inplace = promoted(bn, x, inplace)
    (mean, var, weight, bias), settings = take(bn, x)
    scale = None if drop_path is None else drop_path.scale(x)
    if arguments is None:
        return F_se.batch_norm_act(
            x, mean, var, weight, bias, residual, **settings, out_act=out_act, drop_path_scale=scale, inplace=inplace
        )
    return F_se.batch_norm_squeeze_excite(
        x, mean, var, weight, bias, residual=residual, **settings, **arguments, out_act=out_act,
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
    """Call the modules, so that their hooks run, and fuse the operations after them as far as possible."""
    u = x if bn is None else bn(x)
    if drop_path is None or is_plain(drop_path, DropPath):
        scale = None if drop_path is None else drop_path.scale(u)
        if se is not None and is_plain(se, SqueezeExcite):
            y: Tensor = se(u, residual, out_act, scale)
            return y
        return close_block(u if se is None else se(u), residual, out_act, scale)
    return close_block(drop_path(u if se is None else se(u)), residual, out_act, None)


def is_own(conv: nn.Module) -> bool:
    """Whether ``conv(x)`` returns a new tensor that no hook receives, so that it may be overwritten in inference.

    False for a convolution with hooks, with global forward hooks, or of another class than ``nn.Conv2d``: a feature
    extractor may have stored the tensor.
    """
    return is_plain(conv, nn.Conv2d) and not _module._global_forward_hooks


def bn_act(bn: nn.Module, x: Tensor, out_act: str | None = "relu", inplace: bool = False) -> Tensor:
    """``out_act(bn(x))``, fused where the modules allow, for a batch norm that no SE layer follows.

    The models call it for the batch norms of the stem, of the shortcuts and inside the blocks.

    Args:
        bn: the batch norm, as for :func:`fused_block_end`.
        x: (N, C, *spatial).
        out_act: None, "relu", "silu" or "hard_swish".
        inplace: allow the result to overwrite x in inference.

    Returns:
        (N, C, *spatial), x's dtype and memory format.
    """
    return fused_block_end(bn, None, x, None, out_act, inplace=inplace)


def conv_bn_act(conv: nn.Module, bn: nn.Module, x: Tensor, out_act: str | None = "relu") -> Tensor:
    """``out_act(bn(conv(x)))``, with batch norm and activation fused as in :func:`bn_act`.

    In inference, the result overwrites the convolution's output if :func:`is_own` allows it.
    """
    return bn_act(bn, conv(x), out_act, is_own(conv))
