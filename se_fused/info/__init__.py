"""What is installed, built and chosen on this machine, and what the compiled kernels say of themselves."""

from .environment import commit, info, versions

__all__ = ["commit", "info", "versions"]
