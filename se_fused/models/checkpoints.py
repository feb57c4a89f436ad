"""Checkpoints of other libraries: translated into our names, or refused with the reason; never loaded wrong.

What the keys and shapes of a file cannot tell:

- which convolution of mmpretrain's bottlenecks is strided: ``style`` is asked for;
- whether a file with timm's names has timm's order: it is taken to have it. A file of the legacy order whose keys
  somebody has renamed needs ``source="legacy"``;
- timm's ``resnetaa50``, ``resnetblur18`` and ``resnetblur50`` have the keys of ``resnet50`` and ``resnet18`` and are
  other functions: they are refused if the path or the file's "arch" entry names them;
- dilated models, and others that somebody changed without changing a parameter.
"""

import os
import re
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..nn._checks import check_bool, check_choice
from ._classifier import ImageClassifier
from ._files import read_state_dict
from ._zoos import MARK, ZOOS, detect, rename
from .se_resnet import SEResNet

__all__ = ["LoadReport", "load_pretrained"]

_IGNORED = {
    r"^n_averaged$": "the count of torch.optim.swa_utils.AveragedModel",
    r"^data_preprocessor\.": "mmpretrain's normalisation of the image",
}
_LOOKALIKES = re.compile(r"resnet(aa|blur)\d+")


@dataclass(frozen=True)
class LoadReport:
    """What :func:`load_pretrained` did; ``str(report)`` says it in a few lines.

    Attributes:
        path: the file.
        source: the library whose names its keys are.
        loaded: how many tensors of the model now have the file's values.
        ignored: keys of the file that were not used, and why.
        kept: keys of the model whose values are as before, and why.
        notes: what was done to names and values.
    """

    path: str
    source: str
    loaded: int
    ignored: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.path}: {self.loaded} tensors loaded, named as in {self.source}", *self.notes]
        for what, keys in (("ignored", self.ignored), ("kept", self.kept)):
            for why in dict.fromkeys(keys.values()):
                names = [key for key in keys if keys[key] == why]
                more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                lines.append(f"{what}: {', '.join(names[:3])}{more} ({why})")
        return "\n  ".join(lines)


def _source(path: str, model: ImageClassifier, keys: list[str], source: str | None, style: str | None) -> str:
    """Whose names the keys are, once it is sure that the model computes what that library's does."""
    detected, mark = detect(keys)
    if source is not None:
        check_choice("source", source, [name for name in ZOOS if name != "se_fused"])
        if detected not in (source, "timm", "torchvision"):
            raise ValueError(f"source={source!r}, but key {mark!r} of {path} is one of {ZOOS[detected].title}")
    name = source or detected
    zoo = ZOOS[name]
    if style is not None and name != "mmpretrain":
        raise ValueError(f"style={style!r} is a question about mmpretrain's files; {path} is of {zoo.title}")
    if not isinstance(model, SEResNet):
        return name
    if model.variant != zoo.variant:
        why = f"its key {mark!r}" if mark else "its keys are timm's" if source is None else f"source={source!r}"
        hint = "" if mark or source else ", or give source='legacy' if these are a legacy file's keys, renamed"
        raise ValueError(
            f"{path} is of {zoo.title} ({why}), whose order is that of variant={zoo.variant!r}; the model has "
            f"variant={model.variant!r}, where the same weights compute something else (strides of the bottlenecks, "
            f"padding of the stem's pooling): build it with variant={zoo.variant!r}{hint}"
        )
    if name == "mmpretrain" and any(key.endswith("layer1.0.conv3.weight") for key in keys):
        if style is None:
            raise ValueError(
                f"{path} is of mmpretrain, where style='pytorch' and style='caffe' have the same keys and differ in "
                "which convolution is strided: look into its config and say style='pytorch' or style='caffe'"
            )
        if check_choice("style", style, ("pytorch", "caffe")) == "caffe":
            raise ValueError(
                f"style='caffe' of mmpretrain ({path}) strides in conv1 and pads the stem's pooling; no model here "
                "does both"
            )
    return name


