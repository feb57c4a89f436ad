"""Synthetic long-bone radiographs with a fracture class: synthetic phantoms, no clinical meaning.

The generator draws images and does not simulate a scanner. Training code can be run, tested and demonstrated with them
without patient data. Each bone is a tube in three dimensions. A fracture is a surface through it, s = g(p, q), which
cuts it into fragments that are moved slightly. No lines are painted, so a fracture looks different from every
direction, as in reality. Everything but the fracture comes from random streams that are independent of the label: two
images of the same (seed, index) with different labels are equal away from the moved bone.
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
