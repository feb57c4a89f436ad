"""The dtypes and the memory formats that kernels take, by the names that options and results have."""

import torch

__all__ = ["DTYPES", "LAYOUTS"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
