"""Definitions of the operators in plain PyTorch, and their registration with torch.library. Start here before a
backend.

``moments``, ``excitation`` and ``scale_shift_act`` define the three steps (DESIGN section 2: pass 1, the (N, C)
arithmetic between the passes, pass 2). ``batch_norm_squeeze_excite`` combines them into one differentiable operator.
"""
