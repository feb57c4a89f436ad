"""A pytest plugin (``-p support.missing_modules``) that hides optional packages, as if they were not installed.

They are those that a rented GPU machine does not have.
"""

import sys
from importlib.abc import MetaPathFinder
from typing import Any

MISSING = {
    "monai", "openvino", "pydicom", "pylibjpeg", "libjpeg", "openjpeg", "fastapi", "starlette", "uvicorn", "httpx",
    "selenium",
}  # fmt: skip


class Without:
    """A finder that does not find the packages in MISSING."""

    def __init__(self, finder: MetaPathFinder) -> None:
        self.finder = finder

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        return None if name.partition(".")[0] in MISSING else self.finder.find_spec(name, path, target)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.finder, name)


sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]  # type: ignore[arg-type]
