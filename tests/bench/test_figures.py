"""Tests of the figures: the numbers that are drawn, and the legibility of their texts."""

import dataclasses
import itertools

import pytest
from support.results import made_up

pytest.importorskip("matplotlib")

from se_fused.bench.report import figures, roofline, scaling, style
from se_fused.bench.report.pairs import studies
from se_fused.bench.report.records import CopySpeed, Limits
from se_fused.bench.report.style import Bar, Panel


@pytest.fixture(scope="module")
def whole():
    return made_up()


@pytest.fixture(scope="module")
def small():
    return made_up(small=True)


def texts(figure):
    """Every visible text, after drawing, so that it has a position."""
    from matplotlib.text import Text

    figure.canvas.draw()
    beyond = set()  # labels of ticks outside the axis' limits have a position too, but are not drawn
    for axis in itertools.chain.from_iterable((axes.xaxis, axes.yaxis) for axes in figure.axes):
        low, high = sorted(axis.get_view_interval())
        beyond |= {
            tick.label1
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            if not low <= tick.get_loc() <= high
        }
    return [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip() and t not in beyond]


def assert_legible(figure):
    """Check that no text is smaller than 8 points, cut off by the figure's edge, or overlaps another."""
    seen = texts(figure)
    assert seen and all(t.get_fontsize() >= 8 for t in seen)
    shown = [(t.get_text(), box) for t in seen if (box := t.get_window_extent()).width > 0]
    for text, box in shown:
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1, text
    for (one, a), (two, b) in itertools.combinations(shown, 2):
        across = min(a.x1, b.x1) - max(a.x0, b.x0)
        along = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert across <= 1 or along <= 1, f"{one!r} overlaps {two!r}"


# ---- bars
def test_speedups(small):
    panels = figures.speedup_panels(small)
    assert [panel.title for panel in panels] == [
        "SE+add+ReLU inference, float32",
        "BN+SE+add+ReLU forward+backward, float32",
    ]
    label, bars = panels[0].rows[0]
    assert label == "8×256×56×56 NCHW" and list(bars) == ["eager", "module", "compile"]
    assert [bar.value for bar in bars.values()] == pytest.approx([2.1, 2.2, 1.3])
    assert (bars["eager"].low, bars["eager"].high) == pytest.approx((2.1 * 0.985, 2.1 * 1.015))


def test_overhead(small):
    infer, train = figures.overhead_panels(small)
    ((label, bars),) = infer.rows
    assert label == "batch 1, float32"
    values = {name: bar.value for name, bar in bars.items()}
    assert values == pytest.approx({"se_fused": 5, "eager": 22, "compile": 18, "openvino": 12})
    assert train.rows[0][1].keys() == {"se_fused", "eager", "compile"}


def test_memory(small):
    panels = {panel.title: panel.rows for panel in figures.memory_panels(small)}
    peak = panels["BN+SE+add+ReLU forward+backward: peak"]
    assert len(peak) == 1 and peak[0][0] == "8×256×56×56, float32", "both layouts need the same: one row"
    megabytes = 8 * 256 * 56 * 56 * 4 / 1e6
    values = [bar.value for bar in peak[0][1].values()]
    assert values == pytest.approx([2 * megabytes, 3.1 * megabytes, 2.35 * megabytes], rel=1e-6)
    saved = panels["BN+SE+add+ReLU forward+backward: saved for backward"]
    assert saved[0][1]["eager"].value == pytest.approx(2.1 * megabytes, rel=1e-6)
    other = [dataclasses.replace(m, peak_bytes=10**6) if m.layout == "contiguous" else m for m in small.measurements]
    split = figures.memory_panels(dataclasses.replace(small, measurements=tuple(other)))[0].rows
    assert [label for label, _ in split] == ["8×256×56×56, float32, NCHW", "8×256×56×56, float32, NHWC"]


