"""Tests of the metrics by hand and against scikit-learn, and of the paper's figures against bounds of averages."""

import json

import numpy as np
import pytest
from support.evaluation import drawn_table, table, tables_from

sk = pytest.importorskip("sklearn.metrics", reason="scikit-learn is in the extra se_fused[train]")
pytest.importorskip("torchmetrics", reason="torchmetrics is in the extra se_fused[train]")

from se_fused._errors import InputError  # noqa: E402
from se_fused.apps.fracture.evaluation import (  # noqa: E402
    accuracy_one_vs_rest,
    confusion,
    metrics,
    paper,
)
from se_fused.apps.fracture.evaluation.metrics import BINS  # noqa: E402

pytestmark = pytest.mark.quick

# torchmetrics counts exactly and divides in float32, with a few roundings.
CLOSE = 1e-6


def test_by_hand():
    labels = [0] * 5 + [1] * 3 + [2] * 2
    said = [0, 0, 0, 1, 2, 1, 1, 0, 2, 2]
    found = metrics(tables_from(said, labels))
    assert found["confusion"] == [[3, 1, 1], [1, 2, 0], [0, 0, 2]]
    assert found["accuracy"] == 0.7
    # One against the rest: in the three two-class problems 3, 2 and 1 of 10 images are wrong.
    assert found["accuracy_one_vs_rest"] == pytest.approx((0.7 + 0.8 + 0.9) / 3)
    rows = found["per_class"]
    precision, recall = (3 / 4, 2 / 3, 2 / 3), (3 / 5, 2 / 3, 1)
    f1 = [2 * p * r / (p + r) for p, r in zip(precision, recall, strict=True)]
    specificity = (4 / 5, 6 / 7, 7 / 8)
    for key, values in (("precision", precision), ("recall", recall), ("f1", f1), ("specificity", specificity)):
        assert [row[key] for row in rows.values()] == pytest.approx(values, abs=CLOSE)
        assert found[f"{key}_macro"] == pytest.approx(np.mean(values), abs=CLOSE)
    assert found["precision_weighted"] == pytest.approx((5 * 3 / 4 + 3 * 2 / 3 + 2 * 2 / 3) / 10, abs=CLOSE)
    assert found["recall_weighted"] == pytest.approx(found["accuracy"], abs=CLOSE)
    assert found["balanced_accuracy"] == found["recall_macro"]
    assert found["any_fracture"]["sensitivity"] == 4 / 5 and found["any_fracture"]["specificity"] == 3 / 5
    assert found["brier"] == pytest.approx(0.6)  # 2 for each wrong one


@pytest.mark.parametrize("k", [2, 3, 6])
@pytest.mark.parametrize("ties", [False, True])
def test_as_sklearn(k, ties):
    predictions = drawn_table(200, k, skill=0.6, seed=k, ties=ties)
    labels, said, scores = predictions.labels, predictions.predicted, predictions.probabilities
    found = metrics(predictions)
    wanted = {
        "accuracy": sk.accuracy_score(labels, said),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, said),
        "cohen_kappa": sk.cohen_kappa_score(labels, said),
        "mcc": sk.matthews_corrcoef(labels, said),
        "log_loss": sk.log_loss(labels, scores),
        "auroc_macro": np.mean([sk.roc_auc_score(labels == c, scores[:, c]) for c in range(k)]),
        "average_precision_macro": np.mean([sk.average_precision_score(labels == c, scores[:, c]) for c in range(k)]),
        "brier": ((scores - np.eye(k)[labels]) ** 2).sum(1).mean(),
    }
    for average in ("macro", "weighted"):
        values = sk.precision_recall_fscore_support(labels, said, average=average, zero_division=0)[:3]
        wanted |= dict(zip((f"precision_{average}", f"recall_{average}", f"f1_{average}"), values, strict=True))
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, abs=2 * CLOSE), name
    assert found["confusion"] == sk.confusion_matrix(labels, said).tolist()


def test_calibration_error_by_bins():
    predictions = drawn_table(300, 3, skill=1.0)
    sure, right = predictions.probabilities.max(1), predictions.predicted == predictions.labels
    expected = 0.0
    for k in range(BINS):
        inside = (sure >= k / BINS) & (sure < (k + 1) / BINS)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - sure[inside].mean())
    assert metrics(predictions)["calibration_error"] == pytest.approx(expected, abs=CLOSE)
    # Certain and always right; certain and right half of the time.
    assert metrics(tables_from([0, 1], [0, 1]))["calibration_error"] == pytest.approx(0, abs=CLOSE)
    assert metrics(tables_from([0, 1], [0, 2]))["calibration_error"] == pytest.approx(0.5, abs=CLOSE)


