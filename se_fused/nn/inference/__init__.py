"""Optimisation of a model for inference: trace its graph, replace groups of nodes by fused layers, check the result.

``optimize`` contains the public function. Its steps are: ``copies`` copies the model without hooks; ``tracing`` records
the graph, and for each node the shape, the storages and the writes of its tensors; ``functional`` turns calls of
functions into modules; ``matching`` recognises supported modules; ``rewriting`` merges the operations after a layer
into the layer; ``checking`` compares the result with the model. ``layers``, ``folding`` and ``casts`` define the layers
of the optimised model. ``cuda_graph`` contains :func:`graphed`, for models that are optimised or not.
"""

from .cuda_graph import Graphed, graphed
from .optimize import optimize_for_inference

__all__ = ["Graphed", "graphed", "optimize_for_inference"]
