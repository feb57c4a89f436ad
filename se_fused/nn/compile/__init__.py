"""The backend "se_fused" of ``torch.compile``, which needs no conversion of the model.

``dynamo`` contains the backend, the entry point: rewrite Dynamo's graph, then compile it. ``graph`` says what nodes
return, alias and overwrite; ``matching`` recognises squeeze-excite layers and the ends of blocks; ``rewriting``
replaces them. Nothing else of the library imports this package, because it imports sympy.
"""

from .dynamo import backend

__all__ = ["backend"]
