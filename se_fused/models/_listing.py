"""Formatting of names in messages: shortened, and at most three of them."""

from collections.abc import Iterable

__all__ = ["listed", "shortened"]

_SHOWN = 3
_LONGEST = 60


def shortened(name: str) -> str:
    """``name`` in one line of at most 60 characters; the middle of a longer name is replaced by "..."."""
    name = " ".join(name.split())
    return name if len(name) <= _LONGEST else f"{name[:20]}...{name[-37:]}"


def listed(names: Iterable[str], between: str = ", ") -> str:
    """The first three names, and the number of the others. Long names should be :func:`shortened` by the caller."""
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return between.join(names[:_SHOWN]) + more
