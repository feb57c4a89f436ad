"""A check for texts that no saved result may contain, independent of the recorder's code."""

import re

_ABSOLUTE = re.compile(r"(?<![\w.)\]}/-])/[\w.-]+/[\w.-]+")


def naming_folders(value: object) -> list[str]:
    """The texts in JSON's objects and lists that name a folder of a machine."""
    if isinstance(value, dict):
        return [text for inner in value.values() for text in naming_folders(inner)]
    if isinstance(value, list):
        return [text for inner in value for text in naming_folders(inner)]
    return [value] if isinstance(value, str) and _ABSOLUTE.search(value) else []
