"""The paper's Table 1 as data, and computed notes on its errors.

Abirami, Jansi Rani, Regha, Anitha Vairamany and Sathiyapriya, "Deep Learning-Based Long Bone Fracture Classification
Using Squeeze-and-Excitation ResNet" (received April, accepted May 2024), section 5. The paper states neither the data
set nor its size, classes, split or training, so its figures cannot be reproduced and are not a target.
"""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["SOURCE", "TABLE", "Row", "impossible", "notes", "row_of"]

SOURCE = (
    "Abirami et al. 2024, Deep Learning-Based Long Bone Fracture Classification Using Squeeze-and-Excitation ResNet, "
    "Table 1"
)


@dataclass(frozen=True)
class Row:
    """Figures of one network in the paper's Table 1, in percent as printed.

    Attributes:
        name: name in the paper.
        model: name of the corresponding models of se_fused, without their depth.
        precision, recall, f1, accuracy: in percent.
    """

    name: str
    model: str
    precision: float
    recall: float
    f1: float
    accuracy: float

    @property
    def harmonic_mean(self) -> float:
        """Harmonic mean (the paper's equation 11) of the stated precision and recall, in percent."""
        return 2 * self.precision * self.recall / (self.precision + self.recall)

    @property
    def possible(self) -> bool:
        """Whether the stated F1 can be any average of F1 scores over classes, folds or runs.

        An F1 score is a harmonic mean, so it is at most the arithmetic mean of its precision and recall. With the same
        weights for all three, the averaged F1 is at most the mean of averaged precision and recall, and so at most the
        larger of the two.
        """
        return self.f1 <= max(self.precision, self.recall)


TABLE = (
    Row("ResNet", "resnet", 90.34, 92.14, 90.7, 90.23),
    Row("Unet", "unet", 43.73, 42.73, 42.67, 75.06),
    Row("DenseNet", "densenet", 74.0, 75.45, 76.56, 88.56),
    Row("Proposed SE-ResNet", "seresnet", 94.56, 96.78, 97.67, 98.02),
)


def row_of(model: str) -> Row | None:
    """The paper's figures for the type of a model of se_fused; None for types that are not in the paper."""
    kind = model.lower().rstrip("0123456789")
    return next((row for row in TABLE if row.model == kind), None)


def impossible(table: Sequence[Row] = TABLE) -> list[Row]:
    """The rows whose F1 exceeds both precision and recall."""
    return [row for row in table if not row.possible]


def classes_implied(row: Row) -> float:
    """Number of classes K, assuming that the stated accuracy is one-vs-rest and the stated recall is the accuracy.

    From ``accuracy_one_vs_rest = 1 - 2 (1 - accuracy) / K``.
    """
    return 2 * (100 - row.recall) / (100 - row.accuracy)


def notes(table: Sequence[Row] = TABLE) -> list[str]:
    """Notes on the paper's figures for the report, each of a few sentences."""
    said = [
        "The paper's figures are from different data and not comparable with these results. The paper states no data "
        "set, number of images, classes, patient split, image size, depth, training recipe or seeds, and reports a "
        "single run without confidence intervals. Its figures are not a target here."
    ]
    said += [
        f"{row.name}: the paper's F1 {row.f1:.2f} exceeds both its precision {row.precision:.2f} and its recall "
        f"{row.recall:.2f}. This is impossible for any average over classes, folds or runs that is the same for all "
        f"three; the harmonic mean (its equation 11) of that precision and recall is {row.harmonic_mean:.2f}."
        for row in impossible(table)
    ]
    implied = ", ".join(f"{row.name} {classes_implied(row):.1f}" for row in table)
    said.append(
        "The paper's accuracy (equation 12) may be one-vs-rest accuracy, which is too favourable: with K classes it is "
        "1 − 2(1 − accuracy)/K. If its recall were the multi-class accuracy, K would have these values, which should "
        f"be the same number: {implied}. This report gives both accuracies under separate names."
    )
    said.append(
        "The paper's text calls F1 a weighted average, its equation 11 a harmonic mean. F1 in this report is the "
        "harmonic mean of each class, averaged over the classes."
    )
    return said
