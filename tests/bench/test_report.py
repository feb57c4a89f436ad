"""Tests of reading the suite's JSON, of pairing our measurements with baselines, and of the report."""

import dataclasses
import itertools
import json
import math
import re

import pytest
from support.results import document, made_up, written

from se_fused.bench.report.format import milliseconds, number, size, table, times
from se_fused.bench.report.load import load, load_all, parse
from se_fused.bench.report.markdown import markdown
from se_fused.bench.report.pairs import comparisons, quotient, studies, verdict
from se_fused.bench.report.records import Limits, Ratio, Spread

pytestmark = pytest.mark.quick

SMALL = document(small=True)


def small():
    return json.loads(json.dumps(SMALL))


def of(run, kind, **fields):
    """The only measurement with these fields."""
    (found,) = (
        m
        for m in run.measurements
        if m.kind == kind and not m.axis and all(getattr(m, k) == v for k, v in fields.items())
    )
    return found


def tables(text: str) -> list[list[str]]:
    """The cells of every row of every table."""
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]


# ---- reading
def test_a_run_is_read_whole(tmp_path):
    run = load(written(tmp_path / "a.json", small=True))
    eager = of(run, "block", candidate="eager", mode="train", layout="contiguous")
    assert eager.shape == (8, 256, 56, 56) and eager.dtype == "float32" and eager.device == "cpu"
    assert eager.ratio == Ratio(2.1, pytest.approx(2.1 * 0.985), pytest.approx(2.1 * 1.015), 15, to="se_fused")
    assert eager.cold_ratio.median == pytest.approx(1.77) and eager.cold.median > eager.seconds.median
    assert eager.saved_bytes > 0 and eager.counted_bytes == 10 * 8 * 256 * 56 * 56 * 4
    assert len(run.measurements) == len(SMALL["benchmarks"]) and run.dirty and run.freed_memory_kept is True
    assert run.limits["cpu"].matmul == {"float32": 150e9, "bfloat16": 400e9} and len(run.limits["cpu"].copy) == 7
    assert len(run.skipped) == 9 and run.machine == ("Imaginary CPU 9000", ()) and run.notes == ()


def test_absent_fields_are_no_error():
    content = small()
    for entry in content["benchmarks"]:
        info = entry["extra_info"]
        entry["extra_info"] = {k: info[k] for k in ("kind", "title", "shape", "dtype", "candidate", "seconds")}
        entry["extra_info"]["layout"] = info["layout"]
    content["se_fused"] = {}
    for key in ("commit_info", "datetime", "machine_info"):
        del content[key]
    run = parse(content, "x.json")
    assert run.commit == "" and run.limits == {} and run.machine == ("unknown CPU", ())
    text = markdown(run)
    assert "## Blocks" in text and "## Machine" not in text and "## Memory" not in text
    assert "2.10×" in text  # the quotient of medians, where no alternating ratio was measured


def change(path: str, value):
    def apply(content):
        *parents, last = path.split(".")
        for key in parents:
            content = content[int(key) if key.isdigit() else key]
        if value is None:
            del content[last]
        else:
            content[last] = value
        return content

    return apply


FIRST = "benchmarks.0.extra_info"
BROKEN = [
    (change("se_fused", None), "no key 'se_fused'"),
    (change("benchmarks", None), "no list 'benchmarks'"),
    (change("se_fused", []), "se_fused must be an object, got []"),
    (change(f"{FIRST}.seconds", None), "seconds must be an object of median, q1, q3 and n, got nothing"),
    (change(f"{FIRST}.seconds.median", 0), "seconds: median must be a finite number above 0, got 0"),
    (change(f"{FIRST}.seconds.median", math.nan), "seconds: median must be a finite number above 0, got NaN"),
    (change(f"{FIRST}.seconds.q3", math.inf), "seconds: q3 must be a finite number above 0, got Infinity"),
    (change(f"{FIRST}.seconds.q1", True), "seconds: q1 must be a finite number above 0, got true"),
    (change(f"{FIRST}.candidate", 3), "candidate must be a string, got 3"),
    (change(f"{FIRST}.title", None), "title must be a string, got nothing"),
    (change(f"{FIRST}.shape", "8x3"), 'shape must be a list of sizes, got "8x3"'),
    (change("se_fused.limits.cpu.copy.0.working_set_bytes", None), "limits: cpu: copy[0]: working_set_bytes"),
    (change("se_fused.skipped", ["a"]), "skipped must be a list of objects"),
]


