"""Tests of README and guides: Python examples run, links resolve, measured tables match the recorded runs.

Commands and names are checked in test_references.py, for all documents.
"""

import csv
import json
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest
from support.documents import DOCUMENTS, GUIDES, anchors, blocks, exit_code, link_problem, links, section, table
from support.paths import ROOT

from se_fused.bench.providers.modules import LIBRARIES
from se_fused.bench.report.load import load_all
from se_fused.bench.report.pairs import Comparison, comparisons
from se_fused.bench.report.records import Run

EAGER = ("eager", *LIBRARIES)
README = (ROOT / "README.md").read_text(encoding="utf-8")
BENCHMARKS = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
EXAMPLES = [
    pytest.param(code, id=f"{guide.stem}-{index}", marks=() if guide.stem == "README" else pytest.mark.nightly)
    for guide in GUIDES
    for index, code in enumerate(blocks(guide.read_text(encoding="utf-8"), "python"))
]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# ---- examples
@pytest.mark.parametrize("example", EXAMPLES)
def test_python_examples_run(example: str, tmp_path: Path) -> None:
    assert exit_code(example, tmp_path) == 0


def test_failures_of_examples_are_seen(tmp_path: Path) -> None:
    warn = "import warnings\nwarnings.warn_explicit('{}', UserWarning, 'file', 1, module='se_fused')"
    for code in ("assert False", "import gone", "raise SystemExit(3)", warn):
        assert exit_code(code, tmp_path)


def test_there_are_examples() -> None:
    assert len(blocks(README, "python")) >= 3
    assert {"training", "inference", "numerics"} <= {p.id.rpartition("-")[0] for p in EXAMPLES}


def test_extras_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {extra for guide in GUIDES for extra in re.findall(r'"\S*\[(\w+)\]"', guide.read_text(encoding="utf-8"))}
    assert {"train", "serve", "bench", "cli"} <= named <= set(project["optional-dependencies"])


def test_ci_runs_the_readme_command() -> None:
    assert "make test" in README
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


# ---- links
@pytest.mark.quick
@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_links_lead_somewhere(document: Path) -> None:
    found = links(document.read_text(encoding="utf-8"))
    problems = {link: problem for link in found if (problem := link_problem(document, link))}
    assert not problems


def test_wrong_links_are_seen() -> None:
    assert links("[a](b.md#c) ![d](e/f.png) [g](https://h) `[i](j)`\n```text\n[k](l)\n```\n") == ["b.md#c", "e/f.png"]
    assert anchors("# A `b_c`, d!\n## [E](f) – g\n```bash\n# no heading\n```\n## A b_c d\n") == {
        "a-b_c-d", "e--g", "a-b_c-d-1"
    }  # fmt: skip
    readme = ROOT / "README.md"
    assert link_problem(readme, "docs/gpu.md#kernels") is None
    for link in ("docs/gone.md", "docs/gpu.md#gone", "#gone", "LICENSE#gone", "../gone"):
        assert link_problem(readme, link), link


@pytest.mark.quick
@pytest.mark.parametrize("guide", GUIDES[1:], ids=name)
def test_guides_are_linked(guide: Path) -> None:
    """From the README and from the index of the guides."""
    assert f"docs/{guide.name}" in README
    assert guide.name == "README.md" or f"({guide.name})" in (ROOT / "docs" / "README.md").read_text(encoding="utf-8")


# ---- measured tables
@cache
def recorded() -> Run:
    return load_all(sorted((ROOT / "benchmarks" / "results" / "cpu-sapphire-rapids-2c" / "runs").glob("*.json")))


def times(comparison: Comparison, *families: str, cold: bool = False) -> str:
    """Speed relative to the fastest of these families of baselines, formatted as in the tables."""
    versus = comparison.versus(*families, cold=cold)
    return "" if versus is None else f"{versus.ratio.median:.2f}×"


@cache
def recorded_blocks() -> dict[tuple[str, str, str, str], list[str]]:
    """Milliseconds, against eager, compile, and eager out of cold caches, by map, dtype, layout and title."""
    found = {}
    for comparison in comparisons(recorded(), "block"):
        m = comparison.ours
        ratios = [times(comparison, *EAGER), times(comparison, "compile"), times(comparison, *EAGER, cold=True)]
        found["×".join(map(str, m.shape)), m.dtype, m.layout, m.title] = [f"{m.seconds.median * 1e3:.2f}", *ratios]
    return found


