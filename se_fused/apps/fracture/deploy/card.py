"""Model card of a run: intended use, training data, performance and limitations of the network.

The headings follow Mitchell et al., "Model Cards for Model Reporting" (FAT* 2019, arXiv:1810.03993); the content
follows the reporting guidelines CLAIM (2024) and TRIPOD+AI (2024) for medical imaging. All information comes from the
files of the run. Missing information is marked as "Not recorded".
"""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...._atomic_write import write_text
from ...._errors import InputError
from ....info.provenance import place
from ..classifier import Classifier
from ..evaluation.report import NAMES, PLAIN_NAMES, percent, table
from ..manifest import SPLITS, Manifest
from . import RESEARCH_USE_ONLY, SYNTHETIC, is_synthetic

__all__ = ["card", "write_card"]

_MISSING = "Not recorded"
_RECIPE = {
    "data": ("depth", "augmentation", "sampling"),
    "training": (
        "epochs", "batch", "accumulate", "devices", "nodes", "optimizer", "learning_rate", "final_rate", "warmup",
        "weight_decay", "momentum", "loss", "focal_gamma", "label_smoothing", "class_weights", "ema", "clip", "monitor",
        "patience", "precision", "deterministic",
    ),
}  # fmt: skip
_ONLY_WITH = {"momentum": ("optimizer", "sgd"), "focal_gamma": ("loss", "focal")}


def _read(path: Path) -> dict[str, Any] | None:
    """The mapping in a JSON or YAML file; None if there is no such file."""
    if not path.is_file():
        return None
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            content = json.loads(text)
        else:
            import yaml

            content = yaml.safe_load(text)
    except Exception as error:  # YAMLError is not a ValueError
        raise InputError(f"{path}: cannot be read: {' '.join(str(error).split())}; restore or remove it") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: is not a mapping of names to values; restore or remove it")
    return content


def _missing(what: str, file: str) -> str:
    return f"{_MISSING}: {what}. {file} is missing in the run's folder or does not contain this information.\n"


def _items(rows: Sequence[tuple[str, object]]) -> str:
    return "".join(f"- {name}: {value}\n" for name, value in rows)


# ---- the sections
def _details(classifier: Classifier, config: Mapping[str, Any] | None, environment: Mapping[str, Any] | None) -> str:
    about = classifier.about
    kernels = None if config is None else config.get("model", {}).get("fused")
    checkpoint = None if config is None else config.get("model", {}).get("checkpoint")
    options = ", ".join(f"{k}={v}" for k, v in classifier.options.items()) or "default options"
    rows: list[tuple[str, object]] = [
        ("Network", f"{classifier.name} ({options}), image classification"),
        ("Parameters", sum(p.numel() for p in classifier.model.parameters())),
        ("Classes, in the order of the outputs", ", ".join(classifier.classes)),
        ("Run", about.get("run", _MISSING)),
        ("Random seed", about.get("seed", _MISSING)),
        ("Selected epoch, counted from 0", about.get("epoch", _MISSING)),
        ("Trained", _MISSING if environment is None else environment.get("time", _MISSING)),
        ("Initial weights", _MISSING if config is None else place(checkpoint) if checkpoint else "random weights"),
        ("Kernels in training", {True: "fused (se_fused)", False: "plain PyTorch", None: _MISSING}[kernels]),
        ("Licence of the weights", "not stated; the licence of the training data may apply"),
    ]
    return _items(rows)


def _use(classifier: Classifier, synthetic: bool) -> str:
    what = "synthetic phantoms of long bones" if synthetic else "radiographs like those it was trained on"
    return (
        f"**{RESEARCH_USE_ONLY}**" + (f" **{SYNTHETIC}**" if synthetic else "") + "\n\n"
        f"- Intended use: research on classifying {what} as {', '.join(classifier.classes)}, by users who can "
        "interpret the metrics below.\n"
        "- Out of scope: diagnosis, triage, screening, second reading or any other decision about a patient; body "
        "parts, projections, devices or populations other than those of the training data; images with several "
        "findings, because only one class is predicted.\n"
    )


def _preprocessing(classifier: Classifier) -> str:
    p = classifier.preprocessing
    return (
        f"One grey channel in [0, 1], bone bright, scaled by the file's bit depth (DICOM: by its window or LUT). The "
        f"longer side is resized to {p.size} pixels (bilinear, antialiased) and the image is padded with black to a "
        f"square. Then (image − {p.mean:.6g}) / {p.std:.6g} is computed. "
        f"`se_fused.apps.fracture.load_radiograph(path, {p.size})` and `Classifier.probabilities` do this.\n"
    )