@pytest.mark.parametrize(("spoil", "says"), BROKEN, ids=[says[:40] for _, says in BROKEN])
def test_what_is_broken_is_named_in_one_line(spoil, says, tmp_path):
    content = small()
    spoil(content)
    file = tmp_path / "spoilt.json"
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError) as caught:
        load(file)
    message = str(caught.value)
    assert message.startswith(str(file)) and says in message and "\n" not in message
    if "extra_info" in str(spoil.__closure__[0].cell_contents):
        assert content["benchmarks"][0]["fullname"] in message


@pytest.mark.parametrize(
    ("text", "says"), [(None, "there is no such file"), ("{", "not JSON"), ("[]", "benchmarks"), ("\xff", "not text")]
)
def test_no_such_file_no_json(text, says, tmp_path):
    file = tmp_path / "a.json"
    if text is not None:
        file.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=re.escape(str(file)) + ".*" + says):
        load(file)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(ValueError, match="cannot be read"):
        load(tmp_path)


def test_benchmarks_of_others_are_left_out_with_a_note():
    content = small()
    content["benchmarks"] += [{"name": f"test_other{k}", "stats": {}, "extra_info": {}} for k in range(4)]
    run = parse(content, "x.json")
    assert len(run.measurements) == len(SMALL["benchmarks"])
    assert run.notes == ("x.json: 4 benchmarks of other suites omitted: test_other0, test_other1, test_other2, ...",)
    assert run.notes[0] in markdown(run)


# ---- several files
def test_files_are_merged(tmp_path):
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    one, two = small(), small()
    two["benchmarks"] = two["benchmarks"][:3]
    two["benchmarks"][0]["extra_info"]["seconds"] = {"median": 7.0}
    one["benchmarks"] = one["benchmarks"][:1] + one["benchmarks"][3:]
    two["commit_info"]["id"] = "fedcba9876543210"
    two["se_fused"]["limits"] = {"cuda": {"theoretical_bytes_per_second": 4.8e12}}
    two["se_fused"]["skipped"].append({"name": one["benchmarks"][5]["name"], "reason": "measured in the other"})
    for file, content in ((a, one), (b, two)):
        file.write_text(json.dumps(content))
    run = load_all([a, b])
    assert len(run.measurements) == len(SMALL["benchmarks"])
    again = {m.fullname: m for m in run.measurements}[one["benchmarks"][0]["fullname"]]
    assert again.seconds.median == 7.0, "the last file's"
    assert run.limits.keys() == {"cpu", "cuda"} and run.limits["cuda"] == Limits(theoretical=4.8e12)
    assert len(run.skipped) == 9 and len(run.commands) == 1
    assert any("commit fedcba9876" in note and "0123456789" in note for note in run.notes)
    assert any(note.startswith("1 benchmarks are in several files") for note in run.notes)


@pytest.mark.parametrize("other", [{"cpu": "Another CPU"}, {"gpu": "Imaginary GPU"}])
def test_files_of_two_machines_are_refused(other, tmp_path):
    a, b = written(tmp_path / "a.json", small=True), written(tmp_path / "b.json", small=True, **other)
    with pytest.raises(ValueError, match=f"{b} is from another machine .*{next(iter(other.values()))}.* than {a}"):
        load_all([a, b])


def test_no_file_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        load_all([])


# ---- pairs of our measurements and baselines
def test_quotients_prefer_what_was_measured_in_turn():
    run = made_up(small=True)
    ours = of(run, "block", candidate="se_fused", mode="infer", layout="contiguous")
    eager = dataclasses.replace(
        of(run, "block", candidate="eager", mode="infer", layout="contiguous"), ratio=Ratio(3.0, 2.9, 3.1, 9)
    )
    assert quotient(eager, ours).median == 3.0
    assert quotient(ours, eager).median == pytest.approx(1 / 3) and quotient(ours, eager).q1 == pytest.approx(1 / 3.1)
    other = dataclasses.replace(eager, candidate="timm", ratio=Ratio(1.5, 1.4, 1.6, 9))
    both = quotient(eager, other)
    assert (both.median, both.q1, both.q3) == (2.0, pytest.approx(2.9 / 1.6), pytest.approx(3.1 / 1.4))
    alone = dataclasses.replace(eager, ratio=None)
    assert quotient(alone, ours).median == pytest.approx(2.1)
    assert quotient(alone, ours).q1 == pytest.approx(2.1 * 0.99 / 1.01)
    assert quotient(dataclasses.replace(eager, cold=None, cold_ratio=None), ours, cold=True) is None


