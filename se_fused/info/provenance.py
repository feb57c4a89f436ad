"""What results say of how they came about, in words that hold on another machine: no folder of this one.

Whatever stands under the checkout (of an installed package: under the folder of packages) or the working directory is
told relative to it, every other absolute path by its last name.
"""

import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .environment import info

__all__ = ["command", "environment", "place", "portable", "this_command"]

_CHECKOUT = Path(__file__).parents[2]
# Not the rest of a longer word: of a relative path, a ratio, a URL.
_START = r"(?<![\w.)\]}/~+-])(?:file://)?"
_PATH = re.compile(_START + r"(?:/[\w.@+~-]+)+/?")
_INTERPRETER = re.compile(r"python[\d.]*")


def _bases() -> list[str]:
    found = [str(_CHECKOUT), str(_CHECKOUT.resolve()), os.getcwd()]
    return [base for base in dict.fromkeys(found) if base != os.sep]


def place(path: str | os.PathLike[str]) -> str:
    """A path as results name it; a relative one as it is."""
    given = os.fspath(path)
    if not os.path.isabs(given):
        return given
    whole = os.path.normpath(given)
    for base in _bases():
        if whole == base:
            return "."
        if whole.startswith(base + os.sep):
            return whole.removeprefix(base + os.sep)
    name = os.path.basename(whole)
    return "python" if _INTERPRETER.fullmatch(name) else name or whole


def _text(text: str, shortest: int) -> str:
    """Paths of so many names or more are told."""
    for base in _bases():  # which may have blanks in their names
        text = re.sub(_START + re.escape(base) + r"(/|(?![\w.@+~-]))", lambda match: "" if match[1] else ".", text)

    def told(match: re.Match[str]) -> str:
        path = match[0].removeprefix("file://")
        return place(path) if path.rstrip("/").count("/") >= shortest else match[0]

    return _PATH.sub(told, text)


def portable(value: Any) -> Any:
    """The same for every text within dictionaries and lists."""
    if isinstance(value, str):
        return _text(value, 2)  # one name behind a slash may be a unit
    if isinstance(value, Mapping):
        return {key: portable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [portable(inner) for inner in value]
    return value


def _word(word: str) -> str:
    before, value = re.fullmatch(r"([^/]*=|)(.*)", word, re.DOTALL).groups()  # type: ignore[union-attr]
    file, colons, test = value.partition("::")  # pytest's address of a test
    return before + (place(file) if os.path.isabs(file) else _text(file, 1)) + colons + test


def command(words: Sequence[str]) -> str:
    """A command as one would type it."""
    return shlex.join(map(_word, words))


def this_command() -> str:
    """The command that started this process."""
    first, *rest = sys.orig_argv
    # A script that pip made lies beside the interpreter, which is named in its first line and not by its caller.
    made = bool(rest) and os.path.dirname(os.path.abspath(rest[0])) == os.path.dirname(sys.executable)
    words = [Path(rest[0]).name, *rest[1:]] if made else ["python", *rest]
    return command(words if _INTERPRETER.fullmatch(Path(first).name) else [first, *rest])


def environment() -> dict[str, Any]:
    """What :func:`se_fused.info` tells of versions, machine, build and backends."""
    about = info()
    del about["choices"], about["path"]
    told: dict[str, Any] = portable(about)
    return told
