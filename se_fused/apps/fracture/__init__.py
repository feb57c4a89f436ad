"""The application: classifying fractures of long bones on radiographs. Research code, no medical device.

Needs numpy; image files need Pillow and contact sheets matplotlib, both of the extra ``se_fused[train]``.
"""

from .images import load_folder, load_radiograph
from .synth import CLASSES, contact_sheet, draw, phantoms

__all__ = ["CLASSES", "contact_sheet", "draw", "load_folder", "load_radiograph", "phantoms"]
