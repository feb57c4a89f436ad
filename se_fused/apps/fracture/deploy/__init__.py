"""Using trained classifiers: prediction, exported files, the model card, the local page."""

from collections.abc import Iterable

from ..classifier import Classifier

__all__ = ["RESEARCH_USE_ONLY", "SYNTHETIC", "is_synthetic", "warning_of"]

RESEARCH_USE_ONLY = "Research use only. Not a medical device."
SYNTHETIC = "Trained on synthetic phantoms: no clinical meaning."


def is_synthetic(source: object) -> bool:
    """Whether a data source's name, as in a manifest or in ``Classifier.about``, is ``se-fused fracture synth``'s."""
    return "synth" in str(source).casefold()


def warning_of(classifiers: Iterable[Classifier]) -> str:
    """What must be said beside what these classifiers say; "" if there is nothing but :data:`RESEARCH_USE_ONLY`."""
    return SYNTHETIC if any(is_synthetic(c.about.get("source", "")) for c in classifiers) else ""
