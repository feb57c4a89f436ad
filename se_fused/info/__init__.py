"""Information about the installation: versions, machine, build, chosen backends, and the compiled kernels."""

from .environment import commit, info, versions

__all__ = ["commit", "info", "versions"]
