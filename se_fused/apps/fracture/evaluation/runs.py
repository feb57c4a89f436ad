"""Finished training runs grouped by model, and training of the runs that a comparison lacks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...._errors import InputError
from ....models import list_models
from ..classifier import Classifier
from ..manifest import Manifest, natural_key
from ..predictions import Predictions
from .pairs import aligned
from .predicting import kept_predictions

if TYPE_CHECKING:
    from ..training.config import Config

__all__ = ["SYSTEMS", "Finished", "by_model", "load_runs", "train_missing"]

SYSTEMS = ("resnet50", "unet", "densenet121", "seresnet50")
"""Models of the paper's four networks, in the order of the paper."""
TITLES = {"resnet": "ResNet", "unet": "U-Net", "densenet": "DenseNet", "seresnet": "SE-ResNet"}

Progress = Callable[[str, float], None]


def title(model: str) -> str:
    """Display name of a model, "seresnet50" -> "SE-ResNet-50"; other models keep their name."""
    kind = model.rstrip("0123456789")
    depth = model[len(kind) :]
    return model if kind not in TITLES else TITLES[kind] + (f"-{depth}" if depth else "")


@dataclass
class Finished:
    """A finished training run.

    Attributes:
        folder: folder of the run.
        classifier: its classifier, on the CPU.
        predictions: its predictions of the test split.
        manifest: its manifest.
        seed: its random seed; 0 if not recorded.
    """

    folder: Path
    classifier: Classifier
    predictions: Predictions
    manifest: Manifest
    seed: int

    @property
    def model(self) -> str:
        """Name of the model, from ``Classifier.about["model"]``."""
        return str(self.classifier.about.get("model", self.classifier.name))


def runs_below(folder: Path) -> list[Path]:
    """The folder itself if it is a run, else the folders of the finished runs in it."""
    if (folder / "metrics.json").is_file() or not folder.is_dir():
        return [folder]
    found = sorted((path.parent for path in folder.glob("*/metrics.json")), key=natural_key)
    return found or [folder]


def load_runs(folders: Sequence[Path], progress: Progress = lambda *_: None) -> list[Finished]:
    """Load finished runs; missing predictions of the test split are computed.

    Raises:
        InputError: a folder contains no finished run, a run has no test split, or two runs have different test sets;
            the message names the folders.
    """
    if not folders:
        raise InputError("no runs to compare; give the folders of finished se-fused fracture train runs")
    runs = []
    for i, folder in enumerate(folders):
        if not (folder / "metrics.json").is_file():
            raise InputError(
                f"{folder}: not a finished run (no metrics.json); finish it with se-fused fracture train --resume"
            )
        classifier, manifest = Classifier.load(folder), Manifest.load(folder / "manifest.csv")

        def told(what: str, share: float, i: int = i) -> None:
            progress(what, (i + share) / len(folders))

        predictions = kept_predictions(folder, "test", classifier, manifest, told)
        if predictions is None:
            raise InputError(
                f"{folder}: its manifest has no test split; split it with se-fused fracture prepare and train again"
            )
        runs.append(Finished(folder, classifier, predictions, manifest, int(classifier.about.get("seed", 0))))
    same = aligned({str(run.folder): run.predictions for run in runs})
    for run in runs:
        run.predictions = same[str(run.folder)]
    return runs


def by_model(runs: Sequence[Finished]) -> dict[str, list[Finished]]:
    """Group runs by model and options, sorted by seed; the paper's models come first, in the order of the paper.

    The options are part of the name where they differ between runs of one model: "unet (width=8)".
    """
    options: dict[str, list[str]] = {}
    texts = []
    for run in runs:
        text = ", ".join(f"{key}={value}" for key, value in sorted(run.classifier.options.items()))
        texts.append(text)
        if text not in options.setdefault(run.model, []):
            options[run.model].append(text)
    found: dict[str, list[Finished]] = {}
    for run, text in zip(runs, texts, strict=True):
        name = run.model if len(options[run.model]) == 1 else f"{run.model} ({text or 'default'})"
        found.setdefault(name, []).append(run)
    for name, group in found.items():
        group.sort(key=lambda run: (run.seed, str(run.folder)))
        seeds = [run.seed for run in group]
        if len(set(seeds)) < len(seeds):
            twice = next(seed for seed in seeds if seeds.count(seed) > 1)
            where = " and ".join(str(run.folder) for run in group if run.seed == twice)
            raise InputError(f"{where}: both are {name} with seed {twice}; give only one of them")
    kinds = list(TITLES)

    def place(name: str) -> int:
        kind = name.split()[0].rstrip("0123456789")
        return kinds.index(kind) if kind in kinds else len(kinds)

    return dict(sorted(found.items(), key=lambda item: place(item[0])))


# ---- training of missing runs
def train_missing(
    output: Path,
    base: "Config",
    models: Sequence[str],
    seeds: int,
    progress: Progress = lambda *_: None,
    say: Callable[[str], None] = lambda _: None,
) -> list[Path]:
    """Train each model with each seed in ``output/runs/<model>-seed<k>``; resume unfinished runs, skip finished ones.

    Args:
        output: folder of the comparison.
        base: configuration of all runs; data.path must be set.
        models: names of the models; their options are ``base.model.variants``.
        seeds: number of seeds, 0 to seeds - 1.
        progress: called with a description of the current step and the completed share, 0 to 1.
        say: called with a line of text for each run and epoch.

    Returns:
        The folders of the runs.

    Raises:
        InputError: a model does not exist, or an existing run was trained with other settings.
    """
    from ..training.config import Config
    from ..training.run import train
    from ..training.sources import read_manifest

    unknown = [name for name in models if name not in list_models()]
    if unknown:
        raise InputError(f"--models: there is no {unknown[0]!r}; the models are {', '.join(list_models())}")
    (output / "runs").mkdir(parents=True, exist_ok=True)
    if Path(base.data.path).is_dir():
        # Prepared once, so that all runs have the same splits and groups of near duplicates.
        manifest = output / "manifest.csv"
        if not manifest.is_file():
            read_manifest(base.data, progress).save(manifest)
        base = base.with_values({"data.path": str(manifest)})
    # One seed of all models before the next seed, so that an interrupted comparison already has runs of each model.
    wanted = [(name, seed) for seed in range(seeds) for name in models]
    folders = []
    for i, (name, seed) in enumerate(wanted):
        folder = output / "runs" / f"{name}-seed{seed}"
        config = base.with_model(name).with_values({"seed": seed, "output": str(folder)}, f"compare-models, {name}")
        folders.append(folder)
        if (folder / "metrics.json").is_file():
            other = Config.load(folder / "config.yaml").differences(config)
            if other:
                raise InputError(
                    f"{folder}: was trained with a different {', '.join(other)}; remove it, or give another --output"
                )
            continue
        say(f"{name}, seed {seed}: run {i + 1} of {len(wanted)}")

        def told(what: str, share: float, i: int = i, name: str = name, seed: int = seed) -> None:
            progress(f"{name}, seed {seed}: {what}", (i + share) / len(wanted))

        train(config, resume=True, progress=told, say=say)
    return folders
