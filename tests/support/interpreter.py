"""A correction of Triton's interpreter: it rounds to bfloat16 as GPUs do."""

import torch


def round_bfloat16() -> None:
    """Make the interpreter round float32 to bfloat16 to nearest even, as GPUs and PyTorch do; PyTorch does it here.

    The interpreter truncates (triton 3.6 to 3.8, ``_convert_float`` without a rounding mode).
    """
    import triton.language as tl
    from triton.runtime import interpreter

    plain = interpreter.InterpreterBuilder.cast_impl

    def cast(self, src, dst_type):
        if (src.dtype.scalar, dst_type.scalar) != (tl.float32, tl.bfloat16):
            return plain(self, src, dst_type)
        rounded = torch.from_numpy(src.data.copy()).to(torch.bfloat16).view(torch.uint16).numpy()
        return interpreter.TensorHandle(rounded, tl.bfloat16)

    interpreter.InterpreterBuilder.cast_impl = cast
