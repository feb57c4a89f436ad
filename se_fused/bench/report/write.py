"""Output files of the commands: JSON of a comparison, the report of a run with pictures, JSON of changes."""

import json
import math
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..._atomic_write import write_text
from ...info.provenance import command, environment
from ..measure.memory import keep_freed_memory
from .style import check_matplotlib

if TYPE_CHECKING:
    from ..compare import Row
    from .records import Run
    from .regressions import Changes

__all__ = ["check_folder", "check_writable", "comparison_json", "write_changes", "write_report"]


def _check_parent(path: Path, folder: Path) -> None:
    if not folder.is_dir():
        raise ValueError(f"{path}: there is no folder {folder}; create it first")
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{path}: the folder {folder} cannot be written to")


def check_writable(path: Path) -> None:
    """Raise a one-line ValueError if a file cannot be created at ``path``; called before minutes of measurements."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give a file")
    _check_parent(path, path.parent)


def check_folder(folder: Path) -> None:
    """Raise a one-line ValueError if the folder cannot be created or written to; ImportError without matplotlib."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give a folder")
    _check_parent(folder, folder if folder.exists() else folder.parent)
    check_matplotlib()


def _finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not support, by strings."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _json(content: dict[str, Any]) -> str:
    return json.dumps(_finite(content), indent=1) + "\n"


def comparison_json(rows: Sequence["Row"], memory_copy: dict[str, float], arguments: Sequence[str]) -> str:
    """All measurements, and the command and environment to repeat them, as JSON."""
    content = {
        "command": command(["se-fused", *arguments]),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        **environment(),
        "copy_bytes_per_second": memory_copy,
        "freed_memory_kept": keep_freed_memory(),
        "rows": [row.as_dict() for row in rows],
    }
    return _json(content)


def write_report(run: "Run", folder: Path) -> list[Path]:
    """Write report.md and the pictures that it shows at its end; return the files. The folder is created if needed.

    Each file is written atomically, and report.md last, so that its pictures exist.
    """
    from .figures import draw  # imported here, because every command that checks an output imports this file
    from .markdown import markdown

    folder.mkdir(exist_ok=True)
    pictures = draw(run, folder)
    shown = "".join(f"\n![{picture.stem}]({picture.name})\n" for picture in pictures)
    file = folder / "report.md"
    write_text(file, markdown(run) + (f"\n## Pictures\n{shown}" if shown else ""))
    return [file, *pictures]


def write_changes(found: "Changes", file: Path) -> None:
    """Write all figures as JSON."""
    write_text(file, _json(found.as_dict()))
