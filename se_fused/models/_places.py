"""Search for the model in a checkpoint file: the entry and the prefix that contain its keys."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ._files import as_dict, kind, module_remedy
from ._listing import listed, shortened
from ._zoos import detect, rename

__all__ = ["Place", "check_prefix", "places", "state_dicts"]

# Key parts of wrappers around a part of a model: torch.compile, FSDP, activation checkpointing. Wrappers around the
# whole model give a prefix.
_WRAPPERS = re.compile(r"(?<=\.)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


@dataclass(frozen=True)
class Place:
    """A candidate for the model in a file: an entry, a prefix and a naming scheme.

    Attributes:
        entry: key of the state_dict in the file; None if the file itself is the state_dict.
        prefix: prefix of the keys.
        zoo: naming scheme of the keys after the prefix, a key of :data:`ZOOS`.
        mark: the key in the file that identifies the naming scheme, or None.
        ours: the model's name for each key in the file with this prefix.
    """

    entry: str | None
    prefix: str
    zoo: str
    mark: str | None
    ours: dict[str, str]

    def found(self, wanted: set[str]) -> int:
        """Number of the wanted keys that are present."""
        return len(wanted.intersection(self.ours.values()))

    def whole(self, wanted: set[str]) -> bool:
        """Whether all wanted keys are present."""
        return wanted.issubset(self.ours.values())


def _is_state_dict(value: object) -> bool:
    return isinstance(value, Mapping) and any(
        isinstance(key, str) and isinstance(tensor, Tensor) for key, tensor in value.items()
    )


def state_dicts(path: str, content: object, entry: str | None) -> dict[str | None, dict[str, Any]]:
    """The state_dicts in the content of a file, by entry. The entry None is the content itself and comes last.

    Raises:
        ValueError: there is no state_dict, or none under the requested entry.
    """
    if isinstance(content, Tensor):
        what = f"one tensor of shape {tuple(content.shape)}"
    elif not isinstance(content, Mapping):
        what = kind(content)
    else:
        what = "" if content else "an empty dict"
    if what:
        remedy = module_remedy(path) if "pickled" in what else "save it with torch.save(model.state_dict(), path)"
        raise ValueError(f"{path} holds {what}, not a state_dict; {remedy}")
    assert isinstance(content, Mapping)
    found: dict[str | None, dict[str, Any]] = {
        key: {str(k): v for k, v in value.items()}
        for key, value in ((key, as_dict(value)) for key, value in content.items())
        if isinstance(key, str) and isinstance(value, Mapping) and _is_state_dict(value)
    }
    if entry is not None:
        if entry not in found:
            names = listed(repr(shortened(str(key))) for key in found or content)
            raise ValueError(f"entry must name a state_dict in {path}, got {entry!r}; there are {names}")
        return {entry: found[entry]}
    if _is_state_dict(content):
        found[None] = {str(key): value for key, value in content.items()}
    if not found:
        named = {str(key): kind(value) for key, value in content.items()}
        pickled = [key for key, what in named.items() if what.startswith("a pickled")]
        # list pickled objects first: one of them may be the model
        names = listed(
            repr(shortened(key)) + (f" ({named[key]})" if key in pickled else "")
            for key in sorted(named, key=lambda key: key not in pickled if len(named) > 3 else 0)
        )
        remedy = (
            module_remedy(path, f"[{pickled[0]!r}]")
            if pickled
            else "give the file with the weights, or save them with torch.save(model.state_dict(), path)"
        )
        raise ValueError(f"{path} holds no state_dict of a model, only {names}; {remedy}")
    return found


def _prefixes(keys: Iterable[str]) -> dict[str, list[str]]:
    """The keys by each of their prefixes that end in a dot, and by "", short prefixes first."""
    under: dict[str, list[str]] = {"": []}
    for key in keys:
        under[""].append(key)
        for dot in re.finditer(r"\.", key):
            under.setdefault(key[: dot.end()], []).append(key)
    return dict(sorted(under.items(), key=lambda item: len(item[0])))


def check_prefix(path: str, states: Mapping[str | None, dict[str, Any]], prefix: str) -> str:
    """The user's prefix, with a dot at the end.

    Raises:
        ValueError: no key has the prefix.
    """
    prefix = prefix if prefix.endswith(".") or not prefix else f"{prefix}."
    keys = [str(key) for state in states.values() for key in state]
    if not any(key.startswith(prefix) for key in keys):
        first = sorted({key.partition(".")[0] + "." for key in keys if "." in key})
        names = listed(repr(shortened(key)) for key in first) or "none"
        raise ValueError(f"prefix must be a prefix of keys in {path}, got {prefix!r}; there are {names}")
    return prefix


def places(
    states: Mapping[str | None, dict[str, Any]], wanted: set[str], source: str | None, prefix: str | None = None
) -> list[Place]:
    """Candidates for the model: all places with every wanted key, or else the one place with most of them.

    Args:
        states: the result of :func:`state_dicts`.
        wanted: the model's keys that the file must provide.
        source: naming scheme given by the user; None detects it from the keys.
        prefix: the only prefix to try; None tries all.
    """
    tried = []
    for entry, state in states.items():
        for begin, keys in _prefixes(state).items():
            if prefix is not None and begin != prefix:
                continue
            behind = {key: _WRAPPERS.sub("", key[len(begin) :]) for key in keys}
            zoo, mark = detect(behind.values())
            # A source that contradicts the mark raises an error later, which names the mark.
            names = rename(source if source and zoo in ("timm", "torchvision") else zoo, behind.values())
            marked = next((key for key, name in behind.items() if name == mark), None)
            tried.append(Place(entry, begin, zoo, marked, {key: names[name] for key, name in behind.items()}))
    whole = []
    seen = set()
    for place in tried:
        # Two prefixes with the same tensors are one place: `backbone.` is a part of mmpretrain's names.
        which = (place.entry, frozenset(key for key, own in place.ours.items() if own in wanted))
        if place.whole(wanted) and which not in seen:
            whole.append(place)
            seen.add(which)
    if whole:
        return whole
    # Ignore prefixes with few wanted keys, which may match by chance: a block of any network may have a "conv1.weight".
    likely = [
        place
        for place in tried
        if not place.prefix or place.found(wanted) >= max(min(len(place.ours), len(wanted)) / 2, len(wanted) / 10)
    ]
    return [max(likely or tried, key=lambda place: place.found(wanted))]
