"""Evaluation of classifiers: predictions, metrics with confidence intervals, figures, reports, comparisons."""

from .aggregate import by_patient, by_study, by_view, cracks_of, read_cracks
from .baselines import logistic, majority
from .bootstrap import intervals, over_seeds, statistics
from .gradcam import grad_cam
from .localisation import localisation, overlay_sheet
from .metrics import accuracy_one_vs_rest, confusion, metrics
from .pairs import aligned, holm, mcnemar, paired
from .predicting import predict_manifest
from .report import evaluate, evaluation, write_evaluation, write_metrics

__all__ = [
    "accuracy_one_vs_rest", "aligned", "by_patient", "by_study", "by_view", "confusion", "cracks_of", "evaluate",
    "evaluation", "grad_cam", "holm", "intervals", "localisation", "logistic", "majority", "mcnemar", "metrics",
    "over_seeds", "overlay_sheet", "paired", "predict_manifest", "read_cracks", "statistics", "write_evaluation",
    "write_metrics",
]  # fmt: skip
