"""A run's model card: what the network is for, what it learnt from, what it is worth, and what is not known of it.

The headings are those of Mitchell et al., "Model Cards for Model Reporting" (FAT* 2019, arXiv:1810.03993); under them
stands what CLAIM (2024) and TRIPOD+AI (2024) ask of a report on medical imaging. Everything is read from the run's own
files. What they do not say is said to be missing.
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
    """A JSON or YAML file's mapping; None if there is no such file."""
    if not path.is_file():
        return None
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            content = json.loads(text)
        else:
            import yaml

            content = yaml.safe_load(text)
    except Exception as error:  # a YAMLError is no ValueError
        raise InputError(f"{path}: cannot be read: {' '.join(str(error).split())}; restore or remove it") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds no table of names and values; restore or remove it")
    return content


def _missing(what: str, file: str) -> str:
    return f"{_MISSING}: {what} would be in {file}, which is not in the run's folder.\n"


def _items(rows: Sequence[tuple[str, object]]) -> str:
    return "".join(f"- {name}: {value}\n" for name, value in rows)


# ---- the sections
def _details(classifier: Classifier, config: Mapping[str, Any] | None, environment: Mapping[str, Any] | None) -> str:
    about = classifier.about
    kernels = None if config is None else config.get("model", {}).get("fused")
    checkpoint = None if config is None else config.get("model", {}).get("checkpoint")
    options = ", ".join(f"{k}={v}" for k, v in classifier.options.items()) or "as named"
    rows: list[tuple[str, object]] = [
        ("Network", f"{classifier.name} ({options}), image classification"),
        ("Parameters", sum(p.numel() for p in classifier.model.parameters())),
        ("Classes, in the order of the outputs", ", ".join(classifier.classes)),
        ("Run", about.get("run", _MISSING)),
        ("Random seed", about.get("seed", _MISSING)),
        ("Epoch kept, counted from 0", about.get("epoch", _MISSING)),
        ("Trained", _MISSING if environment is None else environment.get("time", _MISSING)),
        ("Started from", _MISSING if config is None else place(checkpoint) if checkpoint else "random weights"),
        ("Kernels in training", {True: "fused (se_fused)", False: "plain PyTorch", None: _MISSING}[kernels]),
        ("Licence of the weights", "not stated; that of the training data may bind them"),
    ]
    return _items(rows)


def _use(classifier: Classifier, synthetic: bool) -> str:
    what = "synthetic phantoms of long bones" if synthetic else "radiographs like those it was trained on"
    return (
        f"**{RESEARCH_USE_ONLY}**" + (f" **{SYNTHETIC}**" if synthetic else "") + "\n\n"
        f"- Intended: research on classifying {what} as {', '.join(classifier.classes)}, by people who can judge the "
        "figures below.\n"
        "- Out of scope: diagnosis, triage, screening, second reading or any other decision about a patient; other "
        "body parts, projections, devices or populations than those of the training data; images with several "
        "findings, of which only one class is named.\n"
    )


def _preprocessing(classifier: Classifier) -> str:
    p = classifier.preprocessing
    return (
        f"One grey channel in [0, 1], bone bright, by the file's own depth (DICOM: through its window or LUT); scaled "
        f"so that the longer side has {p.size} pixels (bilinear, antialiased), black around it to a square; then "
        f"(image − {p.mean:.6g}) / {p.std:.6g}. `se_fused.apps.fracture.load_radiograph(path, {p.size})` and "
        "`Classifier.probabilities` do it.\n"
    )


def _grouping(manifest: Manifest) -> str:
    patients = [record.patient for record in manifest.records]
    named = [p for p in patients if p]
    shared = Counter(p for p, _ in {(r.patient, r.split) for r in manifest.records if r.patient and r.split})
    torn = sum(count > 1 for count in shared.values())
    if not named:
        said = "No patients are known, so images of one patient may lie in several splits: the figures may be too good."
    elif all(p.startswith("group-") for p in named):
        said = (
            "No patients were named. The groups that no split parts are clusters of near-duplicate images "
            "(mirrored ones too); a patient whose images look different may still lie in several splits."
        )
    else:
        said = "Splits are by patient."
    if named and len(named) < len(patients):
        said += f" {len(patients) - len(named)} images have no patient."
    if torn:
        said += f" **{torn} of them have images in more than one split**, so the figures are too good."
    return said + "\n"


def _data(manifest: Manifest, classes: Sequence[str], split: str | None) -> str:
    """Counts of all splits, or what is to be said of one."""
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
                ("Seed of splits that the data did not bring", _MISSING if seed is None else seed),
                ("SHA-256 of the manifest (names, labels, patients, splits)", f"`{manifest.digest()}`"),
                ("Manifest that the model's file names", _same(manifest, classifier)),
                ("Who labelled the images and how, consent, ethics approval, dates, age, sex, devices", _MISSING),
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
    return "the same" if same else f"**another one**, `{kept}`: the table above is not of this model"


