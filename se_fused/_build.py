"""Where the compiled files lie, in the folders that ``SE_FUSED_LIBRARIES`` names, else in the package itself; and what
setup.py recorded of the build, in _build_info.py beside them.

``make gpu-pack`` builds them for another machine into a folder of their own; two builds of one library lie side by side
in two folders. The variable takes folders as PATH does, the first that has a file wins.
"""

import os
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["find_library", "find_module", "recorded"]

_VARIABLE = "SE_FUSED_LIBRARIES"
_PACKAGE = Path(__file__).parent


def _folders() -> Iterator[Path]:
    for folder in os.environ.get(_VARIABLE, "").split(os.pathsep):
        if folder:
            yield Path(folder).resolve()
    yield _PACKAGE


def find_library(name: str) -> Path:
    """The shared library of that name, ``_C_cpu`` or ``_C_cuda``; where there is none, its place in the package."""
    file = f"{name}.abi3.so"
    return next((folder / file for folder in _folders() if (folder / file).exists()), _PACKAGE / file)


def find_module(name: str) -> ModuleType:
    """The module that a build leaves beside the libraries, ``_build_info`` or ``_introspect``.

    Raises:
        ImportError: it is not there, or it was built for another Python.
    """
    full = f"se_fused.{name}"
    spec = PathFinder.find_spec(full, [str(folder) for folder in _folders()])
    if full not in sys.modules and spec is not None and spec.loader is not None:
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[full] = module
    found: ModuleType | None = sys.modules.get(full)
    if found is None:
        raise ImportError(f"no module named {full!r}", name=full)
    return found


def recorded() -> dict[str, Any]:
    """Mode, compiler, flags and so on; ``note`` says why there are no kernels, or no CUDA kernels."""
    try:
        return dict(find_module("_build_info").BUILD)
    except ImportError:
        return {"note": "no _build_info.py: this is a source tree that setup.py has not built"}
