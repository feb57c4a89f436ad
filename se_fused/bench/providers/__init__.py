"""The implementations that compute a workload: ours, PyTorch's, other libraries' and inference engines'."""
