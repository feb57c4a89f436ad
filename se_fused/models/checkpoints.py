"""Loading of other libraries' checkpoints: keys are translated, and a checkpoint that does not fit raises an error.

The keys and shapes of a file do not determine the whole architecture. These cases are handled as follows:

- The stride of mmpretrain's bottlenecks is in the first or in the 3x3 convolution: the user must give ``style``.
- A file with timm's names is assumed to have timm's strides and padding. A legacy file whose keys were renamed needs
  ``source="legacy"``.
- timm's ``resnetaa50``, ``resnetblur18`` and ``resnetblur50`` have the keys of ``resnet50`` and ``resnet18`` but
  compute something else. They raise an error if the path or the file's "arch" entry names them.
- Dilated models, and other changes that do not affect the parameters, cannot be detected.
"""

import os
import re
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import check_bool, check_choice
from ._classifier import ImageClassifier
from ._files import read_file
from ._listing import listed, shortened
from ._misfits import Misfit, compare, hints
from ._places import Place, check_prefix, places, state_dicts
from ._zoos import ZOOS
from .se_resnet import MARK, SEResNet

__all__ = ["LoadReport", "load_pretrained"]

_IGNORED = {
    r"^n_averaged$": "the counter of torch.optim.swa_utils.AveragedModel",
    r"^data_preprocessor\.": "mmpretrain's normalisation of the image",
    r"(^|\.)total_(ops|params)$": "counters of thop",
}
_LOOKALIKES = re.compile(r"resnet(aa|blur)\d+")


@dataclass(frozen=True)
class LoadReport:
    """Result of :func:`load_pretrained`; ``str(report)`` is a summary of a few lines.

    Attributes:
        path: the file.
        source: the library whose names the keys have.
        loaded: number of tensors of the model that were loaded from the file.
        ignored: unused keys of the file's state_dict with the reason, such as keys of a loss, which do not have the
            model's prefix.
        kept: keys of the model that were not loaded, with the reason.
        notes: changes of names and values, the entry and prefix of the model, and the classes of objects that were not
            unpickled.
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
                names = listed(shortened(key) for key in keys if keys[key] == why)
                lines.append(f"{what}: {names} ({why})")
        return "\n  ".join(lines)


@dataclass
class _Fit:
    """Weights at a place in the file, with the model's names and shapes, and their differences from the model."""

    place: Place
    weights: dict[str, Any]
    wanted: dict[str, Tensor]
    ignored: dict[str, str]
    kept: dict[str, str]
    notes: list[str]
    misfit: Misfit


def _source(path: str, model: ImageClassifier, place: Place, source: str | None, style: str | None) -> str:
    """Name of the source library, after checking that its models compute the same function as this model.

    Raises:
        ValueError: the library's models differ from this one, or an argument contradicts the keys or is missing.
    """
    detected, mark = place.zoo, place.mark
    if source is not None and detected not in (source, "timm", "torchvision"):
        raise ValueError(f"source={source!r}, but key {mark!r} of {path} is one of {ZOOS[detected].title}: omit source")
    name = source or detected
    zoo = ZOOS[name]
    if style is not None and name != "mmpretrain":
        raise ValueError(f"style={style!r} applies to mmpretrain's files only; {path} is of {zoo.title}: omit style")
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
    if name == "mmpretrain" and any(key.endswith("layer1.0.conv3.weight") for key in place.ours):
        if style is None:
            backbone = f"{place.prefix}backbone."
            # Without mmpretrain's head or SE layers, `backbone` may be an attribute of any other model.
            head = any(key.startswith(f"{place.prefix}head.fc.") or ".se_layer." in key for key in place.ours)
            hint = "" if head or source else f", or prefix={backbone!r} if it is not of mmpretrain"
            raise ValueError(
                f"{path} is of mmpretrain, where style='pytorch' and style='caffe' have the same keys and differ in "
                f"which convolution has the stride: look into its config and give style='pytorch' or 'caffe'{hint}"
            )
        if check_choice(style, "style", ("pytorch", "caffe")) == "caffe":
            raise ValueError(
                f"style='caffe' of mmpretrain ({path}) has the stride in conv1 and padding in the stem's pooling; no "
                "model of se_fused has both: use weights of style='pytorch'"
            )
    return name


def _adapted(weight: Tensor, in_chans: int) -> Tensor:
    """A stem's weight (D, C, k, k) for ``in_chans`` image channels, by timm's rule.

    One channel gets the sum of all; otherwise the channels are repeated in turn and scaled by C / in_chans.
    """
    if in_chans == 1:
        return weight.float().sum(1, keepdim=True).to(weight.dtype)
    turns = torch.arange(in_chans) % weight.shape[1]
    return (weight.float()[:, turns] * (weight.shape[1] / in_chans)).to(weight.dtype)


