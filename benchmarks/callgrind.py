"""Runs of a module of this folder under valgrind's callgrind."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["run", "total"]


def run(out: Path, module: str, options: Sequence[str], arguments: Sequence[str]) -> str:
    """What ``python -m module arguments`` prints under callgrind with these options. Its files start with ``out``.

    Raises:
        RuntimeError: valgrind is not installed, or the run failed.
    """
    command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", *options]
    command += [sys.executable, "-m", module, *arguments]
    environment = {**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    except FileNotFoundError:
        raise RuntimeError("valgrind is not installed: apt-get install valgrind") from None
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return done.stdout


def total(file: Path) -> int:
    """The instructions of one of callgrind's files."""
    found = re.search(r"^(?:summary|totals): (\d+)", file.read_text(errors="replace"), re.MULTILINE)
    assert found is not None
    return int(found.group(1))
