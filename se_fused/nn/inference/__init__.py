"""A model made ready for inference: its graph is traced, rewritten with larger layers, and checked.

``copies`` makes a copy of a model without hooks, ``tracing`` its graph and what each node gives, shares and writes;
``functional`` brings functions into the form of modules, ``matching`` says which modules are known, ``rewriting`` puts
what follows a layer into it; ``layers``, ``folding`` and ``casts`` are what it puts there; ``checking`` compares
the result with the model. ``optimize`` is the public function.
"""

from .optimize import optimize_for_inference

__all__ = ["optimize_for_inference"]
