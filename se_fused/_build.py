"""What setup.py recorded of the build, in se_fused/_build_info.py."""

from typing import Any

__all__ = ["recorded"]


def recorded() -> dict[str, Any]:
    """Mode, compiler, flags and so on; ``note`` says why there are no kernels, or no CUDA kernels."""
    try:
        from ._build_info import BUILD
    except ImportError:
        return {"note": "no _build_info.py: this is a source tree that setup.py has not built"}
    return dict(BUILD)