def _recipe(config: Mapping[str, Any] | None) -> str:
    if config is None:
        return _missing("the recipe", "config.yaml")
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
    drawn = f"{intervals['draws']} draws of {clusters['count']} {clusters['what']}"
    return (
        table(("metric", f"% [{share} interval]"), rows)
        + "\n"
        + table(("metric", f"[{share} interval]"), others)
        + f"\n{values['images']} images; intervals over {drawn}.\n"
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
        return _missing("figures", "metrics.json")
    found = metrics["splits"][split]
    lines = [f"On the {split} split.\n", _figures(found), "### Classes\n", _per_class(found)]
    if (any_fracture := found["metrics"].get("any_fracture")) is not None:
        lines.append(
            f"Any fracture against {any_fracture['negative']}: sensitivity {percent(any_fracture['sensitivity'])} %, "
            f"specificity {percent(any_fracture['specificity'])} %, AUROC {percent(any_fracture['auroc'])} %.\n"
        )
    lines += ["### Parts of the set, and baselines\n", _parts(metrics, found)]
    if (heat := metrics.get("gradcam")) is not None:
        lines.append(
            f"Grad-CAM: the hottest point lies in the fracture's box in {percent(heat['pointing_game'])} % of "
            f"{heat['images']} images; heat without knowledge would in about {percent(heat['box_share'])} %.\n"
        )
    return "\n".join(lines)


def _factors(manifest: Manifest | None) -> str:
    said = "Age, sex, ethnicity, hospital and device are not recorded: how the figures depend on them is unknown.\n"
    if manifest is None:
        return said
    known = [name for name in ("view", "study", "source") if any(getattr(r, name) for r in manifest.records)]
    return f"Known of each image besides its class: {', '.join(known) or 'nothing'}. " + said


def _caveats(
    manifest: Manifest | None, metrics: Mapping[str, Any] | None, split: str | None, synthetic: bool, classes: int
) -> str:
    lines = [f"{SYNTHETIC} Nothing here says how it would do on a patient."] if synthetic else []
    lines.append("The figures are of images split off the same data: on others they are likely to be lower.")
    lines.append("The probabilities are those of one training; another seed gives others.")
    lines.append(f"It always names one of its {classes} classes, for an image of anything.")
    if metrics is not None and split is not None:
        found = metrics["splits"][split]["metrics"]
        few = [name for name, row in found["per_class"].items() if row["images"] < 20]
        if few:
            lines.append(f"Fewer than 20 {split} images: {', '.join(few)}. Their figures are guesses.")
        if split != "test":
            lines.append(f"The figures are of the {split} split, on which the epoch was chosen: they are too good.")
        lost = metrics.get("missing", {}).get(split, [])
        if lost:
            lines.append(f"{len(lost)} images of the {split} split could not be read and are in no figure.")
    if manifest is not None and not any(record.patient for record in manifest.records):
        lines.append("Patients are not known; see Training data.")
    lines.append("Heat maps show what an answer rests on, not where a fracture is.")
    return "".join(f"- {line}\n" for line in lines)


def _loading(classifier: Classifier) -> str:
    return (
        "```python\n"
        "from se_fused.apps.fracture.classifier import Classifier\n"
        "from se_fused.apps.fracture import load_radiograph\n\n"
        'classifier = Classifier.load("model.pt")  # tensors and plain values; no code is run\n'
        f'image = load_radiograph("image.png", {classifier.preprocessing.size})[None]\n'
        "print(dict(zip(classifier.classes, classifier.probabilities(image)[0].tolist())))\n"
        "```\n\n"
        "In this folder: `se-fused fracture predict . images/`, `se-fused fracture export . --output model.onnx`, "
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
    """The text of :func:`write_card`."""
    folder = Path(run_folder)
    classifier = Classifier.load(folder)
    config, environment = _read(folder / "config.yaml"), _read(folder / "environment.json")
    metrics = _read(folder / "metrics.json") if metrics is None else metrics
    path = folder / "manifest.csv"
    manifest = Manifest.load(path) if path.is_file() else None
    splits = (metrics or {}).get("splits") or {}
    if not splits:  # a metrics.json of the training alone
        metrics = None
    split = (metrics or {}).get("split") or next(reversed(splits), None)
    sources = {record.source for record in manifest.records} if manifest else set()
    synthetic = any(map(is_synthetic, (*sources, classifier.about.get("source", ""))))
    if manifest is None or split is None:
        judged = _missing("the images that the figures are of", "manifest.csv" if manifest is None else "metrics.json")
    else:
        judged = _data(manifest, classifier.classes, split) + "\nHow it was kept apart is said under Training data.\n"
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
            "The file holds weights, class names and settings, no image and no patient's name. Weights can give away "
            "something of what they were trained on: treat them as the data's licence and its ethics approval ask.\n",
            "## Caveats and recommendations\n",
            _caveats(manifest, metrics, split, synthetic, len(classifier.classes)),
            "## How to load it\n", _loading(classifier),
            "## Versions\n", _versions(environment),
        )
    )  # fmt: skip


def write_card(run_folder: str | os.PathLike[str], metrics: Mapping[str, Any] | None = None) -> Path:
    """Write a run's MODEL_CARD.md, whole or not at all, from its model.pt, config.yaml, manifest.csv and
    environment.json; all but the first may be missing, and the card then says so.

    Args:
        run_folder: of :mod:`se_fused.apps.fracture.training`.
        metrics: what will be in metrics.json, as :func:`.evaluation.write_evaluation` gives it, for a
            run that is not finished yet; None: metrics.json itself.

    Returns:
        Its path.

    Raises:
        InputError: there is no model.pt, or one of the files is damaged.
    """
    path = Path(run_folder) / "MODEL_CARD.md"
    write_text(path, card(run_folder, metrics))
    return path
