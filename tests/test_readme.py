"""The README is run: its Python examples are executed, its commands exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
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


@pytest.mark.parametrize("command", sorted(set(re.findall(r"python -m se_fused (\w+)", README))))
def test_commands_exist(command):
    run = [sys.executable, "-m", "se_fused", command, "--help"]
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
    assert "python -m se_fused compare stages" in measured
    assert "benchmarks/results/" in measured
