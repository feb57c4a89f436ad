"""Counted memory traffic: the passes over the map and their bytes, against which a measured time is held."""

from dataclasses import dataclass

import torch

__all__ = ["PassCounts", "counted_bytes", "counted_passes"]


@dataclass(frozen=True)
class PassCounts:
    """Reads and writes of the big tensor (N, C, *spatial), in whole passes, and of the mask of one bit per element.

    x, residual, y, dy, dr and dx count once per pass that reads or writes them (DESIGN section 4), and so does the
    mask. Not counted: vectors of (N, C) and smaller, parameters, and whatever an implementation does beyond that. So
    the time that these bytes take is a floor of this design, not a model of an implementation.
    """

    forward: int
    backward: int
    forward_masks: int = 0
    backward_masks: int = 0

    @property
    def passes(self) -> int:
        """Passes of the big tensor, both directions."""
        return self.forward + self.backward

    @property
    def masks(self) -> int:
        """Passes of the mask, both directions."""
        return self.forward_masks + self.backward_masks

    def forward_only(self) -> "PassCounts":
        """The forward pass alone: in training, 4 of the 4 + 6 passes of DESIGN section 4, and the mask."""
        return PassCounts(forward=self.forward, backward=0, forward_masks=self.forward_masks)


def counted_passes(*, training: bool, batch_norm: bool = True, residual: bool = True, relu: bool = True) -> PassCounts:
    """The passes of DESIGN section 4: 4 + mask forward and 6 + mask backward in training, 3 in inference.

    Args:
        training: forward and backward with the batch's statistics (:meth:`PassCounts.forward_only`: the forward pass
            of it); False: forward alone in inference, where x is read from memory once (a sample's second reading finds
            it in the cache, or on the chip).
        batch_norm: False in training: the gate alone, whose second backward pass does not read x.
        residual: whether a residual is added, read forward; its gradient dr is written and read backward.
        relu: whether a ReLU closes the block, which needs the mask.
    """
    if not training:
        return PassCounts(forward=3 if residual else 2, backward=0)
    # Forward: x for the moments; x and residual in, y out. Backward: dy and x in, then dr (or dy) and x in, dx out.
    writes_dr = residual and relu
    return PassCounts(
        forward=4 if residual else 3,
        backward=(6 if writes_dr else 5) - (0 if batch_norm else 1),
        forward_masks=int(relu),
        backward_masks=0 if not relu else (1 if writes_dr else 2),
    )


def counted_bytes(shape: tuple[int, ...], dtype: torch.dtype, passes: PassCounts) -> int:
    """Bytes of those passes over a tensor of that shape and dtype; the mask's rows are not padded here."""
    elements = 1
    for size in shape:
        elements *= size
    return passes.passes * elements * dtype.itemsize + passes.masks * ((elements + 7) // 8)
