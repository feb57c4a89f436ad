"""Everything that a training run depends on, in one file that the run keeps beside its results."""

import difflib
import math
import os
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from ...._atomic_write import write_text
from ...._errors import InputError

__all__ = ["Config", "DataConfig", "ModelConfig", "TrainingConfig"]

CHOICES: dict[str, tuple[Any, ...]] = {
    "data.depth": (8, 16),
    "data.cache": ("disk", "memory", "none"),
    "data.sampling": ("shuffled", "balanced"),
    "training.optimizer": ("adamw", "sgd"),
    "training.loss": ("cross_entropy", "focal"),
    "training.class_weights": ("none", "inverse", "sqrt", "effective"),
    "training.monitor": ("macro_f1", "accuracy", "loss"),
    "training.precision": ("auto", "32", "bf16", "fp16"),
}
RANGES: dict[str, tuple[float, float]] = {
    "data.size": (32, 4096),
    "data.split_seed": (0, 2**31),
    "data.max_damaged": (0, 1),
    "data.workers": (-1, 256),
    "data.augmentation": (0, 2),
    "training.epochs": (1, 100_000),
    "training.batch": (2, 65536),
    "training.accumulate": (1, 65536),
    "training.learning_rate": (1e-9, 1e3),
    "training.final_rate": (0, 1),
    "training.warmup": (0, 1),
    "training.weight_decay": (0, 10),
    "training.momentum": (0, 0.9999),
    "training.label_smoothing": (0, 0.99),
    "training.focal_gamma": (0, 20),
    "training.effective_beta": (0, 0.9999999),
    "training.ema": (0, 0.999999),
    "training.clip": (0, 1e6),
    "training.patience": (0, 100_000),
    "training.devices": (1, 1024),
    "training.nodes": (1, 65536),
    "seed": (0, 2**31),
}
# Questions that a checkpoint may leave open.
ANSWERS = ("source", "style", "entry", "prefix")
# What a run may be resumed with although it began otherwise: none of it changes a result.
FREE = ("output", "data.cache", "data.cache_folder", "data.workers", "data.max_damaged", "model.variants")


_SHIPPED = Path(__file__).parents[1] / "configs"


def _shipped_names() -> list[str]:
    return sorted(path.stem for path in _SHIPPED.glob("*.yaml"))


def _shipped(path: Path) -> Path:
    """The file of that name among those that come with the package, unless a file of the user's has the name."""
    ours = _SHIPPED / f"{path}.yaml"
    return ours if str(path) == path.name and not path.exists() and ours.exists() else path


@dataclass(frozen=True)
class DataConfig:
    """Images.

    Attributes:
        path: a manifest.csv, or a folder, which is prepared (:func:`se_fused.apps.fracture.preparing.prepare`).
        layout: of the folder; "auto" looks.
        split_seed: of splits that the data has not got yet; apart from the run's seed, so that seeds compare.
        size: height and width of the network's images.
        depth: bits of a decoded pixel as it is kept, 8 or 16.
        cache: "disk", "memory" or "none" (:func:`se_fused.apps.fracture.data.decode_all`).
        cache_folder: "": ``cache`` beside the run's folder.
        max_damaged: the largest share of damaged or missing images that a run goes on without.
        workers: processes that load and augment; -1: chosen for the machine.
        augmentation: strength, 0 to 2 (:class:`se_fused.apps.fracture.data.Augmentation`).
        sampling: "shuffled", or "balanced": each class as often.
    """

    path: str = ""
    layout: str = "auto"
    split_seed: int = 0
    size: int = 224
    depth: int = 16
    cache: str = "disk"
    cache_folder: str = ""
    max_damaged: float = 0.05
    workers: int = -1
    augmentation: float = 1.0
    sampling: str = "shuffled"


@dataclass(frozen=True)
class ModelConfig:
    """The network.

    Attributes:
        name: one of :func:`se_fused.list_models`.
        options: further keywords of it, such as channels or width; where a file gives none, those of `variants`.
        variants: {name: options} for several networks of one recipe: what train and compare-models take.
        checkpoint: a file for :func:`se_fused.load_pretrained`, whose classifier is left out; "": random weights.
        checkpoint_options: source, style, entry or prefix of that function, where the file leaves them open.
        fused: whether our kernels run; False: the same network in plain PyTorch.
        compile: whether torch.compile is put on top.
    """

    name: str = "seresnet50"
    options: dict[str, Any] = field(default_factory=dict)
    variants: dict[str, Any] = field(default_factory=dict)
    checkpoint: str = ""
    checkpoint_options: dict[str, Any] = field(default_factory=dict)
    fused: bool = True
    compile: bool = False


