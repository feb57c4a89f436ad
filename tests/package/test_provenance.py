"""Results name no folder of the machine that made them: tests of the recorder and of benchmarks/results."""

import json
import re
import sys
from pathlib import Path

import pytest
from support.paths import ROOT
from support.provenance import naming_folders

from se_fused.info import provenance

RESULTS = ROOT / "benchmarks" / "results"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with a blank in its name, and next to it the working directory ``project``."""
    folder, project = tmp_path / "check out", tmp_path / "project"
    for made in (folder, project):
        made.mkdir()
    monkeypatch.setattr(provenance, "_CHECKOUT", folder)
    monkeypatch.chdir(project)
    return folder


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("benchmarks/test_block.py", "benchmarks/test_block.py"),
        ("../elsewhere", "../elsewhere"),
        ("CHECKOUT/benchmarks/test_block.py", "benchmarks/test_block.py"),
        ("CHECKOUT/benchmarks/test_block.py::test_tail[a/b]", "'benchmarks/test_block.py::test_tail[a/b]'"),
        ("CHECKOUT", "."),
        ("CHECKOUT-2/data", "data"),
        ("PROJECT/runs/one", "runs/one"),
        ("--benchmark-json=CHECKOUT/build/tail.json", "--benchmark-json=build/tail.json"),
        ("--benchmark-json=/nowhere/at all/tail.json", "--benchmark-json=tail.json"),
        ("/nowhere/radio graphs", "'radio graphs'"),
        ("/data", "data"),
        ("data.path=/data", "data.path=data"),
        ("model.options={checkpoint: /nowhere/se.pth}", "'model.options={checkpoint: se.pth}'"),
        ("/nowhere/.venv/bin/python3.11", "python"),
        ("timm and not samples", "'timm and not samples'"),
        ("images/s", "images/s"),
    ],
)
def test_words_of_a_command(checkout: Path, word: str, told: str) -> None:
    given = word.replace("CHECKOUT", str(checkout)).replace("PROJECT", str(checkout.parent / "project"))
    assert provenance.command([given]) == told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("/nowhere/bin/python3.11 -m pytest CHECKOUT/benchmarks -q", "python -m pytest benchmarks -q"),
        (
            ".venv/bin/python -m se_fused fracture train --output /nowhere/se",
            "python -m se_fused fracture train --output se",
        ),
        ("/nowhere/bin/python BIN/se-fused fracture train", "se-fused fracture train"),
        ("/nowhere/bin/python CHECKOUT/tools/draw.py 3", "python tools/draw.py 3"),
    ],
)
def test_the_command_of_this_process(checkout: Path, monkeypatch: pytest.MonkeyPatch, words: str, told: str) -> None:
    named = {"CHECKOUT": str(checkout), "BIN": str(Path(sys.executable).parent)}
    given = [re.sub("CHECKOUT|BIN", lambda match: named[match[0]], word) for word in words.split()]
    monkeypatch.setattr(sys, "orig_argv", given)
    assert provenance.this_command() == told


def test_texts_within_a_record(checkout: Path) -> None:
    told = provenance.portable(
        {
            "note": f"{checkout}/csrc/gate.cu:7 is wrong; see /nowhere/lib/libcudart.so.13",
            "deep": [{"reason": f"no file {checkout.parent}/project/x.json"}, 3, None],
            "kept": "3 images /s, 2/3/4 of https://host/a/b and a/relative/path, file:///nowhere/x.whl",
        }
    )
    assert told == {
        "note": "csrc/gate.cu:7 is wrong; see libcudart.so.13",
        "deep": [{"reason": "no file x.json"}, 3, None],
        "kept": "3 images /s, 2/3/4 of https://host/a/b and a/relative/path, x.whl",
    }


def test_the_environment_names_no_folder() -> None:
    told = provenance.environment()
    assert told["versions"]["torch"] and "path" not in told and "choices" not in told
    assert not naming_folders(told)


@pytest.mark.skipif(not RESULTS.exists(), reason="runs from a source tree")
def test_kept_results_name_no_folder() -> None:
    read = 0
    for path in sorted(RESULTS.rglob("*")):
        if path.is_dir() or path.suffix in (".png", ".jpg"):
            continue
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else text.splitlines()
        assert not naming_folders(content), path.relative_to(RESULTS)
        read += 1
    assert read > 5
