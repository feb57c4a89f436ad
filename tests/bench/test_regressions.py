"""Tests of the comparison of two runs, on simulated runs whose true change is known."""

import dataclasses
import math
import random
import statistics

import pytest
from support.results import made_up, shaken

from se_fused.bench.report.noise import FEWEST, Noise, median_error, student_quantile
from se_fused.bench.report.records import Spread
from se_fused.bench.report.regressions import changes

RUN = made_up()
BLOCKS = sum(m.ours and m.kind == "block" for m in RUN.measurements)


def keep(run, wanted):
    return dataclasses.replace(run, measurements=tuple(m for m in run.measurements if wanted(m)))


# ---- constants
@pytest.mark.parametrize(
    ("freedom", "p", "table"),
    [
        (7, 0.975, 2.365),
        (7, 0.9995, 5.408),
        (10, 0.9995, 4.587),
        (30, 0.9995, 3.646),
        (30, 0.975, 2.042),
        (10, 0.95, 1.812),
    ],
)
def test_students_quantiles(freedom, p, table):
    """Quantiles agree with the table in Abramowitz & Stegun, 26.10."""
    assert student_quantile(p, freedom) == pytest.approx(table, rel=3e-3)


def test_the_error_of_a_median():
    """The estimated error of a median agrees with simulated medians of n = 41 normal values, 4000 times."""
    draw, n = random.Random(1), 41
    medians, told = [], []
    for _ in range(4000):
        q1, median, q3 = statistics.quantiles(
            [math.exp(draw.gauss(0, 0.05)) for _ in range(n)], n=4, method="inclusive"
        )
        medians.append(math.log(median))
        told.append(median_error(Spread(median, q1, q3, n)))
    assert statistics.fmean(told) == pytest.approx(statistics.stdev(medians), rel=0.06)
    assert median_error(Spread(1, 1, 1, 1)) is None


def test_the_threshold_holds_its_level():
    """The probability that any new value exceeds the threshold is about 1 in 20 or less, for one value and for many."""
    draw = random.Random(2)
    for judged in (1, 30):
        alarms = 0
        for _ in range(600):
            noise = Noise([draw.gauss(0, 1) for _ in range(60)], judged)
            alarms += any(abs(draw.gauss(0, 1)) > noise.threshold for _ in range(judged))
        # 5 % of 600 tries are 30 ± 5.3; the error of the robust scale makes the tail slightly uncertain.
        assert 8 <= alarms <= 30 + 3 * 5.4, (judged, alarms)


def test_few_controls_are_too_few():
    assert not Noise([0.01] * (FEWEST - 1), 1).enough and Noise([0.01] * FEWEST, 1).enough
    assert Noise([0.01] * (FEWEST - 1), 1).threshold == math.inf
    # With the fewest controls, the 95 % threshold is the largest of them.
    assert Noise([0.5] + [0.0] * (FEWEST - 1), 1).threshold == 0.5


# ---- simulated runs
def test_noise_alone_is_no_change():
    """Without a true change at most 5 % of runs report one, if groups drift by 20 % and benchmarks vary by 3 %."""
    found = [changes(RUN, shaken(RUN, seed)) for seed in range(40)]
    alarming = sum(any(c.verdict != "within noise" for c in run.judged) for run in found)
    # 5 % of 40 runs are 2 ± 1.4.
    assert alarming <= 6
    flagged = statistics.fmean(run.flagged_controls / run.controls for run in found)
    assert flagged < 0.01
    assert found[0].drift != pytest.approx(1.0, abs=0.02) and all(len(run.judged) > 100 for run in found)


@pytest.mark.parametrize("factor", [1.1, 1 / 1.1])
def test_a_tenth_is_found(factor):
    """A change of a tenth is found in nearly all changed blocks and nowhere else: log 1.1 is nine times the noise.

    The noise is 1 %.
    """
    hits = wrong = 0
    for seed in range(5):
        after = shaken(RUN, seed, lambda m: factor if m.ours and m.kind == "block" else 1.0, noise=0.01)
        found = changes(RUN, after)
        changed = found.having("slower" if factor > 1 else "faster")
        hits += sum("test_block" in c.fullname for c in changed)
        wrong += len(found.judged) - len(found.having("within noise")) - len(changed)
        assert found.ok is (factor < 1)
        assert statistics.median(c.quotient for c in changed) == pytest.approx(factor, rel=0.01)
    assert hits > 0.95 * 5 * BLOCKS and wrong == 0


