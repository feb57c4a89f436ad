"""Comparison of several models on one test set: the paper's Table 1 and Figures 2 and 3 for the user's data.

Beyond the paper, it has several training runs of each model, confidence intervals over patients, paired tests,
baselines and speed. The paper's figures are not a target: they are printed beside the user's, marked as figures from
different data, with notes on their errors.
"""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...._atomic_write import write_text
from ....info.provenance import place
from ..manifest import Manifest
from ..predictions import Predictions
from . import paper
from .aggregate import by_patient, by_view
from .bootstrap import DRAWS, clusters, matrices, over_seeds
from .comparison_figures import accuracy_bars, confusion_grid, metric_bars
from .comparison_report import headline, report_text, table_csv, table_markdown
from .localisation import NOTICE
from .metrics import metrics
from .pairs import holm, mcnemar, paired, seed_mean
from .report import baseline_figures
from .runs import Finished, by_model, title
from .speed import SpeedOptions, measure_speed

__all__ = ["compare", "write_comparison"]

Progress = Callable[[str, float], None]


def _parts(tables: Sequence[Predictions]) -> dict[str, dict[str, Any]]:
    """{view or "patients": {"images", "accuracy", "f1_macro"}}, means over the training runs."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for table in tables:
        for view, row in by_view(table).items():
            found.setdefault(view, []).append(row)
        patients, _ = by_patient(table)
        if len(patients):
            found.setdefault("patients", []).append(metrics(patients))
    return {
        name: {
            "images": rows[0]["images"],
            **{key: float(np.mean([row[key] for row in rows])) for key in ("accuracy", "f1_macro")},
        }
        for name, rows in found.items()
    }


def _pairs(groups: Mapping[str, Sequence[Finished]], draws: int, seed: int, progress: Progress) -> list[dict[str, Any]]:
    """Tests of all pairs of models: paired bootstrap of accuracy and F1, McNemar of the ensembles, Holm correction."""
    # Later model minus earlier model: the paper's order ends with the model that it proposes.
    couples = [(second, first) for first, second in itertools.combinations(groups, 2)]
    rows: list[dict[str, Any]] = []
    for i, (first, second) in enumerate(couples):
        progress(f"{first} and {second}", i / len(couples))
        tables = [[run.predictions for run in groups[name]] for name in (first, second)]
        found = paired(tables[0], tables[1], metrics=("accuracy", "f1_macro"), n=draws, seed=seed)
        rows.append({"first": first, "second": second, **found, "mcnemar": mcnemar(*map(seed_mean, tables))})
    for key in ("accuracy", "f1_macro"):
        for row, p in zip(rows, holm([row[key]["p_seeds"] for row in rows]), strict=True):
            row[key]["p_seeds_holm"] = p
    for row, p in zip(rows, holm([row["mcnemar"]["p"] for row in rows]), strict=True):
        row["mcnemar"]["p_holm"] = p
    return rows


def compare(
    runs: Sequence[Finished],
    *,
    draws: int = DRAWS,
    seed: int = 0,
    speed: Mapping[str, Any] | None = None,
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """All results of a comparison as JSON-compatible values.

    Args:
        runs: from :func:`se_fused.apps.fracture.evaluation.runs.load_runs`.
        draws, seed: number and random seed of the bootstrap resamples.
        speed: from :func:`se_fused.apps.fracture.evaluation.speed.measure_speed`.
        progress: called with a description of the current step and the completed share, 0 to 1.

    Returns:
        ``{"notice", "source", "classes", "images", "clusters", "draws", "models": {model: {"title", "seeds", "runs",
        "parameters", "options", "figures": over_seeds(...), "confusion", "parts", "paper"}}, "pairs": [...],
        "baselines": {...}, "speed", "paper_notes", "headline"}``.

    Raises:
        InputError: two runs have the same model and seed, or different test sets.
    """
    groups = by_model(runs)
    first = runs[0]
    models: dict[str, Any] = {}
    for i, (name, group) in enumerate(groups.items()):
        progress(f"evaluating {name}", 0.4 * i / len(groups))
        tables = [run.predictions for run in group]
        row = paper.row_of(group[0].model)
        models[name] = {
            "title": title(group[0].model) + name.removeprefix(group[0].model),
            "seeds": [run.seed for run in group],
            "runs": [place(run.folder) for run in group],
            "parameters": sum(p.numel() for p in group[0].classifier.model.parameters()),
            "options": dict(group[0].classifier.options),
            "figures": over_seeds(tables, draws, seed),
            "confusion": matrices(tables).tolist(),
            "parts": _parts(tables),
            "paper": None
            if row is None
            else {**row.__dict__, "harmonic_mean": row.harmonic_mean, "possible": row.possible},
        }
    pairs = _pairs(groups, draws, seed, lambda what, share: progress(what, 0.4 + 0.3 * share))
    progress("baselines", 0.7)
    groups_ = clusters(first.predictions)
    content = {
        "notice": NOTICE,
        "source": ", ".join(sorted({r.source for r in first.manifest.records if r.source})),
        "classes": list(first.predictions.classes),
        "images": len(first.predictions),
        "clusters": {"what": groups_.what, "count": groups_.count},
        "draws": draws,
        "models": models,
        "pairs": pairs,
        "baselines": baseline_figures(
            _judged(first.manifest, first.predictions), "test", lambda what, share: progress(what, 0.7 + 0.3 * share)
        ),
        "speed": speed,
        "paper_notes": paper.notes(),
    }
    content["headline"] = headline(content)
    return content


def _judged(manifest: Manifest, predictions: Predictions) -> Manifest:
    """Remove the test images without a prediction, so that the baselines are evaluated on the same images."""
    there = set(predictions.paths)
    return Manifest(tuple(r for r in manifest.records if r.split != "test" or str(r.path) in there))


def write_comparison(
    runs: Sequence[Finished],
    output: Path,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    speed: SpeedOptions | None,
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Compare runs; writes table1.md, table1.csv, figure2.png, figure3.png, confusion.png, report.md, results.json.

    Args:
        runs: from :func:`se_fused.apps.fracture.evaluation.runs.load_runs`.
        output: output folder; created if missing.
        draws, seed: number and random seed of the bootstrap resamples.
        speed: how to measure the speed, or None not to measure it.
        progress: called with a description of the current step and the completed share, 0 to 1.

    Returns:
        The result of :func:`compare`, as in results.json, which is written last.
    """
    output.mkdir(parents=True, exist_ok=True)
    measured = None
    if speed is not None:
        classifiers = {name: group[0].classifier for name, group in by_model(runs).items()}
        measured = measure_speed(classifiers, speed, lambda what, share: progress(what, share / 2))
    content = compare(
        runs, draws=draws, seed=seed, speed=measured, progress=lambda what, share: progress(what, 0.5 + 0.45 * share)
    )
    progress("drawing", 0.95)
    write_text(output / "table1.md", table_markdown(content))
    write_text(output / "table1.csv", table_csv(content))
    metric_bars(content, output / "figure2.png")
    accuracy_bars(content, output / "figure3.png")
    confusion_grid(content, output / "confusion.png")
    write_text(output / "report.md", report_text(content))
    write_text(output / "results.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
    return content
