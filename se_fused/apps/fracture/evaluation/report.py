"""Evaluation of one model: metrics as JSON, a report in Markdown, and figures."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ...._atomic_write import write_text
from ...._errors import InputError
from ..classifier import Classifier
from ..manifest import Manifest
from ..predictions import Predictions
from . import figures
from .aggregate import Cracks, brief, by_view, cracks_of, groups, strata
from .baselines import TITLES, logistic, majority
from .bootstrap import DRAWS, intervals
from .localisation import NOTICE, localisation, overlay_sheet, summary
from .metrics import BINS, labelled, metrics
from .predicting import kept_predictions

__all__ = ["evaluate", "evaluation", "percent", "write_evaluation", "write_metrics"]

Progress = Callable[[str, float], None]

NAMES = {
    "accuracy": "Accuracy (multi-class)",
    "accuracy_one_vs_rest": "Accuracy, one-vs-rest (the paper's equation 12)",
    "balanced_accuracy": "Balanced accuracy",
    "precision_macro": "Precision, macro",
    "recall_macro": "Recall (sensitivity), macro",
    "f1_macro": "F1, macro",
    "specificity_macro": "Specificity, macro",
    "precision_weighted": "Precision, weighted",
    "recall_weighted": "Recall, weighted",
    "f1_weighted": "F1, weighted",
    "auroc_macro": "AUROC, macro, one-vs-rest",
    "average_precision_macro": "Average precision, macro",
    "calibration_error": f"Expected calibration error ({BINS} bins)",
}
"""{metric: name in tables} of the metrics in percent, in the order of the tables."""
PLAIN_NAMES = {
    "brier": "Brier score (0 to 2)",
    "log_loss": "Log loss (nats)",
    "cohen_kappa": "Cohen's kappa",
    "mcc": "Matthews correlation",
}


def percent(value: float | None, interval: Sequence[float] | None = None) -> str:
    """A share in percent with two decimals, as in the paper, followed by its interval if given."""
    if value is None:
        return "–"
    return f"{100 * value:.2f}" + (f" [{100 * interval[0]:.2f}, {100 * interval[1]:.2f}]" if interval else "")


def _plain(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def table(heads: Sequence[str], rows: Sequence[Sequence[object]], left: int = 1) -> str:
    """A Markdown table; the first `left` columns are left-aligned."""
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in (heads, *rows)]
    rule = ["---" if i < left else "---:" for i in range(len(heads))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (cells[0], rule, *cells[1:])) + "\n"


def evaluate(
    predictions: Predictions, draws: int = DRAWS, seed: int = 0, cracks: Cracks | None = None
) -> dict[str, Any]:
    """All results for a table of predictions as JSON-compatible values.

    Args:
        predictions: rows without a label are ignored.
        draws: number of bootstrap resamples of the patients, for the confidence intervals.
        seed: random seed of the resamples.
        cracks: from :func:`se_fused.apps.fracture.evaluation.read_cracks`.

    Returns:
        ``{"metrics": metrics(...), "intervals": intervals(...), "views": {view: main metrics}, "groups": {"patients":
        ..., "studies": ...}, "strata": ..., "skipped": [[path, reason], ...]}``.

    Raises:
        InputError: no row has a label, or there is only one class.
    """
    return {
        "metrics": metrics(predictions),
        "intervals": intervals(predictions, draws, seed),
        "views": by_view(predictions),
        "groups": groups(predictions),
        "strata": strata(predictions, cracks or {}),
        "skipped": [list(one) for one in predictions.skipped],
    }


def _sources(manifest: Manifest) -> str:
    return ", ".join(sorted({record.source for record in manifest.records if record.source}))


def baseline_figures(manifest: Manifest, split: str, progress: Progress) -> dict[str, Any]:
    """Main metrics of the baselines "majority" and "logistic" on a split; {"why": reason} if one cannot be fitted."""
    tables: dict[str, Callable[[], Predictions]] = {
        "majority": lambda: majority(manifest, split),
        "logistic": lambda: logistic(manifest, split, progress),
    }
    found: dict[str, Any] = {}
    for name, make in tables.items():
        try:
            found[name] = brief(make())
        except InputError as error:
            found[name] = {"why": str(error)}
    return found


def _draw(predictions: Predictions, found: Mapping[str, Any], folder: Path, split: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    figures.confusion_matrix(predictions, folder / "confusion_matrix.png", f"Confusion matrix, {split}")
    figures.roc(predictions, folder / "roc.png")
    figures.precision_recall(predictions, folder / "precision_recall.png")
    figures.reliability(predictions, folder / "reliability.png", f"Reliability, {split}")
    figures.class_bars(predictions, folder / "classes.png", found["intervals"]["per_class"])


def evaluation(
    classifier: Classifier,
    manifest: Manifest,
    tables: Mapping[str, Predictions],
    output: str | os.PathLike[str],
    *,
    cracks: Cracks | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Evaluate predictions and write ``report.md`` and ``plots/`` into a folder.

    Args:
        classifier: the classifier of the predictions; it computes the heat maps on its device.
        manifest: the images, including the split train, on which the baselines are fitted.
        tables: {split: predictions}; figures, baselines and heat maps are made for the last split.
        output: output folder; created if missing.
        cracks: from :func:`se_fused.apps.fracture.evaluation.cracks_of`.
        draws, seed: number and random seed of the bootstrap resamples.
        progress: called with a description of the current step and the completed share, 0 to 1.

    Returns:
        The content for metrics.json: ``{"notice", "about", "classes", "source", "split" (name of the last split),
        "splits": {split: evaluate(...)}, "missing": {split: [path, ...]} (images of the manifest without a prediction),
        "baselines": {"majority", "logistic"}, "gradcam": localisation(...) or None}``.
    """
    output, cracks = Path(output), cracks or {}
    split, predictions = list(tables.items())[-1]
    predictions = labelled(predictions)
    found = {}
    for i, (name, table_) in enumerate(tables.items()):
        progress(f"evaluating {name}", 0.2 * i / len(tables))
        found[name] = evaluate(table_, draws, seed, cracks)
    missing = {
        name: sorted({str(r.path) for r in manifest.where(name).records} - set(table_.paths))
        for name, table_ in tables.items()
    }
    progress("drawing", 0.3)
    _draw(predictions, found[split], output / "plots", split)
    baselines = baseline_figures(manifest, split, lambda what, share: progress(what, 0.4 + 0.3 * share))
    progress("heat maps", 0.7)
    gradcam, source = localisation(classifier, predictions, cracks), _sources(manifest)
    overlay_sheet(classifier, predictions, output / "plots" / "gradcam.png", cracks, remark=source)
    content = {
        "notice": NOTICE,
        "about": dict(classifier.about),
        "classes": list(classifier.classes),
        "source": source,
        "split": split,
        "splits": found,
        "missing": missing,
        "baselines": baselines,
        "gradcam": gradcam,
    }
    write_text(output / "report.md", _report(content, classifier))
    progress("done", 1.0)
    return content


