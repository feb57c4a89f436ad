"""Files that appear whole or not at all: written under a temporary name beside their place, then renamed."""

import os
from collections.abc import Callable
from pathlib import Path

__all__ = ["write_bytes", "write_text", "write_whole"]


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write(part)``, which writes a file, and rename that to `path`; the suffix stays, and nothing else is left.

    The rename is the last step: whoever reads `path` meanwhile, or after a failure, finds what was there before.
    """
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        write(part)
        part.replace(path)
    except OSError as error:
        if error.errno is not None:  # without a number the text is all there is, and a name would replace it
            error.filename = error.filename or str(path)  # a write that finds the disk full does not name its file
        raise
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """A text file in UTF-8."""
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """A binary file, on the disk when this returns."""

    def write(part: Path) -> None:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    write_whole(path, write)
