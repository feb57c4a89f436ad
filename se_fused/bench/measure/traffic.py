"""Counted memory traffic: the number of passes over the map and their bytes, for comparison with measured times."""

from dataclasses import dataclass

import torch

__all__ = ["PassCounts", "counted_bytes", "counted_passes"]


@dataclass(frozen=True)
class PassCounts:
    """Numbers of passes that read or write a map (N, C, *spatial), and of passes over the mask of one bit per element.

    x, residual, y, dy, dr and dx count once per pass that reads or writes them (DESIGN section 4), and so does the
    mask. Vectors of size (N, C) and smaller, parameters, and additional traffic of an implementation do not count. The
    time for these bytes is therefore a lower bound for this design, not a model of an implementation.
    """

    forward: int
    backward: int
    forward_masks: int = 0
    backward_masks: int = 0

    @property
    def passes(self) -> int:
        """Passes over maps, forward and backward."""
        return self.forward + self.backward

    @property
    def masks(self) -> int:
        """Passes over the mask, forward and backward."""
        return self.forward_masks + self.backward_masks

    def forward_only(self) -> "PassCounts":
        """Counts of the forward pass alone: in training, 4 of the 4 + 6 passes of DESIGN section 4, and the mask."""
        return PassCounts(forward=self.forward, backward=0, forward_masks=self.forward_masks)


def counted_passes(*, training: bool, batch_norm: bool = True, residual: bool = True, relu: bool = True) -> PassCounts:
    """Passes of DESIGN section 4: 4 and the mask forward, 6 and the mask backward in training; 3 in inference.

    Args:
        training: True: forward and backward with the statistics of the batch (:meth:`PassCounts.forward_only` gives
            the forward part). False: forward in inference, which reads x from memory once: the second time, a sample is
            in the cache or on the chip.
        batch_norm: False in training: SE alone, whose second backward pass does not read x.
        residual: whether a residual is added. It is read in forward; its gradient dr is written and read in backward.
        relu: whether the block ends with ReLU, which needs the mask.
    """
    if not training:
        return PassCounts(forward=3 if residual else 2, backward=0)
    # Forward: read x for the moments; read x and residual, write y. Backward: read dy and x, and write dr if it differs
    # from dy; then read dr (or dy) and x, write dx.
    writes_dr = residual and relu
    return PassCounts(
        forward=4 if residual else 3,
        backward=(6 if writes_dr else 5) - (0 if batch_norm else 1),
        forward_masks=int(relu),
        backward_masks=0 if not relu else (1 if writes_dr else 2),
    )


def counted_bytes(shape: tuple[int, ...], dtype: torch.dtype, passes: PassCounts) -> int:
    """Bytes of the passes over maps of this shape and dtype. The rows of the mask are counted without padding."""
    elements = 1
    for size in shape:
        elements *= size
    return passes.passes * elements * dtype.itemsize + passes.masks * ((elements + 7) // 8)
