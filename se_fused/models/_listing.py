"""Names in messages: few enough and short enough to be read in one line."""

from collections.abc import Iterable

__all__ = ["listed", "shortened"]

_SHOWN = 3
_LONGEST = 60


def shortened(name: str) -> str:
    """``name`` in one line of at most 60 characters; of a longer one, both ends."""
    name = " ".join(name.split())
    return name if len(name) <= _LONGEST else f"{name[:20]}...{name[-37:]}"


def listed(names: Iterable[str], between: str = ", ") -> str:
    """The first three names, and how many more there are; those that :func:`shortened` is for are given shortened."""
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return between.join(names[:_SHOWN]) + more