def test_networks_are_held_against_our_fastest_way():
    """Networks are compared with our fastest variant.

    The reference is ours in channels_last; optimised it takes 0.8 of that, so eager's 1.3 becomes 1.3 / 0.8.
    """
    run = made_up(small=True)
    infer, train = comparisons(run, "network")
    assert (infer.ours.candidate, infer.ours.layout) == ("se_fused optimized", "channels_last")
    eager, compiled = infer.versus("eager"), infer.versus("compile")
    assert eager.baseline.layout == "channels_last" and eager.ratio.median == pytest.approx(1.3 / 0.8)
    assert compiled.mode == "freezing" and compiled.ratio.median == pytest.approx(0.9 / 0.8)
    assert (train.ours.candidate, train.ours.layout) == ("se_fused", "channels_last")
    assert train.versus("eager").ratio.median == pytest.approx(1.3) and train.versus("openvino") is None


def test_what_se_costs():
    """The cost of SE is computed from the plain network's ratio to the same candidate with SE: 1 / ratio - 1."""
    infer = comparisons(made_up(small=True), "network")[0]
    shares = {name: infer.cost(name).share for name in ("se_fused", "eager", "compile", "openvino")}
    assert shares == pytest.approx({"se_fused": 0.05, "eager": 0.22, "compile": 0.18, "openvino": 0.12})
    cost = infer.cost("eager")
    assert cost.low == pytest.approx(1.22 / 1.015 - 1) and cost.high == pytest.approx(1.22 / 0.985 - 1)
    # The cost of SE needs a variant that was also measured without SE, which the fastest one was not.
    assert infer.cost("se_fused").of.candidate == "se_fused" and infer.ours.candidate == "se_fused optimized"
    assert infer.cost("tensorrt") is None
    bare = tuple(dataclasses.replace(m, ratio=None) for m in infer.measurements)
    assert dataclasses.replace(infer, measurements=bare).cost("eager").share == pytest.approx(0.22)


@pytest.mark.parametrize(
    ("q1", "median", "q3", "said"),
    [(0.8, 0.9, 0.99, "behind"), (0.9, 0.97, 1.01, "even"), (0.99, 1.1, 1.2, "even"), (1.01, 1.1, 1.2, "ahead")],
)
def test_behind_is_a_whole_range_below_one(q1, median, q3, said):
    assert verdict(Spread(median, q1, q3, 9)) == said


def test_studies():
    found = {(s.axis, s.title.split()[0]): s for s in studies(made_up())}
    assert {axis for axis, _ in found} == {"batch", "image", "channels", "positions"}
    positions = found["positions", "SE+add+ReLU"]
    assert [value for value, _ in positions.points] == [1, 16, 196, 3136]
    assert [ratio.median for _, ratio in positions.ratios("eager")] == pytest.approx([0.84, 1.554, 2.1, 2.1])
    assert [value for value, _ in positions.behind("eager")] == [1]
    assert [value for value, _ in positions.behind("compile")] == [1]  # at 16 even: 0.999
    assert found["channels", "SE+add+ReLU"].behind("eager") == []
    assert [value for value, _ in found["batch", "seresnet50"].points] == [1, 2, 4, 8, 16]
    assert all(w.ours.axis == "" for w in comparisons(made_up(), "network"))


# ---- formats
@pytest.mark.parametrize(
    ("value", "text"),
    [(1234.5, "1230"), (123.4, "123"), (12.34, "12.3"), (1.234, "1.23"), (0.01234, "0.0123"), (9.999, "10.0"),
     (999.6, "1000"), (0, "0"), (None, "–"), (math.inf, "–")],
)  # fmt: skip
def test_three_digits(value, text):
    assert number(value) == text


def test_spreads_have_the_places_of_the_median():
    assert milliseconds(Spread(0.01234, 0.0122, 0.0126, 9)) == "12.3 ±0.2"
    assert milliseconds(Spread(1.2345, 1.23, 1.25, 9)) == "1230 ±10"
    assert milliseconds(Spread(0.01234, 0.012339, 0.012341, 9)) == "12.3 ±<0.1"
    assert milliseconds(None) == "–"
    assert (times(1.934), times(0.976), times(9.999), times(123.4)) == ("1.93×", "0.98×", "10.0×", "123×")
    assert (size(2**16), size(1536 * 2**10), size(2**30)) == ("64 KiB", "1.5 MiB", "1 GiB")


