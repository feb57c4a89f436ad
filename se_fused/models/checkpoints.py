"""Checkpoints of other libraries: translated into our names, or refused with the reason; never loaded wrong.

What the keys and shapes of a file cannot tell:

- which convolution of mmpretrain's bottlenecks is strided: ``style`` is asked for;
- whether a file with timm's names has timm's order: it is taken to have it. A file of the legacy order whose keys
  were renamed needs ``source="legacy"``;
- timm's ``resnetaa50``, ``resnetblur18`` and ``resnetblur50`` have the keys of ``resnet50`` and ``resnet18`` and are
  other functions: they are refused if the path or the file's "arch" entry names them;
- dilated models, and other changes that leave the parameters as they are.
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
    r"^n_averaged$": "the count of torch.optim.swa_utils.AveragedModel",
    r"^data_preprocessor\.": "mmpretrain's normalisation of the image",
    r"(^|\.)total_(ops|params)$": "counts of thop",
}
_LOOKALIKES = re.compile(r"resnet(aa|blur)\d+")


@dataclass(frozen=True)
class LoadReport:
    """What :func:`load_pretrained` did; ``str(report)`` says it in a few lines.

    Attributes:
        path: the file.
        source: the library whose names its keys are.
        loaded: how many tensors of the model now have the file's values.
        ignored: keys of the state_dict in the file that were not used, and why: such as those of a loss, which are not
            under the model's prefix.
        kept: keys of the model whose values are as before, and why.
        notes: what was done to names and values, which entry and prefix the model was found under, and the classes
            whose objects beside the weights were not unpickled.
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
    """The weights at a place of the file, in the model's names and shapes, and what does not fit."""

    place: Place
    weights: dict[str, Any]
    wanted: dict[str, Tensor]
    ignored: dict[str, str]
    kept: dict[str, str]
    notes: list[str]
    misfit: Misfit


def _source(path: str, model: ImageClassifier, place: Place, source: str | None, style: str | None) -> str:
    """Whose names the keys are, once it is sure that the model computes what that library's does."""
    detected, mark = place.zoo, place.mark
    if source is not None and detected not in (source, "timm", "torchvision"):
        raise ValueError(
            f"source={source!r}, but key {mark!r} of {path} is one of {ZOOS[detected].title}: leave source out"
        )
    name = source or detected
    zoo = ZOOS[name]
    if style is not None and name != "mmpretrain":
        raise ValueError(
            f"style={style!r} is a question about mmpretrain's files; {path} is of {zoo.title}: leave style out"
        )
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
            # Without mmpretrain's own head, `backbone` may be an attribute of any other model.
            head = any(key.startswith(f"{place.prefix}head.fc.") or ".se_layer." in key for key in place.ours)
            hint = "" if head or source else f", or prefix={backbone!r} if it is not of mmpretrain"
            raise ValueError(
                f"{path} is of mmpretrain, where style='pytorch' and style='caffe' have the same keys and differ in "
                f"which convolution is strided: look into its config and say style='pytorch' or style='caffe'{hint}"
            )
        if check_choice(style, "style", ("pytorch", "caffe")) == "caffe":
            raise ValueError(
                f"style='caffe' of mmpretrain ({path}) strides in conv1 and pads the stem's pooling; no model here "
                "does both: take weights of style='pytorch'"
            )
    return name


def _adapted(weight: Tensor, in_chans: int) -> Tensor:
    """A stem's weight (D, C, k, k) for other channels: their sum for one, else repeated in turn and scaled; as timm."""
    if in_chans == 1:
        return weight.float().sum(1, keepdim=True).to(weight.dtype)
    turns = torch.arange(in_chans) % weight.shape[1]
    return (weight.float()[:, turns] * (weight.shape[1] / in_chans)).to(weight.dtype)


