"""Results of ``pytest benchmarks/ --benchmark-json=FILE`` for people: a document, pictures, and what changed."""

from .load import load, load_all
from .markdown import markdown
from .records import Measurement, Run
from .regressions import Changes, changes

__all__ = ["Changes", "Measurement", "Run", "changes", "load", "load_all", "markdown"]