def _adapted(weight: Tensor, in_chans: int) -> Tensor:
    """A stem's weight (D, C, k, k) for other channels: their sum for one, else repeated in turn and scaled; as timm."""
    if in_chans == 1:
        return weight.float().sum(1, keepdim=True).to(weight.dtype)
    turns = torch.arange(in_chans) % weight.shape[1]
    return (weight.float()[:, turns] * (weight.shape[1] / in_chans)).to(weight.dtype)


def _problems(ours: dict[str, str], weights: dict[str, Tensor], wanted: dict[str, Tensor]) -> list[str]:
    """Whatever keeps the weights from being exactly the wanted ones; ``ours`` has the file's keys."""
    names = {own: key for key, own in ours.items()}
    problems = [f"{key} and {names[own]} are both {own} here" for key, own in ours.items() if names[own] != key]
    if missing := [key for key in wanted if key not in weights]:
        problems.append("missing in the file: " + ", ".join(missing))
    if extra := [names[key] for key in weights if key not in wanted]:
        problems.append("not in the model: " + ", ".join(extra))
    for key, tensor in weights.items():
        if key not in wanted:
            continue
        given, ask = (tuple(tensor.shape), tensor.dtype), (tuple(wanted[key].shape), wanted[key].dtype)
        if given[0] != ask[0]:
            problems.append(f"{names[key]} is {given[0]} in the file and {ask[0]} in the model")
        elif given[1].is_floating_point != ask[1].is_floating_point:
            problems.append(f"{names[key]} is {given[1]} in the file and {ask[1]} in the model")
    return problems


def _squeezes(tensors: dict[str, Tensor]) -> dict[int, int]:
    """Width of SE's squeeze by the channels of its block."""
    return {w.shape[1]: w.shape[0] for key, w in tensors.items() if key.endswith(".se.fc1.weight") and w.dim() > 1}


