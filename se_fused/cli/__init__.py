"""The command line, on typer and rich. Each command checks its options before it does any work.

The order of the imports is the order of the commands in ``se-fused --help``.
"""

from . import performance, synthesis, data, evaluation, training, deployment  # noqa: F401, I001
from ._app import app, run

__all__ = ["app", "run"]