def _fit(
    model: ImageClassifier, state: dict[str, Any], place: Place, copies: list[str], skip: bool, adapt: bool
) -> _Fit:
    """Compare the weights at a place with the model. ``copies``: longer prefixes that contain the whole model again."""
    last, stem = f"{model.classifier_name}.", model.stem_weight
    ignored = {key: f"not under the prefix {place.prefix!r}" for key in state if key not in place.ours}
    for copy in copies:
        ignored |= {key: f"a copy of the model under the prefix {copy!r}" for key in place.ours if key.startswith(copy)}
    # these keys are ignored under any prefix
    ignored |= {key: why for pattern, why in _IGNORED.items() for key in state if re.search(pattern, key)}
    ours = {key: own for key, own in place.ours.items() if key not in ignored}
    if skip:
        ignored |= {key: "skip_classifier=True" for key, own in ours.items() if own.startswith(last)}
        ours = {key: own for key, own in ours.items() if key not in ignored}
    weights = {own: state[key] for key, own in ours.items()}
    mine: dict[str, Tensor] = model.state_dict()
    kept = {}
    for key in [key for key in mine if key not in weights]:
        if skip and key.startswith(last):
            kept[key] = "skip_classifier=True"
        elif key.endswith(".num_batches_tracked"):
            kept[key] = "the file does not count batches"
        elif key == MARK:
            kept[key] = "other libraries do not have this key"

    for key, weight in weights.items():
        # some libraries store SE's weights as matrices; the model's are 1x1 convolutions
        if isinstance(weight, Tensor) and weight.dim() == 2 and key in mine and mine[key].shape[2:] == (1, 1):
            weights[key] = weight[:, :, None, None]
    notes = []
    if adapt and isinstance(weights.get(stem), Tensor) and weights[stem].dim() == 4:
        given = weights[stem].shape[1]
        if given != model.in_chans:
            weights[stem] = _adapted(weights[stem], model.in_chans)
            notes.append(f"{stem} adapted from {given} to {model.in_chans} image channels")
    wanted = {key: value for key, value in mine.items() if key not in kept}
    return _Fit(place, weights, wanted, ignored, kept, notes, compare(ours, weights, wanted))


def _same(fits: list[_Fit]) -> bool:
    """Whether all candidates have equal weights, as when one module was saved under two names."""
    first = fits[0].weights
    return all(
        fit.weights.keys() == first.keys()
        and all(first[k].dtype == v.dtype and torch.equal(first[k], v) for k, v in fit.weights.items())
        for fit in fits[1:]
    )


def _one(path: str, fits: list[_Fit]) -> _Fit:
    """The only candidate that fits, or the first of several with equal weights.

    Raises:
        ValueError: several candidates with different weights are possible.
    """
    fits = [fit for fit in fits if not fit.misfit] or fits
    if len(fits) == 1 or (not fits[0].misfit and _same(fits)):
        return fits[0]
    entries = list(dict.fromkeys(fit.place.entry for fit in fits))
    if len(entries) > 1:
        names = [f"entry={entry!r}" for entry in entries if entry is not None]
        what = "in more than one entry"
    else:
        names, what = [f"prefix={fit.place.prefix!r}" for fit in fits], "under more than one prefix"
    raise ValueError(f"{path} holds this model {what}: choose one with {listed(names, ' or ')}")


