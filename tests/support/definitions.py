"""A backend with the passes alone: their definitions in se_fused.ops. The operators are composed of them."""

from typing import Any

import torch

from se_fused.backends.base import SUPPORTED, Backend, dtype_reason
from se_fused.ops.moments import moments, moments_backward
from se_fused.ops.scale_shift_act import scale_shift_act, scale_shift_act_backward
from se_fused.ops.scale_shift_act_mean import scale_shift_act_mean, scale_shift_act_mean_backward


class Definitions(Backend):
    """The least that a backend has to have."""

    name = "definitions"
    auto_devices = ()
    moments = staticmethod(moments)
    moments_backward = staticmethod(moments_backward)
    scale_shift_act = staticmethod(scale_shift_act)
    scale_shift_act_backward = staticmethod(scale_shift_act_backward)
    scale_shift_act_mean = staticmethod(scale_shift_act_mean)
    scale_shift_act_mean_backward = staticmethod(scale_shift_act_mean_backward)

    def can_use(self, device: str, dtype: torch.dtype) -> str | None:
        return None if dtype in SUPPORTED else dtype_reason(dtype)

    def describe(self) -> dict[str, Any]:
        return {"built": True}
