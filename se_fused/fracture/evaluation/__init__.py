"""How good a classifier is: predictions, metrics with their uncertainty, pictures, reports, comparisons."""

from .metrics import metrics
from .predicting import predict_manifest

__all__ = ["metrics", "predict_manifest"]