TITLES = {"training": "BN+SE+add+ReLU forward+backward", "inference": "SE+add+ReLU inference"}


def test_guide_has_the_recorded_blocks() -> None:
    text = section(BENCHMARKS, "## Blocks")
    rows = [line.strip("| ").split(" | ") for line in text.split("\n") if line.startswith("| 8×")]
    assert len(rows) == 16
    layouts = {"NCHW": "contiguous", "NHWC": "channels_last"}
    for shape, dtype, layout, *figures in rows:
        key = shape, dtype, layouts[layout]
        assert figures[:4] == recorded_blocks()[*key, TITLES["training"]], key
        assert figures[4:] == recorded_blocks()[*key, TITLES["inference"]], key


@pytest.mark.parametrize("mode", TITLES)
def test_readme_has_the_recorded_blocks(mode: str) -> None:
    rows = table(section(README, f"**{mode.capitalize()}**"), "map")
    assert len(rows) == 4
    for row in rows:
        shape, *figures = row.values()
        assert figures == recorded_blocks()[shape, "float32", "channels_last", TITLES[mode]], shape


def test_readme_names_the_range_of_all_blocks() -> None:
    for column, text in ((1, "{} to {} times as fast as the fastest eager"), (2, "{} to {} times as fast as `torch")):
        found = [columns[column] for key, columns in recorded_blocks().items() if key[3] == TITLES["training"]]
        ratios = sorted((ratio.rstrip("×") for ratio in found), key=float)
        assert text.format(ratios[0], ratios[-1]) in " ".join(README.split())


@pytest.mark.parametrize("text", [README, BENCHMARKS], ids=["README", "benchmarks"])
def test_network_rows_are_recorded(text: str) -> None:
    modes = {"infer": "inference", "train": "forward+backward"}
    families = {"eager": "eager", "compile": "compile", "OpenVINO": "openvino", "ONNX Runtime": "onnxruntime"}
    found = {}
    for comparison in comparisons(recorded(), "network"):
        m = comparison.ours
        cells = {"se_fused, ms": f"{m.seconds.median * 1e3:.0f}"}
        for title, family in {"SE costs se_fused": "se_fused", **families}.items():
            cost = comparison.cost(family)
            cells[title] = "" if cost is None else f"{100 * cost.share:.0f} %"
            cells[f"vs {title}"] = times(comparison, family)
        found[f"{modes[m.mode]}, {m.dtype}, batch {m.shape[0]}"] = cells
    rows = table(text, "| SE costs se_fused")
    assert [row[""] for row in rows] == list(found)
    for row in rows:
        label = row.pop("")
        assert row == {title: found[label][title] for title in row}, label


def test_converted_rows_are_recorded() -> None:
    found = {comparison.ours.title: times(comparison, "original") for comparison in comparisons(recorded(), "convert")}
    rows = table(section(BENCHMARKS, "## Converted models"), "model")
    assert len(rows) == 7
    for row in rows:
        model = row["model"].replace("`", "")
        assert row["inference"] == found[f"{model} inference"], model
        assert row["training"] == found[f"{model} forward+backward"], model


def test_measured_tables_say_how_they_were_made() -> None:
    assert "pytest benchmarks/ --benchmark-only" in BENCHMARKS
    assert "benchmarks/results/cpu-sapphire-rapids-2c/runs/" in BENCHMARKS


def test_fracture_rows_are_those_of_the_kept_comparison() -> None:
    folder = ROOT / "benchmarks" / "results" / "fracture-cpu"
    with (folder / "table1.csv").open(encoding="utf-8") as file:
        kept = {row["model"]: row for row in csv.DictReader(file)}
    speeds = json.loads((folder / "results.json").read_text(encoding="utf-8"))["speed"]["modes"]
    guide = (ROOT / "docs" / "fractures.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in guide.split("\n") if line.startswith("| `")]
    assert [row[0] for row in rows] == ["`resnet50`", "`unet`", "`densenet121`", "`seresnet50`"]
    for model, *figures in rows:
        of = kept[model.strip("`")]
        told = [f"{of[key]} ± {of[key + '_sd']}" for key in ("precision", "recall", "f1_score", "accuracy")]
        for mode in ("infer", "train"):
            speed = speeds[mode][model.strip("`")]
            told += [f"{speed['fused']['images_per_second']:.0f}", f"{speed['speedup']['median']:.2f}×"]
        assert figures == told, model
    assert kept["resnet50"]["trainings"] == "3"
