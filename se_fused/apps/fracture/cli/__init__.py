"""Commands of the application: ``se-fused fracture train`` and others.

The order of the imports is the order of the commands in ``se-fused fracture --help``.
"""

from . import demo, synthesis, data, evaluation, training, deployment  # noqa: F401, I001
from .app import app

__all__ = ["app"]
