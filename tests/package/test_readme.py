"""Tests of the README: its Python examples run, and its commands exist."""

import csv
import json
import re
import subprocess
import sys

import pytest
from support.paths import ROOT

from se_fused.bench.providers.modules import LIBRARIES
from se_fused.bench.report.load import load_all
from se_fused.bench.report.pairs import comparisons

EAGER = ("eager", *LIBRARIES)
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=[str(i) for i in range(len(EXAMPLES))])
def test_python_examples_run(example):
    subprocess.run([sys.executable, "-W", "error::UserWarning:se_fused", "-c", example], check=True, cwd=ROOT)


def test_there_are_examples():
    assert len(EXAMPLES) >= 3


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    commands = README + (ROOT / "CONTRIBUTING.md").read_text()
    targets = set(re.findall(r"(?:^|`)make (\w+)", commands, re.MULTILINE))
    assert {"run", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target} is not in the Makefile"


@pytest.mark.parametrize("command", sorted(set(re.findall(r"python -m se_fused ((?:fracture )?[\w-]+)", README))))
def test_commands_exist(command):
    run = [sys.executable, "-m", "se_fused", *command.split(), "--help"]
    result = subprocess.run(run, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr


def test_links_lead_somewhere():
    for path in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / path).exists(), path


def test_ci_runs_the_readme_command():
    assert "make test" in README
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_measured_table_says_how_it_was_made():
    measured = README.split("## Measured")[1].split("## ")[0]
    assert "pytest benchmarks/ --benchmark-only" in measured
    assert "benchmarks/results/" in measured


def test_measured_rows_are_those_of_the_kept_runs():
    """Every figure in the README's table of blocks equals that in the saved runs."""
    run = load_all(sorted((ROOT / "benchmarks" / "results" / "cpu-sapphire-rapids-2c" / "runs").glob("*.json")))
    layouts = {"NCHW": "contiguous", "NHWC": "channels_last"}
    found = {}
    for comparison in comparisons(run, "block"):
        m = comparison.ours
        columns = [f"{m.seconds.median * 1e3:.2f}"]
        for names, cold in ((EAGER, False), (("compile",), False), (EAGER, True)):
            versus = comparison.versus(*names, cold=cold)
            columns.append("–" if versus is None else f"{versus.ratio.median:.2f}×")
        found["×".join(map(str, m.shape)), m.dtype, m.layout, m.title] = columns
    measured = README.split("## Measured")[1].split("## ")[0]
    rows = re.findall(r"^\| (\d[\d×]*) \| (\w+) \| (N\w+) \| (.*) \|$", measured, re.MULTILINE)
    assert len(rows) == 16
    for shape, dtype, layout, figures in rows:
        told = figures.split(" | ")
        key = shape, dtype, layouts[layout]
        assert told[:4] == found[*key, "BN+SE+add+ReLU forward+backward"], key
        assert told[4:] == found[*key, "SE+add+ReLU inference"], key


def test_fracture_rows_are_those_of_the_kept_comparison():
    folder = ROOT / "benchmarks" / "results" / "fracture-cpu"
    with (folder / "table1.csv").open(encoding="utf-8") as file:
        kept = {row["model"]: row for row in csv.DictReader(file)}
    speeds = json.loads((folder / "results.json").read_text(encoding="utf-8"))["speed"]["modes"]
    section = README.split("## Fractures on radiographs")[1].split("## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.MULTILINE)
    assert [name for name, _ in rows] == ["resnet50", "unet", "densenet121", "seresnet50"]
    for name, figures in rows:
        of = kept[name]
        told = [f"{of[key]} ± {of[key + '_sd']}" for key in ("precision", "recall", "f1_score", "accuracy")]
        for mode in ("infer", "train"):
            speed = speeds[mode][name]
            told += [f"{speed['fused']['images_per_second']:.0f}", f"{speed['speedup']['median']:.2f}×"]
        assert figures.split(" | ") == told, name
    assert kept["resnet50"]["trainings"] == "3"
