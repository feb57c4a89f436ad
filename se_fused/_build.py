"""Locations of the compiled files and of the build record _build_info.py.

They are searched in the folders of the environment variable ``SE_FUSED_LIBRARIES``, which has the syntax of PATH, and
then in the package; the first folder that has a file is used. ``make gpu-pack`` builds the files for another machine
into a separate folder, so that two builds of a library can be in two folders.
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
    """Path of the shared library ``_C_cpu`` or ``_C_cuda``; if there is none, its path in the package."""
    file = f"{name}.abi3.so"
    return next((folder / file for folder in _folders() if (folder / file).exists()), _PACKAGE / file)


def find_module(name: str) -> ModuleType:
    """The module ``_build_info`` or ``_introspect``, which a build writes to the folder of the libraries.

    Raises:
        ImportError: it does not exist, or it was built for another Python.
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
    """The build record: mode, compiler, flags and others. ``note`` is the reason why there are no kernels, or no CUDA
    kernels."""
    try:
        return dict(find_module("_build_info").BUILD)
    except ImportError:
        return {"note": "no _build_info.py: this is a source tree that setup.py has not built"}
