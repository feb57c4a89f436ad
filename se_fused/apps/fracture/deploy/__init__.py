"""Use of trained classifiers: prediction, export, model card, local web page."""

from collections.abc import Iterable

from ..classifier import Classifier

__all__ = ["RESEARCH_USE_ONLY", "SYNTHETIC", "is_synthetic", "warning_of"]

RESEARCH_USE_ONLY = "Research use only. Not a medical device."
SYNTHETIC = "Trained on synthetic phantoms: no clinical meaning."


def is_synthetic(source: object) -> bool:
    """Whether the name of a data source (from a manifest or ``Classifier.about``) denotes synthetic phantoms."""
    return "synth" in str(source).casefold()


def warning_of(classifiers: Iterable[Classifier]) -> str:
    """Warning to show with the predictions of these classifiers, in addition to :data:`RESEARCH_USE_ONLY`; or ""."""
    return SYNTHETIC if any(is_synthetic(c.about.get("source", "")) for c in classifiers) else ""