def _fit(
    model: ImageClassifier, state: dict[str, Any], place: Place, copies: list[str], skip: bool, adapt: bool
) -> _Fit:
    """The weights at a place, compared with the model's; ``copies``: prefixes under which the whole model is again."""
    last, stem = f"{model.classifier_name}.", model.stem_weight
    ignored = {key: f"not under the prefix {place.prefix!r}" for key in state if key not in place.ours}
    for copy in copies:
        ignored |= {key: f"a copy of the model under the prefix {copy!r}" for key in place.ours if key.startswith(copy)}
    # Known by name wherever they stand.
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
            kept[key] = "no other library has it"

    for key, weight in weights.items():
        # SE's layers are matrices with some, 1x1 convolutions here.
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
    """Whether all have the same values, as of one module with two names."""
    first = fits[0].weights
    return all(
        fit.weights.keys() == first.keys()
        and all(first[k].dtype == v.dtype and torch.equal(first[k], v) for k, v in fit.weights.items())
        for fit in fits[1:]
    )


def _one(path: str, fits: list[_Fit]) -> _Fit:
    """The place that is meant.

    Raises:
        ValueError: it could be any of several.
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
    raise ValueError(f"{path} holds this model {what}: say which with {listed(names, ' or ')}")


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

    The keys tell whose it is and are translated. All is compared first: the model is as before unless everything fits.

    The file may hold the state_dict itself, or be one of a training run, such as Lightning's. The model is looked for
    under every entry and every prefix (``model.``, ``module.``, an attribute of any name), by its keys. What the
    state_dict has beside it, such as ``criterion.pos_weight``, is left out and named in the result. If the model is
    there more than once, as with an average of its weights (EMA) or a student and a teacher, and one does not fit
    better than the others, you are asked for ``entry`` or ``prefix``.

    Nothing but tensors is unpickled: objects beside the weights (numbers of numpy, arguments, configurations) are
    passed over, and no code of the file runs.

    Args:
        model: a model of :mod:`se_fused.models`.
        path: a .safetensors file, or what ``torch.save`` wrote; its content tells which, not its name.
        source: whose order the file has, where its keys do not tell: "timm", "torchvision", "legacy" (timm ``legacy_*``
            and Cadene), "monai", "nvidia", "mmpretrain" or "moskomule".
        style: of mmpretrain's bottlenecks, from the config that goes with the file: "pytorch" or "caffe".
        entry: which entry of the file, where more than one holds the model (``state_dict`` and ``state_dict_ema``).
        prefix: what the model's keys begin with, where it is there more than once ("student." and "teacher."); "" for
            nothing. It also says that ``backbone.`` is an attribute of yours and no sign of mmpretrain.
        skip_classifier: leave out the last layer: the model keeps its own, of its own number of classes. Encoders
            without a classifier need it.
        adapt_in_chans: give the first layer the model's number of image channels: the sum over the file's channels for
            one, else the file's in turn, scaled by the ratio. From three channels this is timm's rule.

    Returns:
        What was done.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: a safetensors file, and safetensors is not installed.
        TypeError: ``model`` is none of :mod:`se_fused.models`, or is wrapped; ``path`` is no path; an option is of the
            wrong type.
        ValueError: the file is no checkpoint (the message says what it seems to be); it is one of a different
            architecture; keys are missing, left over or of other shapes (they are counted, and three of each kind are
            named); or a question has to be answered by an argument. Each is one line that ends in what to do.
    """
    if not isinstance(model, ImageClassifier):
        raise TypeError(
            f"model must be one of se_fused.models, not wrapped or compiled, got {type(model).__name__}; for another "
            "library's model use its own loader"
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
            f"path must be that of a file, got {type(path).__name__}; to load a state_dict: torch.save(state, path)"
        ) from None
    content, notes = read_file(path)
    states = state_dicts(path, content, entry)
    if prefix is not None:
        prefix = check_prefix(path, states, prefix)
    arch = content.get("arch") if isinstance(content.get("arch"), str) else ""
    lookalike = _LOOKALIKES.search(f"{path} {arch}")
    if lookalike and source is None:
        raise ValueError(
            f"{path} seems to be of timm's {lookalike.group()}, which has the keys of a plain ResNet and is another "
            "function; if it is not, say source='timm'"
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
