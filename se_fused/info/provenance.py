"""Provenance that results record: command, versions and machine, without absolute paths of this machine.

A path under the checkout (of an installed package: under the folder of packages) or the working directory is made
relative to it. Any other absolute path is replaced by its last component.
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
# A path must not start inside a longer word: a relative path, a ratio or a URL.
_START = r"(?<![\w.)\]}/~+-])(?:file://)?"
_PATH = re.compile(_START + r"(?:/[\w.@+~-]+)+/?")
_INTERPRETER = re.compile(r"python[\d.]*")


def _bases() -> list[str]:
    found = [str(_CHECKOUT), str(_CHECKOUT.resolve()), os.getcwd()]
    return [base for base in dict.fromkeys(found) if base != os.sep]


def place(path: str | os.PathLike[str]) -> str:
    """A path as results record it; a relative path is unchanged."""
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
    """The text with its absolute paths replaced as by :func:`place`, if they have at least ``shortest`` components."""
    for base in _bases():  # their names may contain blanks
        text = re.sub(_START + re.escape(base) + r"(/|(?![\w.@+~-]))", lambda match: "" if match[1] else ".", text)

    def told(match: re.Match[str]) -> str:
        path = match[0].removeprefix("file://")
        return place(path) if path.rstrip("/").count("/") >= shortest else match[0]

    return _PATH.sub(told, text)


def portable(value: Any) -> Any:
    """A value with the absolute paths in all its texts replaced, also within dictionaries and lists."""
    if isinstance(value, str):
        return _text(value, 2)  # a single name after a slash may be a unit
    if isinstance(value, Mapping):
        return {key: portable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [portable(inner) for inner in value]
    return value


def _word(word: str) -> str:
    before, value = re.fullmatch(r"([^/]*=|)(.*)", word, re.DOTALL).groups()  # type: ignore[union-attr]
    file, colons, test = value.partition("::")  # a pytest node id
    return before + (place(file) if os.path.isabs(file) else _text(file, 1)) + colons + test


def command(words: Sequence[str]) -> str:
    """A command line in shell syntax, without absolute paths."""
    return shlex.join(map(_word, words))


def this_command() -> str:
    """The command line that started this process."""
    first, *rest = sys.orig_argv
    # A script installed by pip is in the interpreter's folder. Its first line names the interpreter, not the user.
    made = bool(rest) and os.path.dirname(os.path.abspath(rest[0])) == os.path.dirname(sys.executable)
    words = [Path(rest[0]).name, *rest[1:]] if made else ["python", *rest]
    return command(words if _INTERPRETER.fullmatch(Path(first).name) else [first, *rest])


def environment() -> dict[str, Any]:
    """The versions, machine, build and backends from :func:`se_fused.info`, without absolute paths."""
    about = info()
    del about["choices"], about["path"]
    told: dict[str, Any] = portable(about)
    return told
