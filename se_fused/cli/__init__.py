"""The command line, built with typer and rich. Each command checks its options before it does any work."""

from . import commands  # noqa: F401 (registers the commands)
from .app import app, run

__all__ = ["app", "run"]
