"""Tests that a synthetic phantom's class shows in the crack only: a forest that cannot see cracks is at chance.

Classes are balanced and patients are separated by the folds, so chance is 1/6, and the number of hits among N patients
is binomial. The forest gets the features by which a network could cheat: the histogram of greys, the image's border,
and an 8×8 thumbnail. In one of its cells, an eighth of the image wide, a crack of 0.12 to 0.24 radii is at most 3 % of
the image, so at most 0.03/0.125 of the cell. A displaced end, up to 0.9 radii, or an angulated bone could show; but
other bones have healed crooked, and the fracture may lie and move in any direction.
"""

import numpy as np
import pytest

from se_fused.apps.fracture.synth import CLASSES, draw_patient
from se_fused.apps.fracture.synth.drawing import class_of

pytest.importorskip("sklearn", reason="the random forest is from scikit-learn")

pytestmark = pytest.mark.nightly

PATIENTS, SIZE, FOLDS = 420, 64, 5
SURE = 3.09  # standard deviations; chance exceeds them once in a thousand times


@pytest.fixture(scope="module", params=[0.0, 1.0], ids=["easy", "hard"])
def pictures(request):
    views = [draw_patient(11, index, SIZE, None, request.param) for index in range(PATIENTS)]
    return np.stack([view.image for pair in views for view in pair])


LABELS = np.array([class_of(11, index) for index in range(PATIENTS)])


def greys(images):
    """Moments, quantiles and histogram of each picture, (N, 27)."""
    flat = images.reshape(len(images), -1)
    quantiles = np.quantile(flat, [0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99], axis=1).T
    counts = np.stack([np.histogram(row, 16, (0, 1))[0] for row in flat])
    return np.column_stack([flat.mean(1), flat.std(1), quantiles, counts])


def border(images, width=4):
    """Means along the four edges, 16 for each, (N, 64)."""
    rows, columns = (images[:, :width], images[:, -width:]), (images[..., :width], images[..., -width:])
    edges = [part.mean(1) for part in rows] + [part.mean(2) for part in columns]
    return np.concatenate([edge.reshape(len(images), 16, -1).mean(2) for edge in edges], 1)


def thumbnail(images):
    """Means of 8×8 cells, (N, 64)."""
    cell = SIZE // 8
    return images.reshape(-1, 8, cell, 8, cell).mean((2, 4)).reshape(-1, 64)


def audit(features):
    """Share of patients whose class a forest predicts, and AUROC of "none" against the rest, in folds of patients."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.metrics import roc_auc_score

    told = np.zeros((PATIENTS, len(CLASSES)))
    for fold in range(FOLDS):
        held = np.arange(PATIENTS) % FOLDS == fold  # each six in a row have all classes, so folds do too
        forest = RandomForestClassifier(100, min_samples_leaf=3, random_state=fold)
        forest.fit(features[np.repeat(~held, 2)], np.repeat(LABELS[~held], 2))
        scores = forest.predict_proba(features[np.repeat(held, 2)])
        told[held] = scores[::2] + scores[1::2]
    return (told.argmax(1) == LABELS).mean(), roc_auc_score(LABELS == 0, told[:, 0])


def limits():
    """Limits that chance exceeds once in a thousand times: of binomial hits, and of Mann and Whitney's U."""
    p, whole = 1 / len(CLASSES), (LABELS == 0).sum()
    deviation = np.sqrt((PATIENTS + 1) / (12 * whole * (PATIENTS - whole)))
    return p + SURE * np.sqrt(p * (1 - p) / PATIENTS), 0.5 + SURE * deviation


@pytest.mark.parametrize("look", [greys, border, thumbnail])
def test_a_forest_without_sight_of_cracks_stays_at_chance(look, pictures):
    assert np.bincount(LABELS).tolist() == [PATIENTS // 6] * 6
    accuracy, auroc = audit(look(pictures))
    most, most_auroc = limits()
    assert accuracy <= most and auroc <= most_auroc, (accuracy, most, auroc, most_auroc)


def brighter(images, images_of_none):
    images[images_of_none] = np.clip(images[images_of_none] * 1.06 + 0.02, 0, 1)


def marker(images, images_of_none):
    images[images_of_none, :3, 8:20] = 0.9


def swelling(images, images_of_none):
    rows = np.linspace(-1, 1, SIZE)
    images[images_of_none] += 0.08 * np.exp(-((rows / 0.3) ** 2))[:, None].astype(np.float32)


@pytest.mark.parametrize(("plant", "look"), [(brighter, greys), (marker, border), (swelling, thumbnail)])
def test_the_audit_finds_a_planted_shortcut(plant, look, pictures):
    images = pictures.copy()
    plant(images, np.repeat(LABELS == 0, 2))
    accuracy, auroc = audit(look(images))
    most, most_auroc = limits()
    assert accuracy > most or auroc > most_auroc