def test_the_drift_of_the_own_group_is_taken_off():
    """If a whole group became twice as slow, the cause is the machine, and its drift is subtracted."""
    slow = next(m.group for m in RUN.measurements if m.kind == "block")
    after = shaken(RUN, 3, lambda m: 2.0 if m.group == slow else 1.0, noise=0.01, drift=0.0)
    found = changes(RUN, after)
    assert found.ok
    here = [
        c
        for c, m in ((c, m) for c in found.judged for m in RUN.measurements if m.fullname == c.fullname)
        if m.group == slow
    ]
    assert all(c.of_group and c.drift == pytest.approx(2 * math.exp(0.1), rel=0.05) for c in here)
    passes = [c for c in found.judged if "test_pass" in c.fullname]
    assert passes and not any(c.of_group for c in passes), "groups without controls take the drift of all"
    assert min(c.threshold for c in passes) > max(c.threshold for c in here)


def test_an_uncertain_median_is_no_change():
    """A change within the quartiles of our own times is not reported, even if it exceeds the noise."""
    wide = [dataclasses.replace(m, seconds=Spread(m.seconds.median, 0.7 * m.seconds.median, 1.3 * m.seconds.median, 9))
            if m.ours else m for m in RUN.measurements]  # fmt: skip
    run = dataclasses.replace(RUN, measurements=tuple(wide))
    after = shaken(run, 4, lambda m: 1.2 if m.ours else 1.0, noise=0.005)
    assert changes(run, after).ok
    assert not changes(RUN, shaken(RUN, 4, lambda m: 1.2 if m.ours else 1.0, noise=0.005)).ok


def test_without_controls_only_the_runs_own_spread_is_left():
    ours = keep(RUN, lambda m: m.ours)
    found = changes(ours, shaken(ours, 5, lambda m: 1.5, noise=0.0, drift=0.0))
    assert found.controls == 0 and found.drift is None and not found.ok
    assert "Too few controls" in found.text() and "0 baselines in both runs, 19 are needed" in found.text()
    assert all(c.drift == 1.0 and c.verdict == "slower" for c in found.judged)
    single = [
        dataclasses.replace(m, seconds=Spread(m.seconds.median, m.seconds.median, m.seconds.median, 1))
        for m in ours.measurements
    ]
    once = dataclasses.replace(ours, measurements=tuple(single))
    found = changes(once, shaken(once, 5, lambda m: 1.5))
    assert {c.verdict for c in found.judged} == {"cannot tell"} and found.ok
    assert "cannot tell" in found.text()


def test_few_controls_take_no_drift_off():
    few = {m.fullname for m in [m for m in RUN.measurements if not m.ours][: FEWEST - 1]}
    run = keep(RUN, lambda m: m.ours or m.fullname in few)
    found = changes(run, shaken(run, 6))
    assert found.controls == FEWEST - 1 and "Too few controls" in found.text()
    assert all(c.drift == 1.0 for c in found.judged)


# ---- other information
def test_lost_and_new():
    names = [m.fullname for m in RUN.measurements]
    before, after = keep(RUN, lambda m: m.fullname != names[0]), keep(RUN, lambda m: m.fullname not in names[-2:])
    found = changes(before, after)
    assert found.new == (names[0],) and found.lost == tuple(sorted(names[-2:]))
    text = found.text()
    assert "## Only before: 2" in text and "## Only after: 1" in text and names[0] in text
    assert "Both runs are of the same commit" in text


def test_the_text_has_the_numbers():
    name = next(m.fullname for m in RUN.measurements if m.ours)
    after = shaken(RUN, 7, lambda m: 2.0 if m.fullname == name else 1.0, noise=0.01, drift=0.0)
    after = dataclasses.replace(after, commit="fedcba", info={**RUN.info, "versions": {"torch": "2.15.0"}})
    found = changes(RUN, after)
    text = found.text()
    (change,) = found.having("slower")
    assert change.fullname == name and change.quotient == pytest.approx(2, rel=0.05)
    assert "124 benchmarks of se_fused in both runs: 1 slower, 0 faster, 123 within noise." in text
    assert f"| {name.partition('::')[2]} | 3.86 |" in text and f"{100 * (change.quotient - 1):+.1f} %" in text
    assert "torch (2.14.1 before, 2.15.0 after)" in text and "## Faster" not in text and "same commit" not in text
    told = found.as_dict()
    assert told["ok"] is False and len(told["judged"]) == 124 and told["judged"][0]["verdict"] == "slower"


def test_refusals():
    with pytest.raises(ValueError, match=r"made_up.json is of Imaginary CPU 9000, made_up.json is of|of Other CPU"):
        changes(RUN, made_up(small=True, cpu="Other CPU"))
    with pytest.raises(ValueError, match="no benchmark of se_fused in common"):
        changes(RUN, keep(RUN, lambda m: not m.ours))
