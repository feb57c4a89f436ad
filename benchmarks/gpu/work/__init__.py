"""Programs of the steps, each run as a process: ``python3 -m benchmarks.gpu.work.NAME``.

They print each result immediately in one line, so that results before a crash or the end of the time are not lost.
"""

import json
from typing import Any

from ..runner import AT, ROW

__all__ = ["at", "emit"]


def emit(what: str, **row: Any) -> None:
    """Print one result.

    Args:
        what: name of the measured or checked object.
        **row: values for JSON. "ok": False marks a wrong result and goes with a "note"; "figure" is a line about the
            whole step.
    """
    print(ROW + json.dumps({"what": what, **row}), flush=True)


def at(what: str) -> None:
    """Print the next action, so that it is known where the program hangs or crashes."""
    print(AT + what, flush=True)
