"""The records of a drawn call, for tests of the layers below the public functions."""

from typing import Any

from torch import Tensor

from se_fused._params import NO_BATCH_NORM, NO_EXCITATION, BatchNormParams, BlockOptions, ExcitationParams
from se_fused.testing.verify import Case


def records_of(case: Case, given: dict[str, Any]) -> tuple[Tensor, BatchNormParams, ExcitationParams, BlockOptions]:
    """x and the records of a call's arguments, drawn by ``case``, without running statistics to update."""
    bn, fc = NO_BATCH_NORM, NO_EXCITATION
    if "batch_norm" in case.op:
        vectors = [given[name] for name in ("running_mean", "running_var", "bn_weight", "bn_bias")]
        bn = BatchNormParams(*vectors, case.training, given["momentum"], given["eps"])
        bn = bn.without_running() if case.training else bn
    if "squeeze_excite" in case.op:
        tensors = [given[name] for name in ("fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias")]
        fc = ExcitationParams(*tensors, case.act, case.gate)
    return given["x"], bn, fc, BlockOptions(given["residual"], given["drop_path_scale"], case.out_act or "none")
