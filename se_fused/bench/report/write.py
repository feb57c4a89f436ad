"""What ``se-fused report`` and ``se-fused changes`` do, once their arguments are read."""

import json
import os
from pathlib import Path

from ..._atomic_write import write_text
from .markdown import markdown
from .records import Run
from .regressions import Changes

__all__ = ["check_folder", "write_changes", "write_report"]


def check_folder(folder: Path) -> None:
    """ValueError or ImportError, one line, unless the folder can be made or written to and pictures can be drawn."""
    from .plots import check_matplotlib

    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give a folder")
    existing = folder if folder.exists() else folder.parent
    if not existing.is_dir():
        raise ValueError(f"{folder}: there is no folder {existing}; make it first")
    if not os.access(existing, os.W_OK):
        raise ValueError(f"{folder}: the folder {existing} cannot be written to")
    check_matplotlib()


def write_report(run: Run, folder: Path) -> list[Path]:
    """Write report.md and the pictures, whose names it ends with; the folder is made. Returns the files.

    Each file appears whole or not at all, the document last: where it stands, the pictures do too.
    """
    from .figures import draw

    folder.mkdir(exist_ok=True)
    pictures = draw(run, folder)
    shown = "".join(f"\n![{picture.stem}]({picture.name})\n" for picture in pictures)
    file = folder / "report.md"
    write_text(file, markdown(run) + (f"\n## Pictures\n{shown}" if shown else ""))
    return [file, *pictures]


def write_changes(found: Changes, file: Path) -> None:
    """Write all figures as JSON."""
    write_text(file, json.dumps(found.as_dict(), indent=1) + "\n")
