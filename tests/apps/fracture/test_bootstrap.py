"""Tests of the cluster bootstrap and of paired tests: against metrics of copied rows, by hand, by simulation."""

import numpy as np
import pytest
from support.evaluation import drawn_table, table, tables_from

pytest.importorskip("sklearn", reason="scikit-learn is in the extra se_fused[train]")
pytest.importorskip("torchmetrics", reason="torchmetrics is in the extra se_fused[train]")

from se_fused._errors import InputError
from se_fused.apps.fracture.evaluation import aligned, holm, intervals, mcnemar, metrics, over_seeds, paired, statistics
from se_fused.apps.fracture.evaluation.bootstrap import clusters, drawn, interval
from se_fused.apps.fracture.evaluation.pairs import seed_mean

CLOSE = 2e-6  # torchmetrics divides in float32


def same(figures, each, place, found):
    for name, values in figures.items():
        if found[name] is None:
            assert np.isnan(values[place]), name
        else:
            assert values[place] == pytest.approx(found[name], abs=CLOSE), name
    for k, (label, row) in enumerate(found["per_class"].items()):
        for name, values in each.items():
            if row[name] is None:
                assert np.isnan(values[place, k]), (label, name)
            else:
                assert values[place, k] == pytest.approx(row[name], abs=CLOSE), (label, name)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("k", [2, 4])
def test_a_draw_is_what_metrics_say_of_its_copies_of_rows(k, ties):
    predictions = drawn_table(60, k, images=3, ties=ties)
    groups = clusters(predictions)
    assert (groups.what, groups.count) == ("patients", 20)
    draws = np.concatenate([np.ones((1, 20)), drawn(20, 6, seed=3)])
    figures, each = statistics(predictions, groups, draws)
    for place, draw in enumerate(draws):
        rows = np.repeat(np.arange(60), draw[groups.of].astype(int))
        same(figures, each, place, metrics(predictions.take(rows)))


def test_a_draw_without_a_class_leaves_it_out():
    predictions = drawn_table(24, 6, images=2)
    groups = clusters(predictions)
    draws = drawn(groups.count, 20, seed=1)
    figures, each = statistics(predictions, groups, draws)
    absent = 0
    for place, draw in enumerate(draws):
        found = metrics(predictions.take(np.repeat(np.arange(24), draw[groups.of].astype(int))))
        absent += bool(found["absent"])
        same(figures, each, place, found)
    assert absent


def test_chunks_do_not_change_a_thing(monkeypatch):
    from se_fused.apps.fracture.evaluation import bootstrap

    predictions = drawn_table(40, 3)
    whole = intervals(predictions, 50)
    monkeypatch.setattr(bootstrap, "_CHUNK", 40 * 7)
    assert intervals(predictions, 50) == whole


def test_seeds_draw_alike_and_otherwise():
    predictions = drawn_table(80, 3)
    first = intervals(predictions, 200, seed=1)
    assert first == intervals(predictions, 200, seed=1)
    assert first["figures"] != intervals(predictions, 200, seed=2)["figures"]
    assert drawn(7, 5, 0).sum(1).tolist() == [7] * 5


def test_interval_is_of_percentiles():
    values = np.arange(1001.0)
    assert interval(values) == pytest.approx([25, 975])
    assert interval(values, 0.5) == pytest.approx([250, 750])
    assert interval(np.full(9, np.nan)) is None
    assert interval(np.array([1.0, np.nan, np.nan])) is None  # a figure that most draws lack has no interval


def test_without_patients_images_are_drawn_and_it_is_said():
    predictions = table([0, 1, 0, 1], np.eye(2)[[0, 1, 1, 1]])
    assert intervals(predictions, 20)["clusters"] == {"what": "images", "count": 4}
    some = table([0, 1, 0, 1], np.eye(2)[[0, 1, 1, 1]], ["a", "a", "", ""])
    assert intervals(some, 20)["clusters"] == {"what": "patients", "count": 3}


def test_coverage():
    """Intervals over patients cover the truth if a patient's four images share their outcome; those over images do not.

    In 150 simulated test sets a 95 % interval misses the truth 7.5 times; the limit is 5 binomial deviations, with some
    margin because 50 patients are few. Intervals over images are half as wide and miss it about a third of the time.
    """
    rng = np.random.default_rng(0)
    truth, held = 0.7, {"patients": 0, "images": 0}
    for trial in range(150):
        right = np.repeat(rng.random(50) < truth, 4)
        said = np.where(right, 0, 1)
        patients = [f"p{i // 4}" for i in range(200)]
        for what, names in (("patients", patients), ("images", None)):
            predictions = tables_from(said, [0] * 200, k=2, patients=names)
            groups = clusters(predictions)
            figures, _ = statistics(predictions, groups, drawn(groups.count, 300, trial), ranking=False)
            low, high = interval(figures["accuracy"])
            held[what] += low <= truth <= high
    assert held["patients"] >= 150 * 0.95 - 5 * np.sqrt(150 * 0.95 * 0.05)
    assert held["images"] < 150 * 0.8


