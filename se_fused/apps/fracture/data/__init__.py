"""Data pipeline from a manifest to batches: decoding, cache, augmentation, samplers, loaders.

Requires ``se_fused[train]``.
"""

from .augmentation import Augmentation
from .cache import CACHES, Decoded, decode_all, worker_count
from .dataset import RadiographDataset
from .loading import SAMPLING, Batches, Loader, RadiographData

__all__ = [
    "CACHES",
    "SAMPLING",
    "Augmentation",
    "Batches",
    "Decoded",
    "Loader",
    "RadiographData",
    "RadiographDataset",
    "decode_all",
    "worker_count",
]
