"""The backend "se_fused" of ``torch.compile``, which needs no conversion of the model.

``backend`` is the entry point: rewrite Dynamo's graph, then compile it. ``graph`` says what nodes return, alias and
overwrite; ``matching`` recognises squeeze-excite layers and the ends of blocks; ``rewriting`` replaces them.
"""

from .backend import se_fused

__all__ = ["se_fused"]
