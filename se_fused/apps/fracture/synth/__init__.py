"""Synthetic long-bone radiographs with a fracture class: a synthetic phantom, no clinical meaning.

A drawn picture, not a simulated scanner: it lets training code be run, tested and shown without patient data.
Each bone is a tube in three dimensions. A fracture is a surface through it, s = g(p, q), which cuts it into fragments
that are moved a little; no line is ever painted, so a fracture looks different from every direction, as in life.
All but the fracture comes from random streams that never see the label: away from the moved bone, two images of the
same (seed, index) with different labels are equal.
"""

from .drawing import DIFFICULTIES, Crack, Radiograph, contact_sheet, draw, draw_patient, phantoms
from .fractures import CLASSES
from .limbs import VIEWS
from .sets import load_cracks, write_set
from .sheets import draw_sheet

__all__ = [
    "CLASSES", "DIFFICULTIES", "VIEWS", "Crack", "Radiograph", "contact_sheet", "draw", "draw_patient", "draw_sheet",
    "load_cracks", "phantoms", "write_set",
]  # fmt: skip