def test_tables_leave_out_empty_columns():
    lines = table(("a",), ("b", "c"), [["x|y", "–", "1"], ["z", "–", "2"]])
    assert lines == ["| a | c |", "| --- | ---: |", "| x\\|y | 1 |", "| z | 2 |"]


# ---- the report
def test_the_document_answers():
    text = markdown(made_up())
    headings = re.findall(r"^## (.*)$", text, re.M)
    assert headings == ["Machine", "Blocks", "Networks", "Converted models", "Scaling",
                        "Convolution after the gate", "Passes", "Memory", "Skipped"]  # fmt: skip
    assert "SE costs seresnet50, inference, cpu: 5 % with se_fused, 22 % with eager (timm 1.0.31)" in text
    assert "se_fused is 2.10× (2.10× to 2.10×) as fast as eager, " in text
    for wanted in (
        "CPU: Imaginary CPU 9000, 2 cores, 2 threads; kernels use avx512",
        "Commit: 0123456789ab on main, with uncommitted changes",
        "torch 2.14.1", "`pytest benchmarks --benchmark-only --benchmark-json=results.json`",
        "theoretical memory bandwidth 40.0 GB/s", "150 in float32, 400 in bfloat16 GFLOP/s",
        "| cpu | 64 KiB | 60.0 | 13.0 |",
        "tensorrt is not installed: pip install torch-tensorrt: 8 (",
        "- se_fused is behind eager at: positions 1 (0.84×).", "- se_fused is behind eager at no measured point.",
    ):  # fmt: skip
        assert wanted in text, wanted
    assert "nan" not in text.lower() and "None" not in text


def test_rows_of_the_document():
    rows = tables(markdown(made_up(small=True)))
    block = [
        "8×256×56×56",
        "float32",
        "NCHW",
        "3.86 ±0.04",
        "2.10×",
        "2.20× timm",
        "1.30× max-autotune",
        "77 %",
        "90 %",
    ]
    assert [*block, "1.77×"] in rows
    network = ["seresnet50", "float32", "inference", "1 of 224×224", "se_fused optimized, NHWC", "25.6 ±0.3", "39.1"]
    assert [*network, "1.62×", "1.12× freezing", "1.06×"] in rows
    costs = ["seresnet50", "float32", "inference", "1 of 224×224", "5 ±2 %", "22 ±2 %", "18 ±2 %", "12 ±2 %"]
    assert costs in rows
    assert ["timm seresnet50 inference", "float32", "8 of 224×224", "NHWC", "120 ±1", "157 ±2", "1.31×"] in rows
    assert ["moments (cpu)", "8×256×56×56", "float32", "NCHW", "22.0", "85 %", "15.7", "90 %"] in rows
    assert ["8×256×56×56", "float32", "NHWC", "2.00 ±0.02", "1.10×", "1.50×", "1.60×", "0.92×"] in rows
    memory = ["8×256×56×56", "float32", "NCHW", "51.4", "79.6", "60.4", "25.7", "53.9", "34.7"]
    assert memory in rows
    for line, following in itertools.pairwise(rows):
        if set(following) <= {"---", "---:"}:
            assert len(line) == len(following), "GitHub draws no table whose rule is shorter than its heading"


def test_the_document_says_where_ours_is_behind():
    run = made_up(small=True)
    slow = tuple(dataclasses.replace(m, ratio=Ratio(0.8, 0.79, 0.81, 9)) if m.kind == "block" and m.candidate == "eager"
                 and m.mode == "infer" and m.layout == "contiguous" else m for m in run.measurements)  # fmt: skip
    text = markdown(dataclasses.replace(run, measurements=slow))
    (line,) = (line for line in text.splitlines() if "Behind the best" in line)
    assert line.endswith(": SE+add+ReLU inference 8×256×56×56 float32 NCHW (eager 0.80×).")
    assert "Behind the best baseline of a kind (blocks, networks, converted models): none." in markdown(run)


def test_a_run_without_ours_is_told():
    content = small()
    content["benchmarks"] = [b for b in content["benchmarks"] if not b["extra_info"]["candidate"].startswith("se_")]
    text = markdown(parse(content, "x.json"))
    assert "| 8×256×56×56 | float32 | NCHW |" in text and "1.31×" in text
    content["benchmarks"] = []
    text = markdown(parse(content, "x.json"))
    assert "## Machine" in text and "## Blocks" not in text and "## Networks" not in text
