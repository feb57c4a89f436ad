"""Report of a comparison: Table 1 as Markdown and CSV, the summary sentence, and report.md."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from ....bench.measure.timing import ratio
from . import paper
from .baselines import TITLES
from .report import percent, table

__all__ = ["headline", "report_text", "table_csv", "table_markdown"]

COLUMNS = {"precision_macro": "Precision", "recall_macro": "Recall", "f1_macro": "F1-Score", "accuracy": "Accuracy"}
"""{metric: column of the paper's Table 1}."""
_PAPER = {"precision_macro": "precision", "recall_macro": "recall", "f1_macro": "f1", "accuracy": "accuracy"}
_MORE = {
    "accuracy": "accuracy", "accuracy_one_vs_rest": "accuracy, one-vs-rest",
    "balanced_accuracy": "balanced accuracy", "precision_weighted": "precision, weighted",
    "recall_weighted": "recall, weighted", "f1_weighted": "F1, weighted", "specificity_macro": "specificity",
    "auroc_macro": "AUROC", "average_precision_macro": "average precision", "calibration_error": "calibration error",
}  # fmt: skip
DIFFERENT = "different data, not comparable"


def mean_sd(row: Mapping[str, Any] | None, interval: bool = True) -> str:
    """ "84.00 ± 1.20 [81.10, 87.00]" in percent; without ± for a single training run."""
    if row is None:
        return "–"
    spread = "" if row["sd"] is None else f" ± {100 * row['sd']:.2f}"
    return percent(row["mean"]) + spread + (percent(0, row["interval"])[4:] if interval and row["interval"] else "")


def points(row: Mapping[str, Any], key: str = "interval") -> str:
    """A difference in percentage points with its confidence interval."""
    low, high = row[key] or (float("nan"), float("nan"))
    return f"{100 * row['difference']:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"


def p_value(p: float) -> str:
    """A p value with three decimals, or "< 0.001"."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _seeds(count: int) -> str:
    return f"{count} training run{'s' if count > 1 else ''}"


def table_markdown(content: Mapping[str, Any]) -> str:
    """Table 1 as Markdown, in percent; below each model the paper's figures for it."""
    rows: list[Sequence[object]] = []
    for model in content["models"].values():
        figures = model["figures"]
        rows.append(
            (f"**{model['title']}**, {_seeds(len(model['seeds']))}", *(mean_sd(figures.get(k)) for k in COLUMNS))
        )
        if (theirs := model["paper"]) is not None:
            mark = "" if theirs["possible"] else " †"
            name = f"*the paper's {theirs['name']}: {DIFFERENT}*"
            values = (f"*{theirs[_PAPER[k]]:.2f}{mark if k == 'f1_macro' else ''}*" for k in COLUMNS)
            rows.append((name, *values))
    for name, row in content["baselines"].items():
        if "why" not in row:
            rows.append((TITLES[name], *(percent(row[k]) for k in COLUMNS)))
    where = (
        f"{content['images']} images of the test split, {content['clusters']['count']} {content['clusters']['what']}"
    )
    shown = [model["paper"]["name"] for model in content["models"].values() if model["paper"]]
    wrong = [row for row in paper.impossible() if row.name in shown]
    notes = "".join(
        f"\n† {row.name}: an F1 of {row.f1:.2f} above both its precision {row.precision:.2f} and its recall "
        f"{row.recall:.2f} cannot be an average of F1 scores; their harmonic mean is {row.harmonic_mean:.2f}.\n"
        for row in wrong
    )
    return (
        f"**Table 1.** Comparison of metrics, percent. {where}. Precision, recall and F1 are means over classes "
        f"(macro); accuracy is multi-class. Mean ± standard deviation over training runs [95 % confidence interval "
        f"over {content['clusters']['what']}, {content['draws']} bootstrap resamples].\n\n"
        + table(("Classification approach", *COLUMNS.values()), rows)
        + notes
    )


def table_csv(content: Mapping[str, Any]) -> str:
    """Table 1 as CSV, in percent with two decimals: mean, sd, low, high of each metric, and the paper's figures."""
    out = io.StringIO()
    made = csv.writer(out, lineterminator="\n")
    names = [name.lower().replace("-", "_") for name in COLUMNS.values()]
    parts = ("", "_sd", "_low", "_high")
    made.writerow(
        ["model", "trainings", *(f"{n}{p}" for n in names for p in parts), *(f"paper_{n}" for n in names), "paper_note"]
    )
    for name, model in content["models"].items():
        row: list[str] = [name, str(len(model["seeds"]))]
        for key in COLUMNS:
            one = model["figures"].get(key)
            limits = (one and one["interval"]) or (None, None)
            values = (None,) * 4 if one is None else (one["mean"], one["sd"], *limits)
            row += ["" if value is None else f"{100 * value:.2f}" for value in values]
        theirs = model["paper"]
        row += [f"{theirs[_PAPER[key]]:.2f}" if theirs else "" for key in COLUMNS]
        wrong = "" if theirs is None or theirs["possible"] else "; its F1 exceeds its precision and its recall"
        made.writerow([*row, f"{DIFFERENT}{wrong}" if theirs else ""])
    for name, found in content["baselines"].items():
        if "why" not in found:
            cells = [cell for key in COLUMNS for cell in (f"{100 * found[key]:.2f}", "", "", "")]
            made.writerow([TITLES[name], "", *cells, *[""] * (len(COLUMNS) + 1)])
    return out.getvalue()


# ---- SE-ResNet against ResNet
def _se_pair(models: Mapping[str, Any]) -> tuple[str, str] | None:
    """Names of an SE-ResNet and the ResNet of the same depth, if both are among the models."""
    for name in models:
        plain = name.removeprefix("se")
        if name.startswith("seresnet") and plain in models:
            return name, plain
    return None


def _speed_sentence(speed: Mapping[str, Any], mode: str, pair: tuple[str, str], names: tuple[str, str]) -> str:
    """Sentence on the speed of SE-ResNet relative to ResNet, with fused kernels and without.

    The ratios compare times of the same measurement rounds.
    """
    what = {"infer": "inference", "train": "training"}[mode]
    rows = [speed["modes"][mode][model] for model in pair]
    if any(row["differs"] for row in rows):
        return f"Speed of {what} was not measured because the results differ."
    parts = []
    for way, how in (("fused", "with fused kernels"), ("plain", "in plain PyTorch")):
        ours, base = (row[way] for row in rows)
        share = ratio(base["rounds"], ours["rounds"])
        parts.append(
            f"{how} {ours['images_per_second']:.1f} images/s against {base['images_per_second']:.1f}, "
            f"{share.median:.2f} times the speed [{share.q1:.2f}, {share.q3:.2f}]"
        )
    return f"In {what} {names[0]} against {names[1]}: {'; '.join(parts)}."


def headline(content: Mapping[str, Any]) -> str:
    """Summary of the comparison of SE-ResNet with ResNet: difference in accuracy, its significance, and speed."""
    models = content["models"]
    pair = _se_pair(models)
    if pair is None:
        return "The models do not include both an SE-ResNet and the ResNet of the same depth."
    se, plain = pair
    row = next(p for p in content["pairs"] if {p["first"], p["second"]} == {se, plain})
    sign = 1.0 if row["first"] == se else -1.0
    accuracy = row["accuracy"]
    low, high = sorted(sign * x for x in accuracy["interval_seeds"])
    difference, p = sign * accuracy["difference"], accuracy["p_seeds"]
    verdict = "the difference is not significant on this test set"
    if p < 0.05:
        verdict = f"{models[se if difference > 0 else plain]['title']} is more accurate on this test set"
    names = models[se]["title"], models[plain]["title"]
    fewest = min(len(models[name]["seeds"]) for name in pair)
    said = [
        f"{names[0]} against {names[1]}: accuracy {mean_sd(models[se]['figures']['accuracy'], False)} % against "
        f"{mean_sd(models[plain]['figures']['accuracy'], False)} % over {_seeds(fewest)} each, a difference of "
        f"{100 * difference:+.2f} points [{100 * low:+.2f}, {100 * high:+.2f}] over {content['clusters']['what']} and "
        f"training runs, p {'' if p < 0.001 else '= '}{p_value(p)}: {verdict}."
    ]
    if fewest < 3:
        said.append("With fewer than three training runs of each, the variation between runs is unknown.")
    speed = content["speed"]
    if speed is not None:
        for mode in ("infer", "train"):
            said.append(_speed_sentence(speed, mode, pair, names))
    return " ".join(said)


# ---- the report
def _more_table(content: Mapping[str, Any]) -> str:
    rows = [
        (model["title"], *(mean_sd(model["figures"].get(key), False) for key in _MORE))
        for model in content["models"].values()
    ]
    return table(("", *_MORE.values()), rows)


def _pair_table(content: Mapping[str, Any]) -> str:
    models = content["models"]
    rows = []
    for row in content["pairs"]:
        names = f"{models[row['first']]['title']} − {models[row['second']]['title']}"
        accuracy, f1, exact = row["accuracy"], row["f1_macro"], row["mcnemar"]
        rows.append(
            (
                names,
                points(accuracy),
                points(accuracy, "interval_seeds"),
                f"{p_value(accuracy['p_seeds'])} ({p_value(accuracy['p_seeds_holm'])})",
                points(f1, "interval_seeds"),
                f"{p_value(f1['p_seeds'])} ({p_value(f1['p_seeds_holm'])})",
                f"{exact['first_only']} / {exact['second_only']}",
                f"{p_value(exact['p'])} ({p_value(exact['p_holm'])})",
            )
        )
    what = content["clusters"]["what"]
    return table(
        (
            "pair", f"Δ accuracy, points [95 %, {what}]", f"[95 %, {what} and training runs]", "p (Holm)",
            "Δ F1 macro [95 %, both]", "p (Holm)", "correct: first only / second only", "McNemar p (Holm)",
        ),
        rows,
    )  # fmt: skip


def _part_table(content: Mapping[str, Any]) -> str:
    parts = list(dict.fromkeys(name for model in content["models"].values() for name in model["parts"]))
    if not parts:
        return ""
    rows = []
    for model in content["models"].values():
        cells = (model["parts"].get(name) for name in parts)
        rows.append(
            (
                model["title"],
                *("–" if c is None else f"{percent(c['accuracy'])} / {percent(c['f1_macro'])}" for c in cells),
            )
        )
    first = next(iter(content["models"].values()))["parts"]
    heads = [f"{name} ({first[name]['images']})" if name in first else name for name in parts]
    return table(("accuracy / F1 macro", *heads), rows)


def _speed_table(content: Mapping[str, Any], mode: str) -> str:
    speed, rows = content["speed"], []
    for name, row in speed["modes"][mode].items():
        model = content["models"][name]
        size = f"{model['parameters'] / 1e6:.2f}"
        if row["differs"]:
            rows.append((model["title"], size, f"not timed: {row['differs']}", "", "", "", ""))
            continue
        quotient = row["speedup"]
        rows.append(
            (
                model["title"],
                size,
                f"{row['fused']['images_per_second']:.1f}",
                f"{row['plain']['images_per_second']:.1f}",
                f"{quotient['median']:.2f} [{quotient['q1']:.2f}, {quotient['q3']:.2f}]",
                f"{row['fused']['peak_bytes'] / 1e6:.1f}",
                f"{row['plain']['peak_bytes'] / 1e6:.1f}",
            )
        )
    return table(
        (
            "", "M parameters", "images/s, fused kernels", "images/s, plain PyTorch",
            "speed-up of fused [quartiles]", "peak MB, fused", "peak MB, plain",
        ),
        rows,
    )  # fmt: skip


def report_text(content: Mapping[str, Any]) -> str:
    """Text of report.md."""
    lines = ["# Comparison of models\n", f"**{content['notice']}.**\n"]
    if content["source"]:
        lines.append(f"Data: {content['source']}.\n")
    lines += [f"{content['headline']}\n", table_markdown(content)]
    lines += ["![Figure 2](figure2.png)\n", "![Figure 3](figure3.png)\n"]
    lines += ["### Notes on the paper's figures\n", *(f"- {note}" for note in content["paper_notes"]), ""]
    lines += ["## More metrics, percent\n", _more_table(content)]
    lines.append(
        "Accuracy is multi-class; one-vs-rest accuracy is the paper's equation 12, 1 − 2(1 − accuracy)/K, with "
        f"K = {len(content['classes'])} classes here.\n"
    )
    lines += [f"- {TITLES[name]}: {row['why']}" for name, row in content["baselines"].items() if "why" in row]
    lines += ["![confusion matrices](confusion.png)\n"]
    if content["pairs"]:
        lines += ["## Pairwise tests\n", _pair_table(content)]
        lines.append(
            "Paired bootstrap: the first interval resamples patients, the second patients and training runs. p is "
            "two-sided; in brackets, it is corrected by Holm over all pairs. McNemar's exact test uses the mean "
            "probabilities of the training runs. It assumes independent images, but images of one patient are not.\n"
        )
    if parts := _part_table(content):
        lines += ["## By view and by patient (mean over the patient's images), percent\n", parts]
    if content["speed"] is not None:
        speed = content["speed"]
        lines.append("## Speed and memory\n")
        lines.append(
            f"{speed['device']}, {speed['threads']} threads, batches of {speed['batch']}, {speed['dtype']}. All "
            "models, with fused kernels and in plain PyTorch, are measured in turn after their results were compared "
            "with float64. Training is a forward and a backward pass. Speed-ups compare times of the same rounds; "
            "above 1 the fused kernels are faster.\n"
        )
        for mode, what in (("infer", "Inference"), ("train", "Training")):
            lines += [f"### {what}\n", _speed_table(content, mode)]
    lines.append("## Runs\n")
    rows = [
        (model["title"], seed, folder, percent(value))
        for model in content["models"].values()
        for seed, folder, value in zip(
            model["seeds"], model["runs"], model["figures"]["accuracy"]["values"], strict=True
        )
    ]
    lines += [table(("model", "seed", "run", "accuracy"), rows, left=3), f"{content['notice']}.\n"]
    return "\n".join(lines)