def test_bars_are_drawn_at_their_values():
    rows = [("first", {"se_fused": Bar(-3, -4, -2), "eager": Bar(20, 18, 23)}), ("second", {"eager": Bar.exact(7)})]
    (figure,) = style.bar_pages([Panel("panel", rows)], "heading", lambda v: f"{v:.0f} %", "percent")
    (axes,) = figure.axes
    assert sorted(bar.get_width() for bar in axes.patches) == [-3, 7, 20]
    assert axes.get_xlim()[0] < -4 and axes.get_xlim()[1] > 23
    assert {t.get_text() for t in texts(figure)} >= {"-3 %", "20 %", "7 %", "first", "second", "percent", "panel"}
    first, second = axes.get_yticks()
    below = {bar.get_width(): bar.get_y() + bar.get_height() / 2 for bar in axes.patches}
    assert first == pytest.approx((below[-3] + below[20]) / 2) and second == pytest.approx(below[7])
    assert axes.get_ylim()[0] > second > first > axes.get_ylim()[1], "the first row on top"
    (legend,) = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == ["se_fused", "eager PyTorch"]
    ends = {bar.get_y() + bar.get_height() / 2: bar.get_window_extent().x1 for bar in axes.patches}
    assert all(text.get_window_extent().x0 > ends[text.get_position()[1]] for text in axes.texts), "beside its bar"
    assert_legible(figure)


def test_long_runs_go_on_in_another_picture():
    panel = Panel("p", [(f"row {k}", {"eager": Bar.exact(1 + k)}) for k in range(40)])
    figures_ = style.bar_pages([panel] * 5, "t", str, "x")
    assert [len(figure.axes) for figure in figures_] == [2, 2, 1]
    assert all(figure.get_figheight() < 26 for figure in figures_)
    assert "(2 of 3)" in figures_[1].get_suptitle()
    assert style.bar_pages([Panel("empty", [])], "t", str, "x") == []
    one = Panel("huge", [("row", {"eager": Bar.exact(1)})] * 200)
    assert len(style.bar_pages([one], "t", str, "x")) == 1, "a panel is never lost"


def test_every_family_looks_different():
    looks = [(colour, marker) for _, colour, marker in style.STYLES.values()]
    assert len({c for c, _ in looks}) == len(looks) - 1, "only the best module has timm's"
    assert style.style("someone")[0] == "someone"


# ---- roofline
def test_roofline_points(small):
    found = roofline.points(small, "cpu")
    assert {(p.kind, p.name) for p in found} == {
        ("block", "se_fused"), ("block", "eager"), ("block", "compile"), ("pass", "se_fused"),
        ("network", "se_fused"), ("network", "eager"), ("network", "compile"),
    }  # fmt: skip
    counted = 3 * 8 * 256 * 56 * 56 * 4
    ours = next(p for p in found if p.kind == "block" and p.name == "se_fused")
    assert ours.counted_bytes == counted and ours.intensity == 1.0
    assert ours.bytes_per_second == pytest.approx(counted / (4e-6 + counted / 20e9))
    assert ours.flops_per_second == pytest.approx(ours.bytes_per_second)
    plain = sum(m.plain for m in small.measurements)
    networks = [m for m in small.measurements if m.kind == "network" and m.candidate != "openvino"]
    assert sum(p.kind == "network" for p in found) == len(networks) - plain + 1  # no point: openvino's plain one
    assert roofline.points(small, "cuda") == []


def test_roofs():
    copy = (CopySpeed(10, 50e9, 19e9), CopySpeed(20, 60e9, None), CopySpeed(30, 12e9, 11e9))
    found = {roof.label: roof.bytes_per_second for roof in roofline.roofs(Limits(copy=copy, theoretical=40e9))}
    assert list(found.values()) == [40e9, 60e9, 11e9]
    assert roofline.roofs(Limits()) == []


def test_roofline_is_drawn(small):
    figure = roofline.draw_roofline(small, "t")
    left, right = figure.axes
    # left: three bandwidths and two products; right: copies, warm and cold
    assert len(left.lines) == 5 and len(right.lines) == 2
    ridge = {line.get_label(): line.get_xydata() for line in left.lines}
    cold, product = ridge["copy_, cold, largest set"], ridge["matrix product, bfloat16"]
    assert cold[-1] == pytest.approx([400 / 13, 400]) and product[0] == pytest.approx([400 / 60, 400])
    assert product[-1][0] > 400 / 13, "the ridge of every roof is in the picture"
    drawn = [len(scatter.get_offsets()) for scatter in left.collections]
    found = roofline.points(small, "cpu")
    assert sum(drawn) == len(found) and sum(len(s.get_offsets()) for s in right.collections) == sum(
        p.kind != "network" for p in found
    )
    assert_legible(figure)


