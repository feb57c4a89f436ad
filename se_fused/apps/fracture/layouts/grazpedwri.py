"""Adapter for GRAZPEDWRI-DX: figshare 14825193, doi 10.6084/m9.figshare.14825193, CC BY 4.0.

20,327 radiographs of children's wrists, of 6,091 patients; 16-bit grey PNG. Layout: ``dataset.csv`` (with a byte order
mark; flags are 1 or empty) and the images ``<filestem>.png`` in one folder or several (``images_part1`` to ``4``).
"""

import re
from pathlib import Path

from ...._errors import InputError
from ..manifest import Manifest, Record, plural
from ._tools import LeftOut, find, header_of, read_table

__all__ = ["PATTERNS", "fits", "fracture_type", "read"]

_COLUMNS = ("filestem", "patient_id", "study_number", "projection", "ao_classification", "fracture_visible")
_VIEWS = {"1": "AP", "2": "lateral", "3": "oblique"}
_CODE = re.compile(r"^\d\d[rutf]?-([EMD])/(\d)", re.IGNORECASE)

PATTERNS = {
    "incomplete": frozenset({"M/2", "D/1", "D/2"}),
    "complete": frozenset({"M/3", "D/4", "D/5"}),
    "physeal": frozenset({"E/1", "E/2", "E/3", "E/4", "E/5", "E/6"}),
}
"""{fracture type: codes of the AO Pediatric Comprehensive Classification of Long Bone Fractures}.

Source of the codes: Slongo and Audigé, J Orthop Trauma 2007; 21(10 Suppl): S135-S160, doi
10.1097/00005131-200711101-00020. Incomplete: M/2 torus or greenstick fracture of the metaphysis, D/1 bowing, D/2
greenstick fracture of the shaft. Complete: M/3, D/4 transverse, D/5 oblique or spiral. Physeal: E/1 to E/4
Salter-Harris I to IV, E/5 Tillaux, E/6 triplane.

The other codes describe no fracture pattern of a long bone: avulsions (E/7, mostly of the ulnar styloid together with a
broken radius, and M/7), flakes (E/8), Monteggia and Galeazzi lesions (D/6, D/7), "other" (/9) and codes of hand
bones."""


def fits(root: Path) -> bool:
    """Whether the folder has a ``dataset.csv`` with the columns of GRAZPEDWRI-DX."""
    return {"filestem", "ao_classification", "fracture_visible"} <= set(header_of(root / "dataset.csv"))


def fracture_type(visible: bool, codes: str) -> tuple[str, str]:
    """(fracture type, "") of an image from its AO codes such as "23r-M/3.1; 23u-E/7", or ("", reason) without a type.

    Codes outside `PATTERNS` are ignored if the image also has a code in `PATTERNS`. An image with fractures of several
    types has no single type.
    """
    given = [code.strip() for code in re.split("[;,]", codes) if code.strip()]
    if not visible:
        return ("", "an AO code, but no visible fracture") if given else ("none", "")
    if not given:
        return "", "a visible fracture without an AO code"
    found = set()
    for code in given:
        if match := _CODE.match(code):
            child = f"{match[1].upper()}/{match[2]}"
            found |= {name for name, members in PATTERNS.items() if child in members}
    if len(found) == 1:
        return found.pop(), ""
    return "", "fractures of several types" if found else "AO codes without a type (avulsion, flake, other)"


def read(root: Path, task: str = "fracture") -> Manifest:
    """Read GRAZPEDWRI-DX with patients, studies and views from its table. It has no splits.

    Args:
        root: the folder of ``dataset.csv``; images are searched below it by name.
        task: "fracture" for the labels none and fracture (``fracture_visible``), or "type" for none, incomplete,
            complete and physeal from the AO codes (`PATTERNS`); images without a single type are left out and counted.

    Raises:
        InputError: the task is unknown, a column is missing, a flag is not empty, 0 or 1, or an image exists twice.
    """
    if task not in ("fracture", "type"):
        raise InputError(f"task must be fracture or type for GRAZPEDWRI-DX; got {task!r}")
    table = root / "dataset.csv"
    _, rows = read_table(table, _COLUMNS)
    files: dict[str, Path] = {}
    for path in find(root):
        other = files.setdefault(path.stem, path)
        if other != path:
            raise InputError(f"{path}: {other.parent.name} also has an image of this name; remove one of the folders")
    left, records, uncertain = LeftOut(root), [], 0
    for line, row in rows:
        flag, stem = row["fracture_visible"], row["filestem"]
        if flag not in ("", "0", "1") or not stem or not row["patient_id"]:
            raise InputError(f"{table}: line {line}: needs filestem, patient_id and fracture_visible 1 or empty")
        visible, codes = flag == "1", row["ao_classification"]
        label, reason = fracture_type(visible, codes) if task == "type" else (("none", "fracture")[visible], "")
        image = files.get(stem)
        if image is None or reason:
            left.add(reason if image else "the file is missing", stem)
            continue
        uncertain += row.get("diagnosis_uncertain") == "1"
        patient, view = row["patient_id"], _VIEWS.get(row["projection"], "")
        study = f"{patient}/{row['study_number']}"
        records.append(Record(image, label, patient, study, view, source="GRAZPEDWRI-DX"))
    kept = (f"{plural(uncertain, 'image')} marked diagnosis_uncertain included",) if uncertain else ()
    return Manifest(tuple(records), (f"task {task}", *kept, *left.notes()))
