"""Tests of the demo: an SE-ResNet on radiographs, with the kernels and with plain PyTorch."""

import numpy as np
import pytest
from typer.testing import CliRunner

from se_fused import __main__, cli
from se_fused.bench import compare
from se_fused.nn import whole_block

# The demo compares losses by their median over the steps, because one step is a single sample of rounding errors.
DEMO = ["fracture", "demo", "--model", "seresnet18", "--size", "32", "--batch", "2", "--steps", "3", "--no-compile"]
PNG = b"\x89PNG"
WRONG = [
    (["demo", "--data", "/nowhere/at/all"], "--data", "no such folder"),
    (["demo", "--model", "alexnet"], "--model", "seresnet18"),
    (["demo", "--batch", "1"], "--batch", "at least 2"),
    (["demo", "--steps", "0"], "--steps", "at least 1"),
]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Skip the repetitions for timing; these tests check everything except the times."""
    monkeypatch.setattr(compare, "_ROUNDS", (1, 1))


def invoke(*arguments: str):
    return CliRunner().invoke(cli.app, list(arguments), catch_exceptions=False)


@pytest.mark.parametrize(("arguments", "option", "says"), WRONG, ids=[" ".join(w[0]) for w in WRONG])
def test_wrong_usage_is_one_line(arguments, option, says, capfd):
    assert __main__.main(["fracture", *arguments]) == 2
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and captured.err.startswith("se-fused fracture demo: ")
    assert option in captured.err and says in captured.err


def test_demo_on_phantoms(tmp_path):
    plot = tmp_path / "demo.png"
    shown = invoke(*DEMO, "--plot", str(plot))
    assert shown.exit_code == 0, shown.output
    for wanted in ("synthetic phantoms, no clinical meaning", "Loss at each training step", "The results agree"):
        assert wanted in shown.output
    assert plot.read_bytes().startswith(PNG) and list(tmp_path.iterdir()) == [plot]


def test_demo_on_a_folder(tmp_path):
    image = pytest.importorskip("PIL.Image")
    noise = np.random.default_rng(0)
    for name, grey in (("broken", 90), ("whole", 160)):
        (tmp_path / name).mkdir()
        image.new("L", (40, 50), grey).save(tmp_path / name / "1.png")
        picture = noise.normal(128, 40, (50, 40)).clip(0, 255).astype(np.uint8)
        image.fromarray(picture).save(tmp_path / name / "2.png")
    (tmp_path / "whole" / "3.png").write_bytes(b"no picture")
    shown = invoke(*DEMO, "--data", str(tmp_path))
    assert shown.exit_code == 0, shown.output
    assert "4 radiographs" in shown.output and "broken 2, whole 2" in shown.output
    assert "skipped" in shown.output and "3.png" in shown.output


def test_demo_fails_on_disagreement(monkeypatch):
    right = whole_block.residual_block
    monkeypatch.setattr(whole_block, "residual_block", lambda *a: 1.01 * right(*a))
    shown = invoke(*DEMO)
    assert shown.exit_code == 1
    assert "do NOT agree" in shown.output and "DIFFERS" in shown.output and "The results agree" not in shown.output