@dataclass(frozen=True)
class TrainingConfig:
    """The recipe.

    Attributes:
        epochs: passes over the training images.
        batch: images of a step on each device.
        accumulate: batches whose gradients make one step.
        optimizer: "adamw" or "sgd" (Nesterov).
        learning_rate: at its highest.
        final_rate: share of it at the end of the cosine.
        warmup: share of all steps in which it rises from 0.
        weight_decay: of weights; biases and norms have none.
        momentum: of sgd.
        loss: "cross_entropy" or "focal".
        focal_gamma: of the focal loss.
        label_smoothing: share of a label spread over all classes.
        class_weights: "none", "inverse", "sqrt" or "effective" (:func:`se_fused.apps.fracture.training.class_weights`).
        effective_beta: of "effective".
        ema: decay of the average of weights over steps, which is what is validated and kept; 0: none.
        clip: largest norm of the gradient; 0: any.
        monitor: which epoch is the best, and when to stop: by "macro_f1", "accuracy" or "loss" of the valid split.
        patience: epochs without improvement after which training stops; 0: it does not.
        precision: "32", "bf16", "fp16"; "auto": bf16 on GPUs that have it, else fp16, and 32 on a CPU.
        device: "auto", "cpu", "cuda" or "cuda:INDEX".
        devices, nodes: GPUs (or processes) of a machine, and machines; with torchrun its own numbers count.
        sync_batchnorm: batch statistics over all devices.
        deterministic: refuse algorithms whose results differ from run to run on a GPU. A CPU's never do.
        tensorboard: whether a log for TensorBoard is written beside the CSV.
    """

    epochs: int = 30
    batch: int = 32
    accumulate: int = 1
    optimizer: str = "adamw"
    learning_rate: float = 1.5e-3
    final_rate: float = 0.01
    warmup: float = 0.1
    weight_decay: float = 0.05
    momentum: float = 0.9
    loss: str = "cross_entropy"
    focal_gamma: float = 2.0
    label_smoothing: float = 0.05
    class_weights: str = "none"
    effective_beta: float = 0.999
    ema: float = 0.998
    clip: float = 1.0
    monitor: str = "macro_f1"
    patience: int = 0
    precision: str = "auto"
    device: str = "auto"
    devices: int = 1
    nodes: int = 1
    sync_batchnorm: bool = False
    deterministic: bool = False
    tensorboard: bool = True


