"""Triton's interpreter, made to round as GPUs do."""

import torch


def round_bfloat16() -> None:
    """The interpreter cuts float32 to bfloat16 off (triton 3.6 to 3.8, ``_convert_float`` with no rounding mode); every
    GPU rounds to nearest even, and so does PyTorch, which does it here instead."""
    import triton.language as tl
    from triton.runtime import interpreter

    plain = interpreter.InterpreterBuilder.cast_impl

    def cast(self, src, dst_type):
        if (src.dtype.scalar, dst_type.scalar) != (tl.float32, tl.bfloat16):
            return plain(self, src, dst_type)
        rounded = torch.from_numpy(src.data.copy()).to(torch.bfloat16).view(torch.uint16).numpy()
        return interpreter.TensorHandle(rounded, tl.bfloat16)

    interpreter.InterpreterBuilder.cast_impl = cast
