"""What is computed: read this package before any backend.

``moments``, ``excitation`` and ``scale_shift_act`` define the three steps in plain PyTorch (DESIGN section 2: pass 1,
the (N, C) arithmetic between the passes, pass 2); ``batch_norm_squeeze_excite`` makes one differentiable operator of
them.
"""