@dataclass(frozen=True)
class Config:
    """A run: data, network, recipe, the seed of all random numbers, and the folder that it writes."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    seed: int = 0
    output: str = "runs/fracture"

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Config":
        """Read a YAML file; what it leaves out has its default.

        Args:
            path: the file, or the name of one that comes with the package: small-cpu, full-gpu.

        Raises:
            InputError: no such file, not YAML, an unknown key, a value of the wrong type or out of range.
        """
        import yaml

        path = _shipped(Path(path))
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            hint = f"; give a file, or one of {', '.join(_shipped_names())}" if not path.exists() else ""
            raise InputError(f"{path}: cannot be read as a configuration: {error}{hint}") from None
        except yaml.YAMLError as error:
            raise InputError(f"{path}: is no YAML: {' '.join(str(error).split())}") from None
        if content is not None and not isinstance(content, dict):
            raise InputError(f"{path}: must hold sections data, model, training and keys seed, output; got {content!r}")
        made: Config = _build(cls, content or {}, "", str(path)).check(str(path))
        return made if made.model.options else made.with_model(made.model.name)

    def with_model(self, name: str) -> "Config":
        """A copy for another network, with its options out of ``model.variants``, or none."""
        options = dict(self.model.variants.get(name.lower()) or {})
        return replace(self, model=replace(self.model, name=name, options=options)).check("model")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the YAML file with every key, whole or not at all."""
        import yaml

        write_text(Path(path), yaml.safe_dump(asdict(self), sort_keys=False, allow_unicode=True))

    def with_values(self, values: Mapping[str, Any], where: str = "--set") -> "Config":
        """A copy with other values, by dotted names: ``{"training.epochs": 3}``.

        Raises:
            InputError: as from :meth:`load`.
        """
        made = self
        for name, value in values.items():
            section, _, key = name.rpartition(".")
            tree: Any = {section: {key: value}} if section else {key: value}
            if section.startswith("model.options"):
                options = dict(made.model.options)
                options[key] = value
                tree = {"model": {"options": options}}
            elif "." in section:
                raise InputError(f"{where}: there is no {name}; keys are like training.epochs")
            made = _build(made, tree, "", where)
        return made.check(where)

    def overridden(self, settings: Sequence[str]) -> "Config":
        """A copy with ``key=value`` texts, values in YAML: ``["training.epochs=3", "model.options.width=8"]``.

        Raises:
            InputError: as from :meth:`load`, or no ``=``.
        """
        import yaml

        values: dict[str, Any] = {}
        known = self.flat()
        for text in settings:
            key, equals, value = text.partition("=")
            if not equals:
                raise InputError(f"--set {text}: must be KEY=VALUE, such as training.epochs=3")
            try:  # a text is taken as it stands: YAML would make something else of some
                plain = isinstance(known.get(key.strip()), str)
                values[key.strip()] = value.strip() if plain else yaml.safe_load(value)
            except yaml.YAMLError as error:
                raise InputError(f"--set {text}: the value is no YAML: {' '.join(str(error).split())}") from None
        return self.with_values(values)

    def flat(self) -> dict[str, Any]:
        """{dotted name: value}."""
        out: dict[str, Any] = {}
        for key, value in asdict(self).items():
            out.update({f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value})
        return out

    def differences(self, other: "Config") -> list[str]:
        """Names of what differs and matters to a result."""
        mine, theirs = self.flat(), other.flat()
        return [name for name in mine if mine[name] != theirs[name] and name not in FREE]

    def check(self, where: str = "configuration") -> "Config":
        """This configuration.

        Raises:
            InputError: a value is out of its range, or there is no such model.
        """
        from ....models import list_models

        for name, value in self.flat().items():
            if name in CHOICES and value not in CHOICES[name]:
                raise InputError(f"{where}: {name} must be one of {', '.join(map(str, CHOICES[name]))}; got {value!r}")
            if name in RANGES:
                low, high = RANGES[name]
                if not (math.isfinite(value) and low <= value <= high):
                    raise InputError(f"{where}: {name} must be from {low:g} to {high:g}; got {value!r}")
        if self.model.name.lower() not in list_models():
            close = difflib.get_close_matches(self.model.name.lower(), list_models(), n=3)
            hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(list_models())}"
            raise InputError(f"{where}: model.name: there is no model {self.model.name!r}; {hint}")
        reserved = {"num_classes", "in_chans", "checkpoint_path", "device", "dtype"} & set(self.model.options)
        if reserved:
            raise InputError(f"{where}: model.options may not hold {', '.join(sorted(reserved))}: the run sets it")
        unknown = sorted(set(self.model.checkpoint_options) - set(ANSWERS))
        if unknown:
            raise InputError(
                f"{where}: model.checkpoint_options may hold {', '.join(ANSWERS)}; got {', '.join(map(str, unknown))}"
            )
        kind, _, index = self.training.device.partition(":")
        if kind not in ("auto", "cpu", "cuda") or (index and not (kind == "cuda" and index.isdecimal())):
            raise InputError(
                f"{where}: training.device must be auto, cpu, cuda or cuda:INDEX; got {self.training.device!r}"
            )
        for name, options in self.model.variants.items():
            if name not in list_models() or not isinstance(options, dict | None):
                raise InputError(
                    f"{where}: model.variants must be models with their options, such as unet: {{width: 8}}; got "
                    f"{name}: {options!r}"
                )
        if not self.output:
            raise InputError(f"{where}: output must name a folder for the run")
        return self


def _typed(value: Any, kind: Any, name: str, where: str) -> Any:
    """`value` as `kind`; an integer is a number too, and YAML reads 1e-3 as a text."""
    if kind is float and isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            pass
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is str and name in CHOICES and isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # precision: 32
    if kind is str and value is False and "none" in CHOICES.get(name, ()):
        return "none"
    origin = typing.get_origin(kind) or kind
    if not isinstance(value, origin) or (kind is int and isinstance(value, bool)):
        wanted = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", dict: "a mapping"}
        raise InputError(f"{where}: {name} must be {wanted[origin]}; got {value!r}")
    return value


def _build(base: Any, content: Mapping[str, Any], prefix: str, where: str) -> Any:
    """`base` (a dataclass, or an instance of one) with the values of a tree of mappings."""
    if isinstance(base, type):
        base = base()
    hints: dict[str, Any] = typing.get_type_hints(type(base))
    names = [f.name for f in fields(base)]
    changes = {}
    for key, value in content.items():
        if key not in names:
            every = [f"{prefix}{name}" for name in names] + list(Config().flat())
            asked = f"{prefix}{key}"
            close = difflib.get_close_matches(asked, every, n=3) or [n for n in every if n.endswith(f".{key}")]
            hint = f"did you mean {' or '.join(dict.fromkeys(close))}?" if close else f"there are {', '.join(names)}"
            raise InputError(f"{where}: there is no {asked}; {hint}")
        current = getattr(base, key)
        if is_dataclass(current):
            if not isinstance(value, Mapping):
                raise InputError(f"{where}: {prefix}{key} must be a section with keys; got {value!r}")
            changes[key] = _build(current, value, f"{prefix}{key}.", where)
        else:
            changes[key] = _typed(value, hints[key], f"{prefix}{key}", where)
    return replace(base, **changes)
