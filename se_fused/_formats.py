"""The dtypes and memory formats that the kernels support, by their names in options and results."""

import torch

__all__ = ["DTYPES", "LAYOUTS"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
