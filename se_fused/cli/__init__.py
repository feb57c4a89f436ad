"""The command line, on typer and rich. Each command checks its options before it does any work."""

from . import commands  # noqa: F401 (they register themselves)
from .app import app, run

__all__ = ["app", "run"]
