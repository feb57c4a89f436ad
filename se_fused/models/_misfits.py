"""Differences between a checkpoint's weights and a model, in a one-line message with the remedy."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ._classifier import ImageClassifier
from ._files import kind
from ._listing import listed, shortened

__all__ = ["Misfit", "compare", "hints"]


@dataclass
class Misfit:
    """Keys that do not fit, with the names of the file unless stated otherwise.

    Attributes:
        twice: pairs of keys in the file that translate to the same key of the model.
        missing: keys of the model that are not in the file.
        extra: keys of the file that are not in the model.
        other: keys of both with another shape or type, with a description of both.
        ours: all of these keys, translated to the names of the model.
    """

    twice: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)
    ours: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.twice or self.missing or self.extra or self.other)

    def __str__(self) -> str:
        parts = [listed(self.twice, "; ")] if self.twice else []
        for keys, what in ((self.missing, "missing in the file"), (self.extra, "not in the model")):
            if keys:
                parts.append(f"{len(keys)} {what}: {listed(map(shortened, keys))}")
        if self.other:
            parts.append(f"{len(self.other)} of another shape or type: {listed(self.other, ', ')}")
        return "; ".join(parts)


def compare(ours: dict[str, str], weights: dict[str, Any], wanted: dict[str, Tensor]) -> Misfit:
    """Compare the weights of a file with the state_dict of a model.

    Args:
        ours: the model's name of each key in the file.
        weights: the tensors of the file by the model's names.
        wanted: the tensors of the model that the file must provide.

    Returns:
        The differences; false in a boolean context if the weights fit.
    """
    names = {own: key for key, own in ours.items()}
    found = Misfit(
        [
            f"{shortened(key)} and {shortened(names[own])} are both {own} here"
            for key, own in ours.items()
            if names[own] != key
        ],
        [key for key in wanted if key not in weights],
        [names[key] for key in weights if key not in wanted],
    )
    found.ours.update(wanted.keys() ^ weights.keys())
    for key, tensor in weights.items():
        if key not in wanted:
            continue
        given: object = kind(tensor)
        ask: object = tuple(wanted[key].shape)
        if isinstance(tensor, Tensor):
            given = tuple(tensor.shape)
            if given == ask:
                given, ask = tensor.dtype, wanted[key].dtype
                if tensor.dtype.is_floating_point == wanted[key].dtype.is_floating_point:
                    continue
        found.ours.add(key)
        found.other.append(f"{shortened(names[key])} is {given}, not {ask}")
    return found


def _shape(tensors: dict[str, Any], key: str) -> tuple[int, ...]:
    return tuple(tensors[key].shape) if isinstance(tensors.get(key), Tensor) else ()


def _classifier(model: ImageClassifier, weights: dict[str, Any], wanted: dict[str, Tensor]) -> str | None:
    last = f"{model.classifier_name}.weight"
    given, ask = _shape(weights, last), _shape(wanted, last)
    if ask and last not in weights:
        return "give skip_classifier=True: the file has no classifier, the model keeps its own"
    if len(given) != 2 or given == ask:
        return None
    if ask and given[1] != ask[1]:
        # "catavgmax" is the only pooling with another number of features: twice as many.
        if given[0] != ask[0] or max(given[1], ask[1]) != 2 * min(given[1], ask[1]):
            return None
        return "build the model with the global_pool of the file's, or give skip_classifier=True"
    after = f" and call reset_classifier({ask[0]}) afterwards" if ask else ""
    return f"build the model with num_classes={given[0]}{after}, or give skip_classifier=True"


def _squeezes(tensors: dict[str, Any]) -> dict[int, int]:
    """Squeezed width of SE by the number of channels of the block."""
    shapes = [_shape(tensors, key) for key in tensors if key.endswith(".se.fc1.weight")]
    return {shape[1]: shape[0] for shape in shapes if len(shape) > 1}


def _squeeze(weights: dict[str, Any], wanted: dict[str, Tensor]) -> list[str]:
    """Hints about the width and bias of SE; none if the blocks have other numbers of channels."""
    squeezes, ours = _squeezes(weights), _squeezes(wanted)
    hints = []
    if squeezes and squeezes.keys() == ours.keys():
        if squeezes != ours and len(set(squeezes.values())) == 1:
            hints.append(
                f"build the model with rd_channels={next(iter(squeezes.values()))}, the width of the file's SE"
            )
        elif squeezes != ours and all(r == c // 16 for c, r in squeezes.items()):
            hints.append("build the model with rd_divisor=1: the widths of the file's SE are not rounded")
        biased = [any(key.endswith(".se.fc1.bias") for key in tensors) for tensors in (weights, wanted)]
        if biased[0] != biased[1]:
            hints.append(f"build the model with se_bias={biased[0]}")
    return hints


def _stages(keys: Iterable[str]) -> tuple[list[int], int]:
    """Number of blocks in each stage of a residual network, and of convolutions in a block."""
    found = [re.match(r"layer(\d+)\.(\d+)\.(?:conv(\d+)\.)?", key) for key in keys]
    blocks: dict[int, set[int]] = {}
    for match in found:
        if match:
            blocks.setdefault(int(match[1]), set()).add(int(match[2]))
    return [len(blocks[stage]) for stage in sorted(blocks)], max((int(m[3]) for m in found if m and m[3]), default=0)


def _depth(weights: dict[str, Any], wanted: dict[str, Tensor]) -> str | None:
    (blocks, convs), (our_blocks, our_convs) = _stages(weights), _stages(wanted)
    if not blocks or not our_blocks or (blocks, convs) == (our_blocks, our_convs):
        return None
    return (
        f"build the model of the file's depth: {', '.join(map(str, blocks))} blocks of {convs} convolutions, not "
        f"{', '.join(map(str, our_blocks))} of {our_convs}"
    )


def hints(model: ImageClassifier, misfit: Misfit, weights: dict[str, Any], wanted: dict[str, Tensor]) -> str:
    """Advice for the user. Specific hints are given only if they explain at least half of the differences."""
    stem = model.stem_weight
    # pairs of a hint (or None) and a regular expression of the model's keys that it explains
    known: list[tuple[str | None, str]] = [(_depth(weights, wanted), "")]
    excited = [any(".se." in key for key in tensors) for tensors in (weights, wanted)]
    if excited[0] != excited[1]:
        build, has = ("with", "has it") if excited[0] else ("without", "has none")
        known.append((f"build the model {build} squeeze-and-excitation: the file {has}", r"\.se\."))
    known.append((_classifier(model, weights, wanted), rf"^{model.classifier_name}\."))
    given, ask = _shape(weights, stem), _shape(wanted, stem)
    if len(given) == len(ask) == 4 and given[1] != ask[1] and given[2:] == ask[2:]:
        known.append((f"build the model with in_chans={given[1]}, or give adapt_in_chans=True", f"^{re.escape(stem)}$"))
    known += [(hint, r"\.se\.") for hint in _squeeze(weights, wanted)]
    told = {hint: about for hint, about in known if hint}
    mended = {key for about in told.values() for key in misfit.ours if re.search(about, key)}
    if told and 2 * len(mended) >= len(misfit.ours):
        return "; ".join(told)
    other = f"; this is another network than {type(model).__name__}" if 2 * len(misfit.ours) > len(wanted) else ""
    return f"build the model that the file was saved from{other}"