def _grouping(manifest: Manifest) -> str:
    patients = [record.patient for record in manifest.records]
    named = [p for p in patients if p]
    shared = Counter(p for p, _ in {(r.patient, r.split) for r in manifest.records if r.patient and r.split})
    torn = sum(count > 1 for count in shared.values())
    if not named:
        said = "Patients are unknown, so images of one patient may be in several splits: the metrics may be too high."
    elif all(p.startswith("group-") for p in named):
        said = (
            "The data set names no patients. Clusters of near-duplicate images (including mirrored ones) are kept "
            "in one split, but a patient whose images look different may still be in several splits."
        )
    else:
        said = "Splits are by patient."
    if named and len(named) < len(patients):
        said += f" {len(patients) - len(named)} images have no patient."
    if torn:
        said += f" **{torn} patients or groups have images in more than one split**, so the metrics are too high."
    return said + "\n"


def _data(manifest: Manifest, classes: Sequence[str], split: str | None) -> str:
    """Table of image counts, for all splits or for one."""
    counts = manifest.counts()
    heads = ("split", "images", "patients", "studies", *classes)
    rows = []
    for name in (*SPLITS, ""):
        records = manifest.where(name).records
        if records and (split is None or name == split):
            patients = len({r.patient for r in records if r.patient})
            studies = len({(r.patient, r.study) for r in records if r.study})
            cells = (counts[name].get(label, 0) for label in classes)
            rows.append((name or "none", len(records), patients or "–", studies or "–", *cells))
    return table(heads, rows)


def _training_data(manifest: Manifest | None, classifier: Classifier, config: Mapping[str, Any] | None) -> str:
    if manifest is None:
        return _missing("sources, counts and splits of the images", "manifest.csv")
    sources = Counter(record.source or "not named" for record in manifest.records)
    views = Counter(record.view or "not named" for record in manifest.records)
    seed = None if config is None else config.get("data", {}).get("split_seed")
    lines = [
        _data(manifest, classifier.classes, None),
        _items(
            [
                ("Source", ", ".join(f"{name} ({count} images)" for name, count in sources.most_common())),
                ("Views", ", ".join(f"{name} ({count})" for name, count in views.most_common(8))),
                (
                    "Random seed of the splits, if they were not part of the data set",
                    _MISSING if seed is None else seed,
                ),
                ("SHA-256 of the manifest (names, labels, patients, splits)", f"`{manifest.digest()}`"),
                ("Manifest recorded in model.pt", _same(manifest, classifier)),
                ("Labelling procedure, consent, ethics approval, dates, age, sex, devices", _MISSING),
            ]
        ),
        _grouping(manifest),
    ]
    return "\n".join(lines)


def _same(manifest: Manifest, classifier: Classifier) -> str:
    kept = classifier.about.get("manifest")
    if kept is None:
        return _MISSING
    same = kept == manifest.digest()
    return "the same" if same else f"**different**, `{kept}`: the table above does not describe this model's data"


def _recipe(config: Mapping[str, Any] | None) -> str:
    if config is None:
        return _missing("the training recipe", "config.yaml")
    rows = []
    for section, keys in _RECIPE.items():
        values = config.get(section, {})
        for key in keys:
            other, needed = _ONLY_WITH.get(key, ("", ""))
            if key in values and (not other or values.get(other) == needed):
                rows.append((f"{section}.{key}", values[key]))
    return table(("setting", "value"), rows) + "\nAll settings: config.yaml.\n"


def _figures(found: Mapping[str, Any]) -> str:
    values, intervals = found["metrics"], found["intervals"]
    limits = intervals["figures"]
    rows = [(title, percent(values[k], limits.get(k))) for k, title in NAMES.items()]
    others = []
    for key, title in PLAIN_NAMES.items():
        number, span = values[key], limits.get(key)
        text = "–" if number is None else f"{number:.4f}" + (f" [{span[0]:.4f}, {span[1]:.4f}]" if span else "")
        others.append((title, text))
    clusters, share = intervals["clusters"], f"{100 * intervals['level']:g} %"
    drawn = f"{intervals['draws']} bootstrap resamples of {clusters['count']} {clusters['what']}"
    return (
        table(("metric", f"% [{share} confidence interval]"), rows)
        + "\n"
        + table(("metric", f"[{share} confidence interval]"), others)
        + f"\n{values['images']} images; intervals from {drawn}.\n"
    )