def _hints(model: ImageClassifier, weights: dict[str, Tensor], wanted: dict[str, Tensor]) -> list[str]:
    """What to do about keys and shapes that do not fit, where that is known."""
    hints = []
    last, stem = f"{model.classifier_name}.weight", model.stem_weight
    shapes = [tuple(tensors[last].shape) or (0,) if last in tensors else (0,) for tensors in (weights, wanted)]
    if shapes[0][0] == shapes[1][0] and shapes[0] != shapes[1]:
        hints.append("build the model with the global_pool of the file's, or give skip_classifier=True")
    elif shapes[0] != shapes[1]:
        after = f" and call reset_classifier({shapes[1][0]}) afterwards" if shapes[1][0] else ""
        hints.append(f"build the model with num_classes={shapes[0][0]}{after}, or give skip_classifier=True")
    stems = [tensors[stem].shape for tensors in (weights, wanted) if stem in tensors and tensors[stem].dim() == 4]
    if len(stems) == 2 and stems[0][1] != stems[1][1]:
        hints.append(f"build the model with in_chans={stems[0][1]}, or give adapt_in_chans=True")
    squeezes = _squeezes(weights)
    if squeezes and _squeezes(wanted):
        if squeezes != _squeezes(wanted) and len(set(squeezes.values())) == 1:
            hints.append(
                f"build the model with rd_channels={next(iter(squeezes.values()))}, the width of the file's SE"
            )
        elif squeezes != _squeezes(wanted) and all(r == c // 16 for c, r in squeezes.items()):
            hints.append("build the model with rd_divisor=1: the widths of the file's SE are not rounded")
        biased = [any(key.endswith(".se.fc1.bias") for key in tensors) for tensors in (weights, wanted)]
        if biased[0] != biased[1]:
            hints.append(f"build the model with se_bias={biased[0]}")
    return hints


def load_pretrained(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    source: str | None = None,
    style: str | None = None,
    entry: str | None = None,
    skip_classifier: bool = False,
    adapt_in_chans: bool = False,
) -> LoadReport:
    """Load a checkpoint of timm, torchvision, Cadene, MONAI, NVIDIA, mmpretrain, moskomule or ourselves.

    The keys tell whose it is and are translated. All is compared first: the model is as before unless everything fits.
    The file may hold the state_dict itself or one entry of a training run (``state_dict``, ``model``, ...); prefixes of
    DataParallel, torch.compile and Lightning are stripped. Nothing but tensors is unpickled.

    Args:
        model: a model of :mod:`se_fused.models`.
        path: .safetensors, or what ``torch.save`` wrote, under any other name.
        source: whose order the file has, where its keys do not tell: "timm", "torchvision", "legacy" (timm ``legacy_*``
            and Cadene), "monai", "nvidia", "mmpretrain" or "moskomule".
        style: of mmpretrain's bottlenecks, from the config that goes with the file: "pytorch" or "caffe".
        entry: which entry of the file, where it holds more than one state_dict (such as an EMA's).
        skip_classifier: leave out the last layer: the model keeps its own, of its own number of classes.
        adapt_in_chans: give the first layer the model's number of image channels: the sum over the file's channels for
            one, else the file's in turn, scaled by the ratio. From three channels this is timm's rule.

    Returns:
        What was done.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: a .safetensors file, and safetensors is not installed.
        TypeError: ``model`` is none of :mod:`se_fused.models`, or is wrapped.
        ValueError: the file is no checkpoint; it is of another function than the model; keys are missing, left over or
            of other shapes (all of them are named); or a question has to be answered by an argument.
    """
    if not isinstance(model, ImageClassifier):
        raise TypeError(
            f"model must be one of se_fused.models, not wrapped or compiled, got {type(model).__name__}; for another "
            "library's model use its own loader"
        )
    check_bool("skip_classifier", skip_classifier)
    check_bool("adapt_in_chans", adapt_in_chans)
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError(
            "model must have memory for its parameters, but is on the meta device: model.to_empty(device=...)"
        )
    path = os.fspath(path)
    file, arch, notes = read_state_dict(path, entry)
    lookalike = _LOOKALIKES.search(f"{path} {arch}")
    if lookalike and source is None:
        raise ValueError(
            f"{path} seems to be of timm's {lookalike.group()}, which has the keys of a plain ResNet and is another "
            "function; if it is not, say source='timm'"
        )
    name = _source(path, model, list(file), source, style)
    state: dict[str, Tensor] = model.state_dict()

    last = f"{model.classifier_name}."
    ignored = {key: why for pattern, why in _IGNORED.items() for key in file if re.search(pattern, key)}
    ours = rename(name, [key for key in file if key not in ignored])
    if skip_classifier:
        ignored |= {key: "skip_classifier=True" for key, own in ours.items() if own.startswith(last)}
        ours = {key: own for key, own in ours.items() if key not in ignored}
    weights = {own: file[key] for key, own in ours.items()}
    kept = {}
    for key in [key for key in state if key not in weights]:
        if skip_classifier and key.startswith(last):
            kept[key] = "skip_classifier=True"
        elif key.endswith(".num_batches_tracked"):
            kept[key] = "the file does not count batches"
        elif key == MARK:
            kept[key] = "no other library has it"

    for key, weight in weights.items():
        # SE's layers are matrices with some, 1x1 convolutions here.
        if weight.dim() == 2 and key in state and state[key].shape[2:] == (1, 1):
            weights[key] = weight[:, :, None, None]
    stem = model.stem_weight
    if adapt_in_chans and stem in weights and weights[stem].dim() == 4:
        given = weights[stem].shape[1]
        if given != model.in_chans:
            weights[stem] = _adapted(weights[stem], model.in_chans)
            notes.append(f"{stem} adapted from {given} to {model.in_chans} image channels")

    wanted = {key: value for key, value in state.items() if key not in kept}
    problems = _problems(ours, weights, wanted)
    if problems:
        hints = _hints(model, weights, wanted)
        raise ValueError(
            f"{path} ({ZOOS[name].title}) does not fit the model, and nothing was loaded: {'; '.join(problems)}"
            + (f". To do: {'; '.join(hints)}" if hints else "")
        )
    model.load_state_dict({**{key: state[key] for key in kept}, **weights}, strict=True)
    return LoadReport(path, ZOOS[name].title, len(weights), ignored, kept, tuple(notes))
