"""Application: classification of long-bone fractures on radiographs. Research code, not a medical device.

Requires numpy. Reading image files requires Pillow and contact sheets require matplotlib; both are in the extra
``se_fused[train]``.
"""

from .images import load_folder, load_radiograph
from .synth import CLASSES, contact_sheet, draw, phantoms

__all__ = ["CLASSES", "contact_sheet", "draw", "load_folder", "load_radiograph", "phantoms"]
