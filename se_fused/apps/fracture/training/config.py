"""Configuration of a training run: a YAML file, saved in the run's folder with its results."""

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
# Arguments of load_pretrained that some checkpoint files need.
ANSWERS = ("source", "style", "entry", "prefix")
# Settings that may differ when a run is resumed, because they do not change its results.
FREE = ("output", "data.cache", "data.cache_folder", "data.workers", "data.max_damaged", "model.variants")


_SHIPPED = Path(__file__).parents[1] / "configs"


def _shipped_names() -> list[str]:
    return sorted(path.stem for path in _SHIPPED.glob("*.yaml"))


def _shipped(path: Path) -> Path:
    """The packaged configuration of this name, unless the user has a file with the same name."""
    ours = _SHIPPED / f"{path}.yaml"
    return ours if str(path) == path.name and not path.exists() and ours.exists() else path


@dataclass(frozen=True)
class DataConfig:
    """Settings of the data.

    Attributes:
        path: a manifest.csv, or a folder, which is prepared first (:func:`se_fused.apps.fracture.preparing.prepare`).
        layout: layout of the folder; "auto" detects it.
        split_seed: random seed of the splits, if the data has none. It is separate from the run's seed, so that runs
            with different seeds have the same splits.
        size: height and width of the network's input in pixels.
        depth: bits of a cached pixel, 8 or 16.
        cache: "disk", "memory" or "none" (:func:`se_fused.apps.fracture.data.decode_all`).
        cache_folder: folder of the cache on disk; "": ``cache`` beside the run's folder.
        max_damaged: largest share of damaged or missing images with which a run starts.
        workers: processes that load and augment images; -1: chosen for the machine.
        augmentation: strength, 0 to 2 (:class:`se_fused.apps.fracture.data.Augmentation`).
        sampling: "shuffled", or "balanced": each class equally often.
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
    """Settings of the network.

    Attributes:
        name: one of :func:`se_fused.list_models`.
        options: further keyword arguments of the model, such as channels or width. A file without options uses those
            of `variants`.
        variants: {name: options} of several networks with the same training recipe, for train and compare-models.
        checkpoint: a file for :func:`se_fused.load_pretrained`, loaded without its classifier; "": random weights.
        checkpoint_options: arguments source, style, entry or prefix of that function, if the file needs them.
        fused: whether to use the fused kernels; False: the same network in plain PyTorch.
        compile: whether to apply torch.compile.
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
    """Settings of the training recipe.

    Attributes:
        epochs: number of passes over the training images.
        batch: batch size on each device.
        accumulate: number of batches whose gradients are accumulated for one optimizer step.
        optimizer: "adamw" or "sgd" (with Nesterov momentum).
        learning_rate: peak learning rate.
        final_rate: learning rate at the end of the cosine schedule, as a share of the peak.
        warmup: share of all steps in which the learning rate rises linearly.
        weight_decay: weight decay of the weights; biases and normalisation layers have none.
        momentum: momentum of sgd.
        loss: "cross_entropy" or "focal".
        focal_gamma: gamma of the focal loss.
        label_smoothing: share of the label that is distributed over all classes.
        class_weights: "none", "inverse", "sqrt" or "effective" (:func:`se_fused.apps.fracture.training.class_weights`).
        effective_beta: beta of the class weights "effective".
        ema: decay of the exponential moving average of the weights, which is validated and saved; 0: no average.
        clip: maximum norm of the gradient; 0: no clipping.
        monitor: metric of the valid split for the best epoch and early stopping: "macro_f1", "accuracy" or "loss".
        patience: number of epochs without improvement after which training stops; 0: no early stopping.
        precision: "32", "bf16", "fp16"; "auto": bf16 on GPUs that support it, fp16 on other GPUs, 32 on a CPU.
        device: "auto", "cpu", "cuda" or "cuda:INDEX".
        devices, nodes: number of GPUs (or processes) in a machine, and of machines; torchrun overrides both.
        sync_batchnorm: whether to compute batch statistics over all devices.
        deterministic: whether to refuse GPU algorithms whose results vary between runs. CPU results never vary.
        tensorboard: whether to write a TensorBoard log in addition to the CSV.
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
    """Configuration of a run: data, network, training recipe, random seed, and output folder."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    seed: int = 0
    output: str = "runs/fracture"

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Config":
        """Read a YAML file; omitted keys have their defaults.

        Args:
            path: the file, or the name of a packaged configuration: small-cpu, full-gpu.

        Raises:
            InputError: there is no such file, it is not YAML, a key is unknown, or a value has the wrong type or is
                out of range.
        """
        import yaml

        path = _shipped(Path(path))
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            hint = f"; give a file, or one of {', '.join(_shipped_names())}" if not path.exists() else ""
            raise InputError(f"{path}: cannot be read as a configuration: {error}{hint}") from None
        except yaml.YAMLError as error:
            raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
        if content is not None and not isinstance(content, dict):
            raise InputError(f"{path}: must be a mapping with data, model, training, seed, output; got {content!r}")
        made: Config = _build(cls, content or {}, "", str(path)).check(str(path))
        return made if made.model.options else made.with_model(made.model.name)

    def with_model(self, name: str) -> "Config":
        """A copy for another network, with the options of ``model.variants`` for it, if there are any."""
        options = dict(self.model.variants.get(name.lower()) or {})
        return replace(self, model=replace(self.model, name=name, options=options)).check("model")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all keys to a YAML file, atomically."""
        import yaml

        write_text(Path(path), yaml.safe_dump(asdict(self), sort_keys=False, allow_unicode=True))

    def with_values(self, values: Mapping[str, Any], where: str = "--set") -> "Config":
        """A copy with changed values, given by dotted names: ``{"training.epochs": 3}``.

        Raises:
            InputError: as in :meth:`load`.
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
                raise InputError(f"{where}: there is no key {name}; keys are written like training.epochs")
            made = _build(made, tree, "", where)
        return made.check(where)

    def overridden(self, settings: Sequence[str]) -> "Config":
        """A copy changed by ``key=value`` strings with YAML values: ``["training.epochs=3", "model.options.width=8"]``.

        Raises:
            InputError: as in :meth:`load`, or a string has no ``=``.
        """
        import yaml

        values: dict[str, Any] = {}
        known = self.flat()
        for text in settings:
            key, equals, value = text.partition("=")
            if not equals:
                raise InputError(f"--set {text}: must be KEY=VALUE, such as training.epochs=3")
            try:  # strings are not parsed: YAML would convert some of them to other types
                plain = isinstance(known.get(key.strip()), str)
                values[key.strip()] = value.strip() if plain else yaml.safe_load(value)
            except yaml.YAMLError as error:
                raise InputError(f"--set {text}: the value is not valid YAML: {' '.join(str(error).split())}") from None
        return self.with_values(values)

    def flat(self) -> dict[str, Any]:
        """All settings as {dotted name: value}."""
        out: dict[str, Any] = {}
        for key, value in asdict(self).items():
            out.update({f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value})
        return out

    def differences(self, other: "Config") -> list[str]:
        """Names of the settings that differ and can change the results."""
        mine, theirs = self.flat(), other.flat()
        return [name for name in mine if mine[name] != theirs[name] and name not in FREE]

    def check(self, where: str = "configuration") -> "Config":
        """Check all values; returns this configuration.

        Raises:
            InputError: a value is invalid or out of range, or there is no such model.
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
            hint = f"did you mean {' or '.join(close)}?" if close else f"the models are {', '.join(list_models())}"
            raise InputError(f"{where}: model.name: there is no model {self.model.name!r}; {hint}")
        reserved = {"num_classes", "in_chans", "checkpoint_path", "device", "dtype"} & set(self.model.options)
        if reserved:
            raise InputError(f"{where}: model.options must not contain {', '.join(sorted(reserved))}: the run sets it")
        unknown = sorted(set(self.model.checkpoint_options) - set(ANSWERS))
        if unknown:
            raise InputError(
                f"{where}: model.checkpoint_options may have {', '.join(ANSWERS)}; got {', '.join(map(str, unknown))}"
            )
        kind, _, index = self.training.device.partition(":")
        if kind not in ("auto", "cpu", "cuda") or (index and not (kind == "cuda" and index.isdecimal())):
            raise InputError(
                f"{where}: training.device must be auto, cpu, cuda or cuda:INDEX; got {self.training.device!r}"
            )
        for name, options in self.model.variants.items():
            if name not in list_models() or not isinstance(options, dict | None):
                raise InputError(
                    f"{where}: model.variants must map models to options, such as unet: {{width: 8}}; got "
                    f"{name}: {options!r}"
                )
        if not self.output:
            raise InputError(f"{where}: output must not be empty; give a folder for the run")
        return self


def _typed(value: Any, kind: Any, name: str, where: str) -> Any:
    """Convert `value` to the type `kind`: integers are accepted as floats, and strings too (YAML reads 1e-3 as one)."""
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
        wanted = {str: "a string", int: "an integer", float: "a number", bool: "true or false", dict: "a mapping"}
        raise InputError(f"{where}: {name} must be {wanted[origin]}; got {value!r}")
    return value


def _build(base: Any, content: Mapping[str, Any], prefix: str, where: str) -> Any:
    """Apply nested mappings of values to `base`, a dataclass or an instance of one."""
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
            hint = f"did you mean {' or '.join(dict.fromkeys(close))}?" if close else f"the keys are {', '.join(names)}"
            raise InputError(f"{where}: there is no key {asked}; {hint}")
        current = getattr(base, key)
        if is_dataclass(current):
            if not isinstance(value, Mapping):
                raise InputError(f"{where}: {prefix}{key} must be a section with keys; got {value!r}")
            changes[key] = _build(current, value, f"{prefix}{key}.", where)
        else:
            changes[key] = _typed(value, hints[key], f"{prefix}{key}", where)
    return replace(base, **changes)
