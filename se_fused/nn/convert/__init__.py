"""In-place conversion of models from other libraries: ``convert``, ``revert`` and the conversion report."""

from .api import Fused, Report, conversion_report, convert, revert

__all__ = ["Fused", "Report", "conversion_report", "convert", "revert"]
