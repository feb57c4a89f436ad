"""Atomic file writes: a file is written under a temporary name in the same folder, then renamed."""

import os
from collections.abc import Callable
from pathlib import Path

__all__ = ["write_bytes", "write_text", "write_whole"]


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write(part)``, which writes a file with path's suffix, and rename that file to `path`.

    The rename is the last step: a reader of `path` sees the previous content until then, and also after a failure. No
    temporary file remains.
    """
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        write(part)
        part.replace(path)
    except OSError as error:
        if error.errno is not None:  # without an errno, setting the name would replace the message
            error.filename = error.filename or str(path)  # an error such as "disk full" does not name the file
        raise
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8 atomically."""
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a binary file atomically; it is synced to the disk when this returns."""

    def write(part: Path) -> None:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    write_whole(path, write)
