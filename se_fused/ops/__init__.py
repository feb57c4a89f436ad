"""What is computed: read this package before any backend.

``moments``, ``gate`` and ``affine`` define the three steps in plain PyTorch (DESIGN: stream 1, the (N, C) arithmetic
between the streams, stream 2); ``tail`` makes one differentiable operator of them.
"""
