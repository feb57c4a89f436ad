"""The paper's Table 1 as data, and what is wrong with it, computed.

Abirami, Jansi Rani, Regha, Anitha Vairamany and Sathiyapriya, "Deep Learning-Based Long Bone Fracture Classification
Using Squeeze-and-Excitation ResNet" (received April, accepted May 2024), section 5. Neither the data set nor its size,
classes, split, nor anything of the training is stated, so nothing here can be reproduced or aimed at.
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
    """A column of the paper's Table 1, in percent as printed.

    Attributes:
        name: the paper's.
        model: how ours starts: names of models are compared without their depth.
        precision, recall, f1, accuracy: percent.
    """

    name: str
    model: str
    precision: float
    recall: float
    f1: float
    accuracy: float

    @property
    def harmonic_mean(self) -> float:
        """The paper's equation 11 of its own precision and recall, in percent."""
        return 2 * self.precision * self.recall / (self.precision + self.recall)

    @property
    def possible(self) -> bool:
        """Whether its F1 could be an average of any kind over classes, folds or runs of F1s.

        An F1 is a harmonic mean, so at most the arithmetic mean of its precision and recall; averaged with the same
        weights as these it is at most the mean of the averages, and that is at most the larger of them.
        """
        return self.f1 <= max(self.precision, self.recall)


TABLE = (
    Row("ResNet", "resnet", 90.34, 92.14, 90.7, 90.23),
    Row("Unet", "unet", 43.73, 42.73, 42.67, 75.06),
    Row("DenseNet", "densenet", 74.0, 75.45, 76.56, 88.56),
    Row("Proposed SE-ResNet", "seresnet", 94.56, 96.78, 97.67, 98.02),
)


def row_of(model: str) -> Row | None:
    """The paper's figures of the kind of network that a model of ours is; None of others."""
    kind = model.lower().rstrip("0123456789")
    return next((row for row in TABLE if row.model == kind), None)


def impossible(table: Sequence[Row] = TABLE) -> list[Row]:
    """The rows whose F1 exceeds both their precision and their recall."""
    return [row for row in table if not row.possible]


def classes_implied(row: Row) -> float:
    """How many classes K there would be if the accuracy were one-vs-rest and the recall the accuracy.

    From ``accuracy_one_vs_rest = 1 - 2 (1 - accuracy) / K``.
    """
    return 2 * (100 - row.recall) / (100 - row.accuracy)


def notes(table: Sequence[Row] = TABLE) -> list[str]:
    """What a reader has to know of the paper's figures: one sentence or two each."""
    said = [
        "The paper's figures are of different data, not comparable with ours: it states neither data set, number of "
        "images, classes, split by patients, image size, depth, training nor seeds, and gives one run without "
        "intervals. Nothing here aims at them."
    ]
    said += [
        f"{row.name}: the paper's F1 {row.f1:.2f} exceeds both its precision {row.precision:.2f} and its recall "
        f"{row.recall:.2f}, which no average over classes, folds or runs allows that is the same for all three; the "
        f"harmonic mean (its equation 11) of that precision and recall is {row.harmonic_mean:.2f}."
        for row in impossible(table)
    ]
    implied = ", ".join(f"{row.name} {classes_implied(row):.1f}" for row in table)
    said.append(
        "Its accuracy (equation 12) may be each class against the rest, which flatters: with K classes it is "
        "1 − 2(1 − accuracy)/K. Were its recall the multi-class accuracy, that would need these K, which ought to be "
        f"one number: {implied}. We give both accuracies, named apart."
    )
    said.append(
        "It calls F1 a weighted average in words and a harmonic mean in equation 11; ours is the harmonic mean of "
        "each class, then averaged over classes."
    )
    return said
