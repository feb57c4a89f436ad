"""Implementations that compute a workload: se_fused, PyTorch, other libraries and inference engines."""
