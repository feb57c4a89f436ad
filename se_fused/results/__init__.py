"""Results of ``pytest benchmarks/ --benchmark-json=FILE`` for people: a document, pictures, and what changed."""

from .changes import Changes, changes
from .reading import load, load_all
from .runs import Measurement, Run
from .summary import markdown

__all__ = ["Changes", "Measurement", "Run", "changes", "load", "load_all", "markdown"]
