"""Conversion of other libraries' models, in place: ``convert``, ``revert`` and the report of what was converted."""

from .api import Fused, Report, conversion_report, convert, revert

__all__ = ["Fused", "Report", "conversion_report", "convert", "revert"]