def test_a_roofline_without_limits_or_operations(small):
    bare = dataclasses.replace(
        small, limits={}, measurements=tuple(dataclasses.replace(m, flops=None) for m in small.measurements)
    )
    left, right = roofline.draw_roofline(bare, "t").axes
    assert "no counted operations" in left.texts[0].get_text() and len(right.collections) == 4
    nothing = dataclasses.replace(
        small, measurements=tuple(dataclasses.replace(m, counted_bytes=None) for m in small.measurements)
    )
    assert roofline.draw_roofline(nothing, "t") is None


# ---- studies
def test_scaling(whole):
    figure = scaling.draw_scaling(whole, "t")
    assert len(figure.axes) == len(studies(whole)) == 6
    axes = next(a for a in figure.axes if a.get_xlabel().startswith("positions"))
    eager, compiled = (container.lines[0] for container in axes.containers)
    assert list(eager.get_xdata()) == [1, 16, 196, 3136]
    assert list(eager.get_ydata()) == pytest.approx([0.84, 1.554, 2.1, 2.1])
    assert compiled.get_ydata()[0] == pytest.approx(0.54)
    (shade,) = axes.patches
    assert shade.get_y() + shade.get_height() == 1
    assert axes.get_ylim()[0] == pytest.approx(shade.get_y()) and shade.get_y() < 0.54
    (behind,) = axes.texts
    assert behind.get_text() == "behind"
    figure.canvas.draw()
    assert behind.get_window_extent().x0 > axes.get_window_extent().x1, "outside the data"
    assert_legible(figure)


def test_images_per_second(whole):
    (batch,) = (s for s in studies(whole) if s.axis == "batch")
    found = scaling.rates(batch)
    assert found.keys() == {"se_fused", "eager", "compile", "openvino"}
    value, rate = found["se_fused"][2]
    assert value == 4 and rate.median == pytest.approx(4 / (0.068 * 0.8))
    assert rate.q1 == pytest.approx(rate.median / 1.01) and rate.q3 == pytest.approx(rate.median / 0.99)
    versus = batch.points[2][1].versus("eager")
    slow = found["eager"][2][1]
    assert slow.median == pytest.approx(rate.median / versus.ratio.median) and slow.q1 < slow.median < slow.q3
    figure = scaling.draw_rates(whole, "t")
    assert [axes.get_xlabel() for axes in figure.axes] == ["batch size", "image size (height = width)"]
    assert all(len(axes.containers) == 4 and axes.get_ylim()[0] == 0 for axes in figure.axes)
    assert_legible(figure)


def test_close_values_share_no_tick(whole):
    """Of values that are closer than the width of their texts only some get a tick; the ends always do."""
    (batch,) = (s for s in studies(whole) if s.axis == "batch")
    points = tuple((value, batch.points[0][1]) for value in (16, 18, 100, 110, 128, 1024))
    axes = style.new_figure(4.6, 3.3).subplots()
    scaling._plain_ticks(axes, dataclasses.replace(batch, points=points))
    assert list(axes.get_xticks()) == [1024, 128, 16]


# ---- files
def test_only_what_there_is_is_drawn(small, tmp_path):
    written = figures.draw(small, tmp_path)
    assert sorted(p.name for p in written) == ["memory.png", "overhead.png", "roofline.png", "speedups.png"]
    assert sorted(tmp_path.iterdir()) == sorted(written), "no temporary file stays"
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in written)
    assert figures.draw(dataclasses.replace(small, measurements=()), tmp_path) == []


@pytest.mark.parametrize("name", ["speedups", "overhead", "memory"])
def test_bar_pictures_are_legible(small, name):
    (found,) = (made for made_name, made in figures._figures(small, style.heading(small)) if made_name == name)
    for figure in found:
        assert_legible(figure)