def test_absent_and_never_predicted_classes_are_named():
    labels, said = [0, 0, 1, 1, 1], [0, 3, 1, 1, 2]
    found = metrics(tables_from(said, labels, k=4))
    assert found["absent"] == ["spiral", "transverse"] and found["never_predicted"] == []
    assert found["recall_macro"] == pytest.approx((1 / 2 + 2 / 3) / 2, abs=CLOSE)
    assert found["f1_macro"] == pytest.approx(sk.f1_score(labels, said, labels=[0, 1], average="macro"), abs=CLOSE)
    row = found["per_class"]["spiral"]
    assert row["images"] == 0 and row["predicted"] == 1
    assert row["recall"] is row["f1"] is row["auroc"] is row["average_precision"] is None
    found = metrics(tables_from([0, 0, 0], [0, 0, 1]))
    assert found["never_predicted"] == ["oblique"] and found["per_class"]["oblique"]["precision"] == 0
    json.dumps(found, allow_nan=False)


def test_one_class_in_the_test_set_has_no_ranking():
    found = metrics(tables_from([1, 1, 0], [1, 1, 1]))
    assert found["auroc_macro"] is None and found["specificity_macro"] is None and found["any_fracture"] is None
    assert found["recall_macro"] == pytest.approx(2 / 3, abs=CLOSE)
    json.dumps(found, allow_nan=False)
    assert metrics(tables_from([1, 1], [1, 1]))["cohen_kappa"] is None


def test_rows_without_a_label_do_not_count():
    known = drawn_table(50, 3)
    more = table([*known.labels, -1, -1], [*known.probabilities, [1, 0, 0], [0, 1, 0]], [*known.patients, "a", "b"])
    assert metrics(more) == metrics(known)
    assert confusion(more).sum() == 50


def test_what_cannot_be_judged_is_refused():
    with pytest.raises(InputError, match="none of the predicted images has a label"):
        metrics(table([-1, -1], [[1, 0], [0, 1]]))
    with pytest.raises(InputError, match="only one class, 'none'"):
        metrics(table([0, 0], [[1.0], [1.0]]))


def matrices(count=400):
    """Even, sparse and skewed confusion matrices."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        size = int(rng.integers(2, 8))
        matrix = rng.integers(0, int(rng.choice([3, 20, 90])), (size, size)) * (rng.random((size, size)) < rng.random())
        if matrix.sum():
            yield matrix


def rows_of(matrix):
    labels, said = np.nonzero(matrix)
    counts = matrix[labels, said]
    return np.repeat(labels, counts), np.repeat(said, counts)


def test_one_vs_rest_accuracy_is_a_function_of_accuracy():
    for matrix in matrices():
        accuracy = np.trace(matrix) / matrix.sum()
        assert accuracy_one_vs_rest(matrix) == pytest.approx(1 - 2 * (1 - accuracy) / len(matrix))
    # One class for all images of six balanced classes: 1/6 is right, but this accuracy is 72 %.
    assert accuracy_one_vs_rest(np.array([[10, 0, 0, 0, 0, 0]] * 6)) == pytest.approx(0.7222, abs=1e-4)


def test_no_confusion_matrix_has_an_f1_above_precision_and_recall():
    """F1, averaged over classes in any way, is at most the larger of precision and recall.

    So two rows of the paper are impossible.
    """
    tried = 0
    for matrix in matrices(80):
        labels, said = rows_of(matrix)
        found = metrics(tables_from(said, labels, k=len(matrix), classes=[f"c{i}" for i in range(len(matrix))]))
        for average in ("macro", "weighted"):
            precision, recall, f1 = (found[f"{key}_{average}"] for key in ("precision", "recall", "f1"))
            assert f1 <= max(precision, recall) + CLOSE
            assert f1 <= (precision + recall) / 2 + CLOSE
            tried += 1
    assert tried > 100
    assert [row.name for row in paper.impossible()] == ["DenseNet", "Proposed SE-ResNet"]


def test_the_papers_table():
    # Table 1 and the abstract of the paper, as printed.
    printed = {
        "ResNet": (90.34, 92.14, 90.7, 90.23),
        "Unet": (43.73, 42.73, 42.67, 75.06),
        "DenseNet": (74, 75.45, 76.56, 88.56),
        "Proposed SE-ResNet": (94.56, 96.78, 97.67, 98.02),
    }
    assert {row.name: (row.precision, row.recall, row.f1, row.accuracy) for row in paper.TABLE} == printed
    assert [round(row.harmonic_mean, 2) for row in paper.TABLE] == [91.23, 43.22, 74.72, 95.66]
    assert [round(paper.classes_implied(row), 1) for row in paper.TABLE] == [1.6, 4.6, 4.3, 3.3]
    said = " ".join(paper.notes())
    assert "97.67 exceeds both its precision 94.56 and its recall 96.78" in said and "95.66" in said
    assert "ResNet 1.6, Unet 4.6" in said and "not comparable" in said
    assert paper.row_of("seresnet50").name == "Proposed SE-ResNet" and paper.row_of("ResNet101").name == "ResNet"
    assert paper.row_of("resnext50_32x4d") is None


def test_possible_figures_are_not_called_impossible():
    fine = paper.Row("x", "x", 90.0, 94.0, 92.0, 91.0)
    assert fine.possible and paper.impossible([fine]) == []
    assert not any("exceeds" in note for note in paper.notes([fine]))