# ---- several trainings
def test_over_seeds():
    tables = [drawn_table(100, 3, seed=s) for s in range(3)]
    found = over_seeds(tables, 300)
    values = [metrics(t)["accuracy"] for t in tables]
    row = found["accuracy"]
    assert row["values"] == pytest.approx(values) and row["mean"] == pytest.approx(np.mean(values))
    assert row["sd"] == pytest.approx(np.std(values, ddof=1))
    alone = over_seeds(tables[:1], 300)["accuracy"]
    assert alone["sd"] is None
    assert alone["interval"] == alone["interval_seeds"] == intervals(tables[0], 300)["figures"]["accuracy"]
    # Over patients, the mean of three varies less than one.
    assert np.ptp(row["interval"]) < np.ptp(alone["interval"])


def test_drawing_trainings_too_widens_the_interval():
    good, bad = tables_from([0, 1] * 30, [0, 1] * 30, k=2), tables_from([0, 0] * 30, [0, 1] * 30, k=2)
    row = over_seeds([good, bad], 400)["accuracy"]
    assert row["interval_seeds"][0] < row["interval"][0] and row["interval_seeds"][1] == 1.0
    assert row["interval"][1] < 0.9


def test_over_seeds_refuses_different_images():
    with pytest.raises(InputError, match="different images"):
        over_seeds([drawn_table(20), drawn_table(22)], 10)
    with pytest.raises(InputError, match="at least one"):
        over_seeds([])


# ---- pairs
def test_paired_difference():
    better, worse = [drawn_table(200, 3, skill=2.0, seed=s) for s in (1, 2)], [drawn_table(200, 3, skill=0.3, seed=3)]
    found = paired(better, worse, ("accuracy", "auroc_macro"), 400)
    difference = np.mean([metrics(t)["accuracy"] for t in better]) - metrics(worse[0])["accuracy"]
    assert found["accuracy"]["difference"] == pytest.approx(difference)
    for row in found.values():
        assert 0 < row["interval"][0] < row["difference"] < row["interval"][1]
        assert row["p"] == row["p_seeds"] == pytest.approx(2 / 401)
    back = paired(worse, better, ("accuracy",), 400)["accuracy"]
    assert back["difference"] == -found["accuracy"]["difference"]
    assert back["interval"] == pytest.approx([-x for x in reversed(found["accuracy"]["interval"])])


def test_a_model_does_not_differ_from_itself():
    predictions = drawn_table(60)
    row = paired([predictions], [predictions], n=100)["f1_macro"]
    assert row["difference"] == 0 and row["interval"] == [0, 0] and row["p"] == 1


def test_pairing_is_sharper_than_two_intervals():
    """For two models with nearly the same errors, the paired interval is far narrower than the interval of either."""
    first = drawn_table(300, 3, skill=0.8, seed=5)
    scores = first.probabilities.copy()
    wrong = np.flatnonzero(first.predicted != first.labels)[:12]
    scores[wrong] = np.eye(3)[first.labels[wrong]]
    second = table(first.labels, scores, first.patients)
    row = paired([second], [first], ("accuracy",), 400)["accuracy"]
    alone = intervals(first, 400)["figures"]["accuracy"]
    assert np.ptp(row["interval"]) < np.ptp(alone) / 2 and row["p"] < 0.05


def test_mcnemar_by_hand():
    labels = [0] * 20
    first = tables_from([0] * 18 + [1] * 2, labels, k=2)
    second = tables_from([1] * 8 + [0] * 12, labels, k=2)
    found = mcnemar(first, second)
    # 8 and 2 of 10: 2 (1 + 10 + 45) / 1024.
    assert found == {"first_only": 8, "second_only": 2, "p": pytest.approx(112 / 1024)}
    assert mcnemar(second, first)["p"] == found["p"]
    assert mcnemar(first, first) == {"first_only": 0, "second_only": 0, "p": 1.0}
    with pytest.raises(InputError, match="different images"):
        mcnemar(first, tables_from([0] * 19, [0] * 19, k=2))


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    with pytest.raises(ValueError, match="p_values"):
        holm([1.2])


def test_seed_mean():
    first, second = tables_from([0, 1], [0, 1], k=2), tables_from([0, 0], [0, 1], k=2)
    assert seed_mean([first, second]).probabilities.tolist() == [[1, 0], [0.5, 0.5]]


# ---- the same test set
def test_aligned_finds_the_order_wherever_the_set_lies():
    first = drawn_table(10)
    order = np.random.default_rng(0).permutation(10)
    moved = table(
        first.labels[order],
        first.probabilities[order],
        [f"other-{i}" for i in order],
        paths=[f"/elsewhere/set/{first.paths[i].rsplit('/', 1)[1]}" for i in order],
    )
    found = aligned({"a": first, "b": moved})["b"]
    assert (found.probabilities == first.probabilities).all() and found.paths == first.paths
    assert found.patients == first.patients


def test_pairs_of_different_test_sets_are_refused_by_name():
    first = drawn_table(10)
    with pytest.raises(InputError, match=r"run-1 and run-2: different test sets: 1 images .*image0009\.png"):
        aligned({"run-1": first, "run-2": first.take(np.arange(9))})
    with pytest.raises(InputError, match="run-1 and run-2: 1 images have different labels"):
        aligned({"run-1": first, "run-2": table([(first.labels[0] + 1) % 3, *first.labels[1:]], first.probabilities)})
    with pytest.raises(InputError, match="different classes: none, oblique, spiral against a, b, c"):
        aligned({"run-1": first, "run-2": table(first.labels, first.probabilities, classes="abc")})
    with pytest.raises(InputError, match="different images"):
        paired([first], [first.take(np.arange(9))])