def write_evaluation(
    run_folder: str | os.PathLike[str],
    device: torch.device | str = "cpu",
    *,
    draws: int = DRAWS,
    seed: int = 0,
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Evaluate a run by the predictions in its folder; writes its ``report.md`` and ``plots/``.

    Missing predictions are computed. The caller writes metrics.json (:func:`write_metrics`), because its presence marks
    a run as finished.

    Args:
        run_folder: a run's folder with model.pt and manifest.csv.
        device: device for heat maps and missing predictions.
        draws, seed: number and random seed of the bootstrap resamples.
        progress: called with a description of the current step and the completed share, 0 to 1.

    Returns:
        As in :func:`evaluation`.

    Raises:
        InputError: the folder is not a run, or neither test nor valid has images.
    """
    folder = Path(run_folder)
    classifier = Classifier.load(folder, device)
    manifest = Manifest.load(folder / "manifest.csv")
    tables: dict[str, Predictions] = {}
    for split in ("valid", "test"):
        found = kept_predictions(folder, split, classifier, manifest, progress)
        if found is not None:
            tables[split] = found
    if not tables:
        raise InputError(f"{folder / 'manifest.csv'}: has no images of test or valid; give a manifest with --data")
    cracks = cracks_of(manifest, folder / "manifest.csv")
    return evaluation(classifier, manifest, tables, folder, cracks=cracks, draws=draws, seed=seed, progress=progress)


def write_metrics(folder: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Add results to a folder's metrics.json and keep its other entries. The file is written atomically.

    Raises:
        InputError: the existing metrics.json cannot be read.
    """
    path = Path(folder) / "metrics.json"
    kept: dict[str, Any] = {}
    if path.is_file():
        try:
            kept = dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{path}: cannot be read: {error}; remove it and evaluate again") from None
    write_text(path, json.dumps({**kept, **content}, indent=1, allow_nan=False) + "\n")


# ---- the report
def _main_table(found: Mapping[str, Any]) -> str:
    values, limits = found["metrics"], found["intervals"]["figures"]
    rows = [(NAMES[k], percent(values[k], limits[k])) for k in NAMES]
    for name, title in PLAIN_NAMES.items():
        limit = f" [{limits[name][0]:.4f}, {limits[name][1]:.4f}]" if limits[name] else ""
        rows.append((title, _plain(values[name]) + limit))
    return table(("metric", "% [95 % confidence interval]"), rows)


def _class_table(found: Mapping[str, Any]) -> str:
    keys = ("precision", "recall", "f1", "specificity", "auroc", "average_precision")
    limits = found["intervals"]["per_class"]
    rows = [
        (
            name,
            row["images"],
            row["predicted"],
            *(percent(row[k], limits[name][k] if k == "f1" else None) for k in keys),
        )
        for name, row in found["metrics"]["per_class"].items()
    ]
    return table(
        ("class", "images", "predicted", "precision", "recall", "F1 [95 %]", "specificity", "AUROC", "avg. precision"),
        rows,
    )


def _parts_table(rows: Mapping[str, Mapping[str, Any]], first: str, count: str = "images") -> str:
    keys = ("accuracy", "balanced_accuracy", "precision_macro", "recall_macro", "f1_macro", "auroc_macro")
    return table(
        (first, count, "accuracy", "balanced acc.", "precision", "recall", "F1", "AUROC"),
        [(name, row.get("count", row["images"]), *(percent(row[k]) for k in keys)) for name, row in rows.items()],
    )


def _remarks(found: Mapping[str, Any], missing: Sequence[str]) -> list[str]:
    values, clusters = found["metrics"], found["intervals"]["clusters"]
    said = [
        f"Intervals: {found['intervals']['draws']} bootstrap resamples of {clusters['count']} {clusters['what']}, "
        "percentiles." + ("" if clusters["what"] == "patients" else " Patients are unknown, so they are too narrow.")
    ]
    if values["absent"]:
        said.append(
            f"Classes without images, not included in the averages over classes: {', '.join(values['absent'])}."
        )
    if values["never_predicted"]:
        said.append(f"Classes never predicted, precision counted as 0: {', '.join(values['never_predicted'])}.")
    lost = missing or [path for path, _ in found["skipped"]]
    if lost:
        names = ", ".join(Path(path).name for path in lost[:5])
        said.append(f"{len(lost)} images could not be read and were not evaluated: {names}{', …' * (len(lost) > 5)}")
    if (fracture := values["any_fracture"]) is not None:
        said.append(
            f"Any fracture against {fracture['negative']}: sensitivity {percent(fracture['sensitivity'])} %, "
            f"specificity {percent(fracture['specificity'])} %, AUROC {percent(fracture['auroc'])} %."
        )
    return said


def _baseline_table(baselines: Mapping[str, Any], mine: Mapping[str, Any]) -> str:
    rows = {TITLES[name]: row for name, row in baselines.items() if "why" not in row}
    notes = "".join(f"\n{TITLES[name]}: {row['why']}\n" for name, row in baselines.items() if "why" in row)
    return _parts_table({"this model": mine, **rows}, "") + notes


def _report(content: Mapping[str, Any], classifier: Classifier) -> str:
    split = content["split"]
    found, about = content["splits"][split], content["about"]
    lines = [f"# {classifier.name}: {split} set\n", f"**{NOTICE}.**\n"]
    if content["source"]:
        lines.append(f"Data: {content['source']}.\n")
    facts = [f"{key} {about[key]}" for key in ("run", "seed", "epoch", "parameters") if key in about]
    size = classifier.preprocessing.size
    patients = f", {found['metrics']['patients']} patients" if found["metrics"]["patients"] else ""
    lines.append(
        f"{found['metrics']['images']} images{patients}, {len(content['classes'])} classes, {size}×{size} pixels; "
        f"{', '.join(facts)}.\n"
    )
    lines += [_main_table(found), *(f"- {one}" for one in _remarks(found, content["missing"][split])), ""]
    lines += ["## Classes\n", _class_table(found), "![classes](plots/classes.png)\n"]
    lines += ["![confusion matrix](plots/confusion_matrix.png)\n", "## Baselines\n"]
    lines.append(_baseline_table(content["baselines"], found["metrics"]))
    if found["views"]:
        lines += ["## Views\n", _parts_table(found["views"], "view")]
    if found["groups"]:
        lines += ["## Patients and studies (mean probabilities of their images)\n"]
        lines.append(_parts_table(found["groups"], "by", "number"))
        left = {k: row["conflicting"] for k, row in found["groups"].items() if row["conflicting"]}
        lines += [f"{n} {name} have images of several classes and are left out.\n" for name, n in left.items()]
    if found["strata"]:
        rows = [
            (k, r["images"], percent(r["right"]), percent(r["taken_for_first_class"]))
            for k, r in found["strata"].items()
        ]
        first = next(iter(found["strata"].values()))["first_class"]
        lines += ["## Fractures by visibility, percent\n"]
        lines.append(table(("fractures", "images", "correct", f"predicted as {first}"), rows))
    others = {name: one["metrics"] for name, one in content["splits"].items() if name != split}
    if others:
        lines += ["## Other splits\n", _parts_table({**others, split: found["metrics"]}, "split")]
    lines += ["## Ranking and calibration\n", "![ROC](plots/roc.png)\n"]
    lines += ["![precision and recall](plots/precision_recall.png)\n", "![reliability](plots/reliability.png)\n"]
    lines += ["## Heat maps\n", *([summary(content["gradcam"]) + "\n"] if content["gradcam"] else [])]
    lines += ["![Grad-CAM](plots/gradcam.png)\n", f"{NOTICE}.\n"]
    return "\n".join(lines)