def _per_class(found: Mapping[str, Any]) -> str:
    keys = ("precision", "recall", "f1", "specificity", "auroc", "average_precision")
    limits = found["intervals"]["per_class"]
    rows = [
        (name, row["images"], row["predicted"], *(percent(row[k], limits.get(name, {}).get(k)) for k in keys))
        for name, row in found["metrics"]["per_class"].items()
    ]
    heads = ("class", "images", "predicted", "precision", "recall", "F1", "specificity", "AUROC", "average precision")
    return table(heads, rows)


def _parts(metrics: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    keys = ("accuracy", "balanced_accuracy", "f1_macro", "auroc_macro")
    rows = [("this model", found["metrics"])]
    rows += [(f"view {name}", row) for name, row in (found.get("views") or {}).items()]
    rows += [(f"by {name}", row) for name, row in (found.get("groups") or {}).items()]
    baselines = metrics.get("baselines") or {}
    titles = {"majority": "baseline: the most frequent class", "logistic": "baseline: logistic regression"}
    rows += [(titles.get(name, name), row) for name, row in baselines.items() if "why" not in row]
    cells = [(name, row.get("count", row["images"]), *(percent(row[k]) for k in keys)) for name, row in rows]
    return table(("", "number", "accuracy", "balanced accuracy", "F1, macro", "AUROC, macro"), cells)


def _quantities(metrics: Mapping[str, Any] | None, split: str | None) -> str:
    if metrics is None or split is None:
        return _missing("metrics", "metrics.json")
    found = metrics["splits"][split]
    lines = [f"On the {split} split.\n", _figures(found), "### Classes\n", _per_class(found)]
    if (any_fracture := found["metrics"].get("any_fracture")) is not None:
        lines.append(
            f"Any fracture against {any_fracture['negative']}: sensitivity {percent(any_fracture['sensitivity'])} %, "
            f"specificity {percent(any_fracture['specificity'])} %, AUROC {percent(any_fracture['auroc'])} %.\n"
        )
    lines += ["### Subsets and baselines\n", _parts(metrics, found)]
    if (heat := metrics.get("gradcam")) is not None:
        lines.append(
            f"Grad-CAM: the hottest point is in the fracture's box in {percent(heat['pointing_game'])} % of "
            f"{heat['images']} images; for random heat maps, it would be in about {percent(heat['box_share'])} %.\n"
        )
    return "\n".join(lines)


def _factors(manifest: Manifest | None) -> str:
    said = "Age, sex, ethnicity, hospital and device are not recorded; their influence on the metrics is unknown.\n"
    if manifest is None:
        return said
    known = [name for name in ("view", "study", "source") if any(getattr(r, name) for r in manifest.records)]
    return f"Recorded for the images besides the class: {', '.join(known) or 'nothing'}. " + said


def _caveats(
    manifest: Manifest | None, metrics: Mapping[str, Any] | None, split: str | None, synthetic: bool, classes: int
) -> str:
    lines = [f"{SYNTHETIC} The metrics do not indicate the performance on patients."] if synthetic else []
    lines.append(
        "The metrics were computed on images from the same data set; on other data they are likely to be lower."
    )
    lines.append("The probabilities are those of one training run; another seed gives different ones.")
    lines.append(f"The model always predicts one of its {classes} classes, even if an image shows none of them.")
    if metrics is not None and split is not None:
        found = metrics["splits"][split]["metrics"]
        few = [name for name, row in found["per_class"].items() if row["images"] < 20]
        if few:
            lines.append(
                f"Fewer than 20 {split} images: {', '.join(few)}. The metrics of these classes are unreliable."
            )
        if split != "test":
            lines.append(
                f"The metrics are those of the {split} split, by which the epoch was selected: they are too high."
            )
        lost = metrics.get("missing", {}).get(split, [])
        if lost:
            lines.append(f"{len(lost)} images of the {split} split could not be read and were not evaluated.")
    if manifest is not None and not any(record.patient for record in manifest.records):
        lines.append("Patients are unknown; see Training data.")
    lines.append("Heat maps show which regions support a prediction, not where a fracture is.")
    return "".join(f"- {line}\n" for line in lines)


def _loading(classifier: Classifier) -> str:
    return (
        "```python\n"
        "from se_fused.apps.fracture.classifier import Classifier\n"
        "from se_fused.apps.fracture import load_radiograph\n\n"
        'classifier = Classifier.load("model.pt")  # tensors and plain values; no code is executed\n'
        f'image = load_radiograph("image.png", {classifier.preprocessing.size})[None]\n'
        "print(dict(zip(classifier.classes, classifier.probabilities(image)[0].tolist())))\n"
        "```\n\n"
        "Commands in this folder: `se-fused fracture predict . images/`, "
        "`se-fused fracture export . --output model.onnx`, "
        "`se-fused fracture serve .`.\n"
    )


def _versions(environment: Mapping[str, Any] | None) -> str:
    if environment is None:
        return _missing("versions and machine", "environment.json")
    versions = environment.get("versions") or {}
    rows: list[tuple[str, object]] = [("se_fused", environment.get("se_fused", _MISSING))]
    rows += [("commit", environment["commit"])] if environment.get("commit") else []
    rows += [(name, version) for name, version in {"python": environment.get("python"), **versions}.items() if version]
    cpu, gpus = environment.get("cpu") or {}, environment.get("gpus") or []
    machine = ", ".join(str(g.get("name")) for g in gpus) or str(cpu.get("model", _MISSING))
    rows += [(name, environment[name]) for name in ("lightning", "platform") if name in environment]
    return _items([*rows, ("machine", machine)])


def card(run_folder: str | os.PathLike[str], metrics: Mapping[str, Any] | None = None) -> str:
    """Text of the model card; see :func:`write_card`."""
    folder = Path(run_folder)
    classifier = Classifier.load(folder)
    config, environment = _read(folder / "config.yaml"), _read(folder / "environment.json")
    metrics = _read(folder / "metrics.json") if metrics is None else metrics
    path = folder / "manifest.csv"
    manifest = Manifest.load(path) if path.is_file() else None
    splits = (metrics or {}).get("splits") or {}
    if not splits:  # metrics.json has no evaluation yet
        metrics = None
    split = (metrics or {}).get("split") or next(reversed(splits), None)
    sources = {record.source for record in manifest.records} if manifest else set()
    synthetic = any(map(is_synthetic, (*sources, classifier.about.get("source", ""))))
    if manifest is None or split is None:
        judged = _missing("the evaluated images", "manifest.csv" if manifest is None else "metrics.json")
    else:
        judged = _data(manifest, classifier.classes, split) + "\nTraining data describes how the splits were made.\n"
    return "\n".join(
        (
            f"# Model card: {classifier.name}, {classifier.about.get('run', folder.resolve().name)}\n",
            f"**{RESEARCH_USE_ONLY}**{f' **{SYNTHETIC}**' if synthetic else ''}\n",
            "## Model details\n", _details(classifier, config, environment),
            "## Intended use\n", _use(classifier, synthetic),
            "## Factors\n", _factors(manifest),
            "## Training data\n", _training_data(manifest, classifier, config),
            "## Evaluation data\n", judged,
            "## Preprocessing\n", _preprocessing(classifier),
            "## Training\n", _recipe(config),
            "## Quantitative analyses\n", _quantities(metrics, split),
            "## Ethical considerations\n",
            "model.pt contains weights, class names and settings, but no images and no patients' names. Weights can "
            "reveal information about their training data: handle them according to the data's licence and ethics "
            "approval.\n",
            "## Caveats and recommendations\n",
            _caveats(manifest, metrics, split, synthetic, len(classifier.classes)),
            "## How to load it\n", _loading(classifier),
            "## Versions\n", _versions(environment),
        )
    )  # fmt: skip


def write_card(run_folder: str | os.PathLike[str], metrics: Mapping[str, Any] | None = None) -> Path:
    """Write the model card MODEL_CARD.md of a run, atomically.

    It is made from model.pt, config.yaml, manifest.csv, environment.json and metrics.json. All but model.pt may be
    missing; the card then states what is not recorded.

    Args:
        run_folder: the folder of a run.
        metrics: content of metrics.json for a run that is not finished yet, from
            :func:`.evaluation.write_evaluation`; None reads metrics.json.

    Returns:
        Path of the model card.

    Raises:
        InputError: there is no model.pt, or one of the files is damaged.
    """
    path = Path(run_folder) / "MODEL_CARD.md"
    write_text(path, card(run_folder, metrics))
    return path