def load_pretrained(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    source: str | None = None,
    style: str | None = None,
    entry: str | None = None,
    prefix: str | None = None,
    skip_classifier: bool = False,
    adapt_in_chans: bool = False,
) -> LoadReport:
    """Load a checkpoint of timm, torchvision, Cadene, MONAI, NVIDIA, mmpretrain, moskomule or se_fused.

    The source library is detected from the keys, and the keys are translated. All weights are checked first: if they
    do not fit, an error is raised and the model is unchanged.

    The file may be a state_dict or a checkpoint of a training run, such as Lightning's. The model is searched by its
    keys under every entry and every prefix (``model.``, ``module.``, an attribute of any name). Other keys of the
    state_dict, such as ``criterion.pos_weight``, are ignored and listed in the result. If the file contains the model
    more than once, as with an average of its weights (EMA) or a student and a teacher, and several copies fit, an error
    asks for ``entry`` or ``prefix``.

    Only tensors and plain values are unpickled. Other objects in the file (NumPy numbers, arguments, configurations)
    are skipped, and no code of the file runs.

    Args:
        model: a model of :mod:`se_fused.models`.
        path: a .safetensors file or a file of ``torch.save``; the format is detected from the content, not the name.
        source: the source library, if the keys do not identify it: "timm", "torchvision", "legacy" (timm ``legacy_*``
            and Cadene), "monai", "nvidia", "mmpretrain" or "moskomule".
        style: ``style`` of mmpretrain's bottlenecks, from the configuration of the checkpoint: "pytorch" or "caffe".
        entry: the entry of the file to load, if several contain the model (``state_dict`` and ``state_dict_ema``).
        prefix: the prefix of the model's keys, if several contain the model ("student." and "teacher."); "" for no
            prefix. With ``prefix="backbone."``, ``backbone`` is treated as an attribute and not as a sign of
            mmpretrain.
        skip_classifier: do not load the last layer; the model keeps its own, with its own number of classes. Needed for
            encoders without a classifier.
        adapt_in_chans: convert the weight of the first layer to the model's number of image channels. One channel gets
            the sum over the file's channels; otherwise these are repeated in turn and scaled by the ratio of the
            numbers. From three channels, this is timm's rule.

    Returns:
        A :class:`LoadReport`.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: the file is a safetensors file, and safetensors is not installed.
        TypeError: ``model`` is not a model of :mod:`se_fused.models`, or it is wrapped; ``path`` is not a path; or an
            option has the wrong type.
        ValueError: the file is not a checkpoint (the message names its probable kind); it has a different architecture;
            keys are missing, unexpected or have other shapes (the message gives their numbers, and up to three of each
            kind); or ``style``, ``entry``, ``prefix`` or ``source`` is needed. Each message is one line with the
            remedy.
    """
    if not isinstance(model, ImageClassifier):
        raise TypeError(
            f"model must be one of se_fused.models, not wrapped or compiled, got {type(model).__name__}; for a model "
            "of another library use that library's loader"
        )
    check_bool(skip_classifier, "skip_classifier")
    check_bool(adapt_in_chans, "adapt_in_chans")
    for argument, value, example in (("entry", entry, "state_dict_ema"), ("prefix", prefix, "model.")):
        if value is not None and not isinstance(value, str):
            raise TypeError(f"{argument} must be a string such as {example!r} or None, got {value!r}")
    if source is not None:
        check_choice(source, "source", [name for name in ZOOS if name != "se_fused"])
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError(
            "model must have memory for its parameters, but is on the meta device: model.to_empty(device=...)"
        )
    try:
        path = os.fsdecode(path)
    except TypeError:
        raise TypeError(
            f"path must be a path of a file, got {type(path).__name__}; to load a state_dict, first save it with "
            "torch.save(state, path)"
        ) from None
    content, notes = read_file(path)
    states = state_dicts(path, content, entry)
    if prefix is not None:
        prefix = check_prefix(path, states, prefix)
    arch = content.get("arch") if isinstance(content.get("arch"), str) else ""
    lookalike = _LOOKALIKES.search(f"{path} {arch}")
    if lookalike and source is None:
        raise ValueError(
            f"{path} seems to be of timm's {lookalike.group()}, which has the keys of a plain ResNet but is another "
            "function; if it is not, give source='timm'"
        )
    last = f"{model.classifier_name}."
    names = {
        key
        for key in model.state_dict()
        if not (key.endswith(".num_batches_tracked") or key == MARK or (skip_classifier and key.startswith(last)))
    }
    found = places(states, names, source)
    fits = []
    for place in found if prefix is None else places(states, names, source, prefix):
        copies = [
            other.prefix
            for other in found
            if other.whole(names)
            and other.entry == place.entry
            and other.prefix != place.prefix
            and other.prefix.startswith(place.prefix)
        ]
        fits.append(_fit(model, states[place.entry], place, copies, skip_classifier, adapt_in_chans))
    fit = _one(path, fits)
    place = fit.place
    title = ZOOS[_source(path, model, place, source, style)].title
    where = [f"entry {place.entry!r}"] * (place.entry is not None) + [f"prefix {place.prefix!r}"] * bool(place.prefix)
    if fit.misfit:
        raise ValueError(
            f"{path} ({', '.join([title, *where])}) does not fit the model, and nothing was loaded: {fit.misfit}. "
            f"To do: {hints(model, fit.misfit, fit.weights, fit.wanted)}"
        )
    if place.entry is not None:
        notes.append(f"from its entry {place.entry!r}")
    if place.prefix:
        notes.append(f"prefix {place.prefix!r} stripped")
    state = model.state_dict()
    model.load_state_dict({**{key: state[key] for key in fit.kept}, **fit.weights}, strict=True)
    return LoadReport(path, title, len(fit.weights), fit.ignored, fit.kept, (*notes, *fit.notes))
